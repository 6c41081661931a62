"""Prepare a data set: raw release -> {train,valid,test}.jsonl with {"id", "source", "references", "group"} per line.

Whatever the reader, every text is put on one line and checked here; an example that cannot be used is an error that
names its place, never a smaller data set. `data.json` beside the splits records what they were made from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from common import (
    UserError,
    atomic_path,
    json_object,
    named_path,
    progress,
    run_main,
    sha256_file,
    single_line,
    write_json,
)
from readers import READERS, SPLITS, Example


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    inputs = dict(args.input)
    if len(inputs) != len(args.input):
        raise UserError("an input key stands twice among --input")
    prepare(args.reader, inputs, args.options, args.output_dir)


def prepare(reader: str, inputs: dict[str, Path], options: dict, output_dir: Path) -> dict:
    """Write all splits and `data.json`, or nothing; returns what `data.json` says."""
    digests = {}
    for key, path in inputs.items():
        if not path.is_file():
            raise UserError(f"{path}: the input {key} is missing")
        digests[key] = {"file": path.name, "sha256": sha256_file(path)}
    splits = READERS[reader](inputs, options)
    report = {"reader": reader, "options": options, "inputs": digests, "counts": {}, "outputs": {}}
    with contextlib.ExitStack() as stack:
        # Entered first, hence renamed last: where data.json stands, the splits are complete.
        report_path = stack.enter_context(atomic_path(output_dir / "data.json"))
        for split in SPLITS:
            path = stack.enter_context(atomic_path(output_dir / f"{split}.jsonl"))
            report["counts"][split] = write_split(path, split, splits[split])
            report["outputs"][f"{split}.jsonl"] = sha256_file(path)
        write_json(report_path, report)
    return report


def write_split(path: Path, split: str, examples: Iterable[Example]) -> dict[str, int]:
    """Write one split; returns how many examples and references it has."""
    counts = {"examples": 0, "references": 0}
    seen: dict[str, str] = {}
    with open(path, "w", encoding="utf-8", newline="\n") as file, progress(examples, split, unit=" examples") as bar:
        for example in bar:
            row = checked_row(example)
            if row["id"] in seen:
                raise UserError(f"{example.where}: the id {row['id']!r} was already used ({seen[row['id']]})")
            seen[row["id"]] = example.where
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            counts["examples"] += 1
            counts["references"] += len(row["references"])
    if not counts["examples"]:
        raise UserError(f"the {split} split has no examples")
    return counts


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
        "group": example.group,
    }


def checked_text(text: str, name: str, where: str) -> str:
    text = single_line(text)
    if not text:
        raise UserError(f"{where}: the {name} is empty")
    if "\0" in text:
        raise UserError(f"{where}: the {name} holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the {name} holds half of a surrogate pair (character {error.start + 1})") from None
    return text


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", required=True, choices=sorted(READERS), help="the form of the raw release")
    parser.add_argument(
        "--input",
        required=True,
        action="append",
        type=named_path("KEY=PATH"),
        metavar="KEY=PATH",
        help="a raw file, once per file; e2e and jsonl: train, valid, test; xsum_raw: archive, splits",
    )
    parser.add_argument("--output-dir", required=True, type=Path, help="where the splits and data.json are written")
    parser.add_argument(
        "--options",
        type=json_object,
        default={},
        metavar="JSON",
        help='the reader\'s options; jsonl: {"source": FIELD, "target": FIELD, "id": FIELD, "group": FIELD}',
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
