"""Encode prepared examples as subword text: {prefix}.source and {prefix}.target, one line per example.

Training and validation have one line per (source, reference) pair, the test set one line per example (its first
reference stands in the target only because fairseq wants one; scoring uses all).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import bpe
from common import (
    SPLITS,
    UserError,
    atomic_open,
    batched,
    positive,
    progress,
    read_jsonl,
    read_lines,
    run_main,
    worker_pool,
)

BATCH = 256  # examples per task of a worker
COUNTS = (
    "examples",
    "lines",
    "source tokens",
    "target tokens",
    "unknown source pieces",
    "unknown target pieces",
)

_vocabulary: bpe.Vocabulary
_args: argparse.Namespace


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    _start(args)  # here too, so that a bad vocabulary is one error and not one per worker
    print(f"{args.output_prefix}: {encode(args)}", file=sys.stderr)


def encode(args: argparse.Namespace) -> str:
    """Write both files, or neither; returns a line of counts."""
    counts: Counter = Counter()
    total = sum(1 for _ in read_lines(args.input))
    with (
        atomic_open(f"{args.output_prefix}.source") as sources,
        atomic_open(f"{args.output_prefix}.target") as targets,
        progress(None, args.split, total=total, unit=" examples") as bar,
    ):
        for source_lines, target_lines, batch_counts in encoded_batches(args):
            sources.writelines(source_lines)
            targets.writelines(target_lines)
            counts.update(batch_counts)
            bar.update(batch_counts["examples"])
        if not counts["examples"]:
            raise UserError(
                f"{args.input}: no examples; this task was prepared without a {args.split} split, and without it there "
                f"is nothing to train and evaluate with: give it an input {args.split}"
            )
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def encoded_batches(args: argparse.Namespace) -> Iterator[tuple[list[str], list[str], Counter]]:
    """Encoded batches in the order of the input, by --workers processes."""
    with worker_pool(args.workers, _start, (args,)) as call:
        yield from call(encode_batch, batched(read_jsonl(args.input), BATCH))


def _start(args: argparse.Namespace) -> None:
    global _vocabulary, _args
    _vocabulary, _args = bpe.from_arguments(args), args


def encode_batch(rows: list[tuple[int, dict]]) -> tuple[list[str], list[str], Counter]:
    """(source lines, target lines, counts) of numbered rows."""
    sources, targets = [], []
    counts: Counter = Counter(dict.fromkeys(COUNTS, 0))
    for number, row in rows:
        where = f"{_args.input}, line {number}"
        try:
            source, references = row["source"], row["references"]
        except KeyError as error:
            raise UserError(f"{where}: no field {error}; is this a prepared file?") from None
        counts["examples"] += 1
        source_line = encode_text(source, "source", where, counts)
        for reference in references[:1] if _args.split == "test" else references:
            sources.append(source_line)
            targets.append(encode_text(reference, "target", where, counts))
            counts["lines"] += 1
    return sources, targets, counts


def encode_text(text: str, side: str, where: str, counts: Counter) -> str:
    pieces = bpe.encode(_vocabulary, text, f"{where}: the {side}")
    counts[f"{side} tokens"] += len(pieces)
    counts[f"unknown {side} pieces"] += pieces.count("<unk>")
    return " ".join(pieces) + "\n"


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, type=Path, help="a prepared split (JSON lines)")
    parser.add_argument("--output-prefix", required=True, type=Path, help="where .source and .target are written")
    parser.add_argument("--split", required=True, choices=SPLITS, help="which split it is")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default: 1)")
    bpe.add_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
