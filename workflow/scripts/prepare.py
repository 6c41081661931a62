"""Prepare a data set: raw release -> {train,valid,test}.jsonl with {"id", "source", "references", "group"} per line.

Whatever the reader, every text is put on one line and checked here; an example that cannot be used is an error that
names its place, never a smaller data set, and what a task's protocol leaves out is counted by its reason. `data.json`
beside the splits records all of this and what they were made from. The files do not depend on the number of workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from common import (
    SPLITS,
    UserError,
    atomic_path,
    batched,
    json_object,
    named_path,
    positive,
    progress,
    run_main,
    sha256_file,
    vocabulary,
    worker_pool,
    write_json,
)
from readers import READERS, Deferred, Example, LeftOut

BATCH = 64  # items of a reader per task of a worker


@dataclass
class Prepared:
    """A batch of prepared examples: their lines, (id, place) of each, and what was left out beside them."""

    lines: list[str] = field(default_factory=list)
    ids: list[tuple[str, str]] = field(default_factory=list)
    references: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    inputs = dict(args.input)
    if len(inputs) != len(args.input):
        raise UserError("an input key stands twice among --input")
    prepare(args.reader, inputs, args.options, args.output_dir, args.expected, args.workers)


def prepare(
    reader: str,
    inputs: dict[str, Path],
    options: dict,
    output_dir: Path,
    expected: dict[str, int] | None = None,
    workers: int = 1,
) -> dict:
    """Write all splits and `data.json`, or nothing; returns what `data.json` says.

    Raises:
        UserError: an input is missing or wrong (named with its place), or a split has not the `expected` number of
            examples.
    """
    digests = {}
    for key, path in inputs.items():
        if not path.is_file():
            raise UserError(f"{path}: the input {key} is missing")
        digests[key] = {"file": path.name, "sha256": sha256_file(path)}
    report = {"reader": reader, "options": options, "inputs": digests, "absent": [], "counts": {}, "left_out": {}}
    report["outputs"] = {}
    with contextlib.ExitStack() as stack:
        call = stack.enter_context(worker_pool(workers))
        splits = READERS[reader](inputs, options)
        # Entered first, hence renamed last: where data.json stands, the splits are complete.
        report_path = stack.enter_context(atomic_path(output_dir / "data.json"))
        for split in SPLITS:
            path = stack.enter_context(atomic_path(output_dir / f"{split}.jsonl"))
            if split in splits:
                counts, left_out = write_split(path, split, splits[split], call)
                if left_out:
                    report["left_out"][split] = dict(left_out)
            else:
                report["absent"].append(split)
                counts = {"examples": 0, "references": 0}
            report["counts"][split] = counts
            check_count(split, counts["examples"], expected or {})
            report["outputs"][f"{split}.jsonl"] = sha256_file(path)
        write_json(report_path, report)
    return report


def check_count(split: str, count: int, expected: dict[str, int]) -> None:
    if count != expected.get(split, count):
        raise UserError(
            f"the {split} split has {count} examples where the official release gives {expected[split]}; use the "
            "complete release, or allow partial data with `expected: null` for this task under `overrides: tasks:`"
        )


def write_split(path: Path, split: str, items: Iterable, call: Callable) -> tuple[dict[str, int], Counter]:
    """Write one split; returns how many examples and references it has, and how much was left out by reason."""
    counts = {"examples": 0, "references": 0}
    left_out: Counter = Counter()
    seen: dict[str, str] = {}
    with open(path, "w", encoding="utf-8", newline="\n") as file, progress(None, split, unit=" examples") as bar:
        for batch in call(prepared, batched(items, BATCH)):
            for id_, where in batch.ids:
                if id_ in seen:
                    raise UserError(f"{where}: the id {id_!r} was already used ({seen[id_]})")
                seen[id_] = where
            for where, reason in batch.left_out:
                if not left_out[reason]:
                    bar.write(f"{split}: left out: {reason} (first: {where})", file=sys.stderr)
                left_out[reason] += 1
            file.writelines(batch.lines)
            counts["examples"] += len(batch.lines)
            counts["references"] += batch.references
            bar.update(len(batch.lines))
    if not counts["examples"]:
        raise UserError(f"the {split} split has no examples")
    return counts, left_out


def prepared(items: list[Example | LeftOut | Deferred]) -> Prepared:
    """The items of a reader, made, checked and written as lines; called in worker processes."""
    batch = Prepared()
    for item in items:
        if isinstance(item, Deferred):
            item = item.function(*item.arguments)
        if isinstance(item, LeftOut):
            batch.left_out.append(item)
        elif item is not None:
            row = checked_row(item)
            batch.lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            batch.ids.append((row["id"], item.where))
            batch.references += len(row["references"])
    return batch


def checked_row(example: Example) -> dict:
    """The example as a prepared row: each text on one line.

    Raises:
        UserError: a text is empty, holds a NUL or half a surrogate pair, or there is no reference.
    """
    if not example.references:
        raise UserError(f"{example.where}: no reference")
    if not (example.group is None or isinstance(example.group, str)):
        raise UserError(f"{example.where}: the group is not a text")
    return {
        "id": checked_text(example.id, "id", example.where),
        "source": checked_text(example.source, "source", example.where),
        "references": [checked_text(text, "reference", example.where) for text in example.references],
        "group": None if example.group is None else checked_text(example.group, "group", example.where),
    }


def checked_text(text: str, name: str, where: str) -> str:
    try:
        return vocabulary.clean(text)
    except vocabulary.VocabularyError as error:
        raise UserError(f"{where}: the {name} {error}") from None


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", required=True, choices=sorted(READERS), help="the form of the raw release")
    parser.add_argument(
        "--input",
        required=True,
        action="append",
        type=named_path("KEY=PATH"),
        metavar="KEY=PATH",
        help="a raw file, once per file; xsum_raw: archive, splits; the others: train, valid, test or some of them",
    )
    parser.add_argument("--output-dir", required=True, type=Path, help="where the splits and data.json are written")
    parser.add_argument(
        "--options",
        type=json_object,
        default={},
        metavar="JSON",
        help='the reader\'s options; jsonl: {"source": FIELD, "target": FIELD, "id": FIELD, "group": FIELD}',
    )
    parser.add_argument(
        "--expected",
        type=json_object,
        metavar="JSON",
        help='how many examples the splits must have: {"train": N, "valid": N, "test": N}, or some of these',
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default: 1)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
