"""Turn documents into the text that a language model is pretrained on: subwords, one document per line.

fairseq's language modelling task joins the lines, with `</s>` after each, and cuts the stream into blocks.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import bpe
from common import atomic_open, batched, positive, progress, run_main, worker_pool
from documents import held_out, read_documents

BATCH = 512  # documents per task of a worker


def main(argv: list[str]) -> str:
    args = parse_args(argv)
    count, valid = held_out(args.documents, args.valid)
    tokens = 0
    with contextlib.ExitStack() as stack:
        train, validation = (
            stack.enter_context(atomic_open(args.output_dir / f"{split}.text")) for split in ("train", "valid")
        )
        for index, line in enumerate(progress(encoded(args), "encode", count, unit=" documents")):
            tokens += line.count(" ") + 1
            (validation if index in valid else train).write(line)
    return f"{count} documents, {tokens} tokens"


def encoded(args: argparse.Namespace) -> Iterator[str]:
    """The documents' lines in their order, by --workers processes."""
    _start(args.spm)  # a bad model fails here, not in every worker
    with worker_pool(args.workers, _start, (args.spm,)) as call:
        for lines in call(encode_batch, batched(read_documents(args.documents), BATCH)):
            yield from lines


def _start(model: Path) -> None:
    global _vocabulary
    _vocabulary = bpe.sentencepiece(model)


def encode_batch(documents: list[dict]) -> list[str]:
    return [
        " ".join(
            piece
            for segment in document["segments"]
            for piece in bpe.encode(_vocabulary, segment, f"the segment {segment[:40]!r}")
        )
        + "\n"
        for document in documents
    ]


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True, metavar="FILE", help="documents.jsonl")
    parser.add_argument("--spm", type=Path, required=True, metavar="FILE", help="spm.model of learn_vocabulary.py")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="gets train.text and valid.text")
    parser.add_argument(
        "--valid",
        type=positive,
        default=200,
        metavar="N",
        help="documents kept for validation, evenly spread [%(default)s]",
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes [%(default)s]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
