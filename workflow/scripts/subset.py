"""Draw a low-data subset of a prepared task: SIZE training examples, 0.3 * SIZE for validation, the test set whole.

Where the task has fewer examples to validate with, all of them are taken, and a notice says so.

An example to draw is one (source, reference) pair, as training sees it. Which are drawn follows from the seed and the
examples' ids alone, by way of SHA-256: it is the same on every machine and with every version of Python, and of two
sizes with one seed the smaller subset lies inside the larger one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from common import (
    SPLITS,
    UserError,
    atomic_path,
    positive,
    progress,
    read_json,
    read_jsonl,
    run_main,
    sha256_file,
    write_json,
    write_jsonl,
)

VALID_SHARE = 0.3  # of the training examples; Li and Liang (2021), section 6.3


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    draw(args.input_dir, args.task, args.size, args.seed, args.output_dir)


def draw(input_dir: Path, task: str, size: int, seed: int, output_dir: Path) -> dict:
    """Write the three splits and `data.json`, or nothing; returns what `data.json` says.

    Raises:
        UserError: there are fewer training examples than are to be drawn, or none to validate with.
    """
    whole = read_json(input_dir / "data.json")
    wanted, there = validation_pairs(size), whole["counts"]["valid"]["references"]
    sizes = {"train": size, "valid": max(1, min(wanted, there))}
    if sizes["valid"] < wanted:
        print(
            f"notice: {task}@{size}-{seed} is validated on all {there:,} pairs of {task}, not {wanted:,}",
            file=sys.stderr,
        )
    report = {"subset_of": task, "size": size, "seed": seed, "drawn": sizes, "absent": whole["absent"]}
    report |= {"left_out": {}, "inputs": {}, "counts": {}, "outputs": {}}
    with contextlib.ExitStack() as stack:
        report_path = stack.enter_context(atomic_path(output_dir / "data.json"))
        for split in SPLITS:
            source = input_dir / f"{split}.jsonl"
            path = stack.enter_context(atomic_path(output_dir / f"{split}.jsonl"))
            if split == "test":
                shutil.copyfile(source, path)
                report["counts"][split] = whole["counts"][split]
            else:
                report["counts"][split] = write_drawn(source, split, sizes[split], f"{task}@{size}-{seed}", seed, path)
            report["inputs"][split] = {"file": source.name, "sha256": sha256_file(source)}
            report["outputs"][f"{split}.jsonl"] = sha256_file(path)
        write_json(report_path, report)
    return report


def validation_pairs(size: int) -> int:
    """How many pairs to validate with are drawn beside so many to train on, if there are as many."""
    return max(1, round(VALID_SHARE * size))


def write_drawn(source: Path, split: str, size: int, name: str, seed: int, output: Path) -> dict[str, int]:
    """Write the drawn pairs in the order of the set; pairs of one example stay one example."""
    pairs = progress(_ranked_pairs(source, split, seed), f"draw {split}", unit=" examples")
    drawn = heapq.nsmallest(size, pairs)
    if len(drawn) < size:
        raise UserError(f"{name}: {size} examples are to be drawn from {source}, which has only {len(drawn)}")
    chosen = {(row, reference) for _, row, reference in drawn}
    rows = []
    for number, row in read_jsonl(source):
        references = [text for place, text in enumerate(row["references"]) if (number, place) in chosen]
        if references:
            rows.append(row | {"references": references})
    return {"examples": write_jsonl(output, rows), "references": sum(len(row["references"]) for row in rows)}


def _ranked_pairs(source: Path, split: str, seed: int) -> Iterator[tuple[bytes, int, int]]:
    """(rank, line number, number of the reference) of every pair of a prepared split."""
    for number, row in read_jsonl(source):
        for place in range(len(row["references"])):
            key = "\n".join((str(seed), split, row["id"], str(place)))
            yield hashlib.sha256(key.encode("utf-8")).digest(), number, place


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-dir", required=True, type=Path, help="the prepared task: its splits and data.json")
    parser.add_argument("--task", required=True, help="the task's name, for the record")
    parser.add_argument("--size", required=True, type=positive, metavar="N", help="how many training examples")
    parser.add_argument("--seed", required=True, type=int, metavar="N", help="which examples are drawn")
    parser.add_argument("--output-dir", required=True, type=Path, help="where the subset is written")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
