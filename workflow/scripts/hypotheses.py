"""Turn the output of fairseq-generate into hypotheses: one detokenised line per example, in the order of the set.

fairseq prints in the order of its batches and drops without a word what it does not like; here the hypotheses are
ordered by id, and a gap, a duplicate, a wrong number or a test set that has changed since is an error. An empty
hypothesis is a legitimate, empty line. Of a validation example, which is encoded once for each of its references, the
first line's hypothesis is taken.
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

import bpe
from common import EVALUATED, UserError, atomic_open, encoded_lines, progress, read_lines, run_main, sha256_file
from trained import read_record

HYPOTHESIS = re.compile(r"H-([0-9]{1,18})\t([^\t]+)\t(.*)")


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    vocabulary = bpe.from_arguments(args)
    digest = sha256_file(args.examples)
    if (read_record(args.generated.with_suffix(".json")) or {}).get("examples_sha256", digest) != digest:
        raise UserError(
            f"{args.generated}: decoded from other examples than {args.examples} holds now; add --config replace=True "
            "to decode again"
        )
    lines = encoded_lines(args.examples, args.split)
    count = sum(lines)
    generated = read_generated(args.generated)
    if missing := sorted(set(range(count)) - set(generated)):
        some = ", ".join(map(str, missing[:3]))
        raise UserError(f"{args.generated}: {len(missing)} of {count} examples have no hypothesis, such as {some}")
    if len(generated) != count:
        raise UserError(f"{args.generated}: {len(generated)} hypotheses for the {count} examples of {args.examples}")
    with atomic_open(args.output) as file:
        first = list(itertools.accumulate(lines, initial=0))[:-1]  # encoded line of each example
        for number in progress(first, "decode subwords", unit=" hypotheses"):
            where = f"{args.generated}: the hypothesis H-{number}"
            file.write(bpe.decode(vocabulary, generated[number], where) + "\n")


def read_generated(path: Path) -> dict[int, list[str]]:
    """Pieces of each hypothesis by the example's number, from the H- lines of fairseq-generate.

    Raises:
        UserError: an H- line is malformed or an example has two.
    """
    hypotheses: dict[int, list[str]] = {}
    for line_number, line in read_lines(path):
        if not line.startswith("H-"):
            continue
        found = HYPOTHESIS.fullmatch(line)
        if not found:
            raise UserError(
                f"{path}, line {line_number}: not of the form H-ID, score, hypothesis; is the file cut off?"
            )
        number = int(found[1])
        if number in hypotheses:
            raise UserError(
                f"{path}, line {line_number}: a second hypothesis for example {number}; generate with --nbest 1"
            )
        hypotheses[number] = found[3].split()
    return hypotheses


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", required=True, type=Path, help="what fairseq-generate printed")
    parser.add_argument("--examples", required=True, type=Path, help="the prepared split (JSON lines)")
    parser.add_argument("--split", choices=EVALUATED, default="test", help="which split it is [%(default)s]")
    parser.add_argument("--output", required=True, type=Path, help="where the hypotheses are written")
    bpe.add_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
