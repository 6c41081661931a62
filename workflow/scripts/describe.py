"""Describe a prepared data set: what is in it, how long it is, what is cut, what was left out, what its splits share.

A text table for people and a TSV beside it for programs, one row per measure and one column per split. Lengths are
counted in words (between spaces) and in the tokens of each configured model's vocabulary, without `<s>` and `</s>`;
of nothing else of a model is there need. The files do not depend on the number of workers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import bpe
import numpy as np
from common import (
    SPLITS,
    UserError,
    atomic_open,
    atomic_path,
    batched,
    json_object,
    json_row,
    positive,
    progress,
    read_json,
    read_lines,
    run_main,
    worker_pool,
)

SIDES = ("source", "target")
WORDS = "words"
BATCH = 128  # examples per task of a worker
GROUPS = 20  # shown in the text table; all of them are in the TSV
VOCABULARY_OPTIONS = ("encoder-json", "vocab-bpe", "leading-space", "spm")

Row = tuple[str, dict[str, object]]  # a measure and its value for each split that has one

_vocabularies: dict[str, bpe.Vocabulary]


@dataclass
class Measured:
    """What is known of some examples of a split."""

    examples: int = 0
    lengths: dict[tuple[str, str], array] = field(default_factory=lambda: defaultdict(lambda: array("I")))
    references: Counter = field(default_factory=Counter)  # of each distinct source, by its digest
    pairs: set[bytes] = field(default_factory=set)  # digests of source and reference
    groups: Counter = field(default_factory=Counter)

    def add(self, other: Measured) -> None:
        self.examples += other.examples
        for key, values in other.lengths.items():
            self.lengths[key].extend(values)
        self.references.update(other.references)
        self.pairs |= other.pairs
        self.groups.update(other.groups)


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    record = read_json(args.input_dir / "data.json")
    vocabularies, models = vocabularies_of(args.models)
    load_vocabularies(vocabularies)  # here too, so that a bad vocabulary is one error and not one per worker
    with worker_pool(args.workers, load_vocabularies, (vocabularies,)) as call:
        splits = {
            split: measure_split(args.input_dir / f"{split}.jsonl", split, call)
            for split in SPLITS
            if split not in record["absent"]
        }
    rows = list(report_rows(splits, record, list(vocabularies), models))
    # Entered first, hence renamed last: where the text table stands, the TSV does.
    with atomic_open(args.output) as text, atomic_path(args.output.with_suffix(".tsv")) as tsv:
        tsv.write_text(tab_separated(rows), encoding="utf-8")
        text.write(as_text(args.task, rows, record))


def vocabularies_of(models: dict[str, dict]) -> tuple[dict[str, dict], dict[str, dict]]:
    """(options of each distinct vocabulary by a name for it, {"vocabulary", "source", "target"} of each model).

    A vocabulary is called as the models that share it are.
    """
    shared: dict[str, list[str]] = defaultdict(list)
    for model, values in models.items():
        shared[json.dumps({key: values[key] for key in VOCABULARY_OPTIONS if key in values})].append(model)
    vocabularies = {", ".join(names): json.loads(options) for options, names in shared.items()}
    limits = {}
    for name, names in zip(vocabularies, shared.values(), strict=True):
        for model in names:
            limits[model] = {"vocabulary": name}
            limits[model] |= {side: limit_of(model, models[model], f"max-{side}-tokens") for side in SIDES}
    return vocabularies, limits


def limit_of(model: str, values: dict, option: str) -> int:
    """Return how long a text may be, in tokens; 0 where it may be of any length."""
    limit = values.get(option) or 0
    if type(limit) is not int or limit < 0:
        raise UserError(f"--models: {model}: {option} is {limit!r}; expected a whole number, 0 (no limit) or more")
    return limit


def load_vocabularies(files: dict[str, dict]) -> None:
    global _vocabularies
    _vocabularies = {
        name: bpe.from_arguments(
            argparse.Namespace(**{key.replace("-", "_"): values.get(key) for key in VOCABULARY_OPTIONS})
        )
        for name, values in files.items()
    }


def measure_split(path: Path, split: str, call) -> Measured:
    measured = Measured()
    lines = ((path, number, line) for number, line in read_lines(path))
    with progress(None, f"measure {split}", unit=" examples") as bar:
        for batch in call(measure, batched(lines, BATCH)):
            measured.add(batch)
            bar.update(batch.examples)
    return measured


def measure(lines: list[tuple[Path, int, str]]) -> Measured:
    """Measures of some lines of a prepared split; called in worker processes."""
    measured = Measured()
    for path, number, line in lines:
        row = json_row(path, number, line)
        try:
            source, references = row["source"], row["references"]
        except KeyError as error:
            raise UserError(f"{path}, line {number}: no field {error}; is this a prepared file?") from None
        measured.examples += 1
        where = f"{path}, line {number}"
        add_lengths(measured, "source", source, where)
        for reference in references:
            add_lengths(measured, "target", reference, where)
            measured.pairs.add(digest(f"{source}\n{reference}"))
        measured.references[digest(source)] += len(references)
        measured.groups[row.get("group")] += 1
    measured.lengths = dict(measured.lengths)  # a default factory does not pass between processes
    return measured


def add_lengths(measured: Measured, side: str, text: str, where: str) -> None:
    measured.lengths[side, WORDS].append(len(text.split()))
    for name, vocabulary in _vocabularies.items():
        measured.lengths[side, name].append(len(bpe.encode(vocabulary, text, f"{where}: the {side}")))


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=12).digest()


# Report ---------------------------------------------------------------------------------------------------------------


def report_rows(splits: dict[str, Measured], record: dict, vocabularies: list[str], models: dict[str, dict]):
    """All measures, in the order of the report."""
    yield "examples", {split: measured.examples for split, measured in splits.items()}
    yield "references", {split: sum(measured.references.values()) for split, measured in splits.items()}
    yield "unique sources", {split: len(measured.references) for split, measured in splits.items()}
    for name, value in (("min", min), ("mean", lambda values: float(np.mean(values))), ("max", max)):
        values = {split: value(list(measured.references.values())) for split, measured in splits.items()}
        yield f"references per source: {name}", values
    for unit in (WORDS, *vocabularies):
        for side in SIDES:
            yield from length_rows(splits, side, unit)
    for model, limits in models.items():
        yield from truncation_rows(splits, model, limits)
    reasons = sorted({reason for counts in record["left_out"].values() for reason in counts})
    for reason in reasons:
        yield f"left out: {reason}", {split: record["left_out"].get(split, {}).get(reason, 0) for split in splits}
    yield from overlap_rows(splits)
    yield from group_rows(splits)


def length_rows(splits: dict[str, Measured], side: str, unit: str):
    name = f"{side} {WORDS}" if unit == WORDS else f"{side} tokens ({unit})"
    lengths = {split: np.asarray(measured.lengths[side, unit]) for split, measured in splits.items()}
    yield f"{name}: mean", {split: float(values.mean()) for split, values in lengths.items()}
    for quantile, share in (("median", 0.5), ("95 %", 0.95), ("max", 1)):
        # A length that some text has: the shortest one that so many of the texts do not exceed.
        values = {split: int(np.quantile(values, share, method="inverted_cdf")) for split, values in lengths.items()}
        yield f"{name}: {quantile}", values


def truncation_rows(splits: dict[str, Measured], model: str, limits: dict):
    """How many texts are cut: sources in every split, targets in training only."""
    for side in SIDES:
        cut = {
            split: int((np.asarray(measured.lengths[side, limits["vocabulary"]]) > limits[side]).sum())
            for split, measured in splits.items()
            if side == "source" or split == "train"
        }
        if limits[side]:
            yield f"{side}s cut to {limits[side]} tokens ({model})", cut


def overlap_rows(splits: dict[str, Measured]):
    for other in ("train", "valid"):
        later = [split for split in SPLITS[SPLITS.index(other) + 1 :] if split in splits]
        if other in splits and later:
            sources, pairs = splits[other].references.keys(), splits[other].pairs
            yield f"sources also in {other}", {split: len(splits[split].references.keys() & sources) for split in later}
            yield f"source and reference also in {other}", {split: len(splits[split].pairs & pairs) for split in later}


def group_rows(splits: dict[str, Measured]):
    """Examples of each group, the largest group first."""
    totals: Counter = Counter()
    for measured in splits.values():
        totals.update({group: count for group, count in measured.groups.items() if group is not None})
    for group, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        yield f"group: {group}", {split: measured.groups[group] for split, measured in splits.items()}
    without = {split: measured.groups[None] for split, measured in splits.items()}
    if totals and any(without.values()):
        yield "without a group", without


def tab_separated(rows: list[Row]) -> str:
    lines = [("measure", *SPLITS)]
    for name, values in rows:
        cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in map(values.get, SPLITS)]
        lines.append((name, *("" if cell == "None" else cell for cell in cells)))
    return "".join("\t".join(line) + "\n" for line in lines)


def as_text(task: str, rows: list[Row], record: dict) -> str:
    """The report for people: what was prepared, the table, and the digests of the files it was made from."""
    shown = [row for row in rows if not row[0].startswith("group: ")]
    groups = [row for row in rows if row[0].startswith("group: ")]
    table = [("", *SPLITS)]
    for name, values in shown + groups[:GROUPS]:
        absent = "absent" if name == "examples" else "-"
        table.append((name, *(cell(values.get(split), absent) for split in SPLITS)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [title(task, record), ""]
    for name, *cells in table:
        lines.append(
            "  ".join(
                [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(cells, widths[1:], strict=True))]
            )
        )
    if len(groups) > GROUPS:
        lines.append(f"({len(groups) - GROUPS} more groups are in the TSV beside this file)")
    lines += ["", "made from"]
    lines += [f"  {key}: {entry['file']}, sha256 {entry['sha256']}" for key, entry in sorted(record["inputs"].items())]
    return "".join(line.rstrip() + "\n" for line in lines)


def title(task: str, record: dict) -> str:
    if "subset_of" in record:
        drawn = record["drawn"]
        return (
            f"{task}: {drawn['train']} training and {drawn['valid']} validation pairs of {record['subset_of']}, "
            f"drawn with seed {record['seed']}"
        )
    options = ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in record["options"].items())
    return f"{task}: reader {record['reader']}" + (f" with {options}" if options else "")


def cell(value: object, absent: str) -> str:
    if value is None:
        return absent
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="the task's name, for the title")
    parser.add_argument("--input-dir", required=True, type=Path, help="the prepared task: its splits and data.json")
    parser.add_argument(
        "--output", required=True, type=Path, help="the report; a TSV of the same name stands beside it"
    )
    parser.add_argument(
        "--models",
        type=json_object,
        default={},
        metavar="JSON",
        help='by name, each with its vocabulary and limits: {"bart": {"encoder-json": FILE, "vocab-bpe": FILE, '
        '"max-source-tokens": 512, "max-target-tokens": 60}}; or "spm": FILE; 0 for no limit',
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default: 1)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
