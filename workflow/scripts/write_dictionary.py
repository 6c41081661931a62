"""Write fairseq's dict.txt for the sentencepiece model of a base that comes without one, as from Hugging Face."""

from __future__ import annotations

import argparse
from pathlib import Path

import bpe
from common import atomic_open, run_main
from learn_vocabulary import dictionary


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    bpe.sentencepiece(args.spm)  # an unusable file is an error with a sentence
    lines = dictionary(args.spm.read_bytes()).removesuffix("<mask> 0\n")  # other symbols come before it
    with atomic_open(args.output) as file:
        file.write(lines)


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spm", type=Path, required=True, metavar="FILE", help="the sentencepiece model")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="dict.txt")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
