"""The table of a task: methods over models, parameters, scores of one or more metrics, and what was written.

A text table for people and a TSV beside it for programs, both from what the runs recorded ({metric}.json, run.json,
hypotheses.txt). Nothing that differs from machine to machine or from day to day enters them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from common import UserError, atomic_open, atomic_path, printable, read_json, read_jsonl, read_lines, run_main
from score import digits_of, with_interval

WIDTH = 118
VALID_LOSS = "valid loss: the lowest loss on the validation set during training, in bits, mean over the runs"


@dataclass(frozen=True)
class Row:
    """One model and method: the runs of all its seeds."""

    model: str
    method: str
    runs: list[Path]  # of all its seeds
    trained: int
    stored: int
    base: int
    scores: dict[str, list[float]]
    intervals: dict[str, list[list[float]]]
    signatures: dict[str, set[str]]  # of each metric
    notices: list[str]  # of its scores (see metrics.py)
    hypotheses: list[str]  # of the first seed
    valid_losses: list[float]  # of the seeds that recorded one

    @property
    def seeds(self) -> list[int]:
        return [int(run.name) for run in self.runs]

    @property
    def stored_percent(self) -> float:
        return 100 * self.stored / self.base


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    rows = read_rows(args.run, args.metric)
    examples = [row for _, row in read_jsonl(args.examples)]
    for row in rows:
        if len(row.hypotheses) != len(examples):
            raise UserError(f"{row.model}, {row.method}: {len(row.hypotheses)} hypotheses for {len(examples)} examples")
    for metric in args.metric:
        if (
            len(set().union(*(row.signatures[metric] for row in rows))) != 1
            or len({(*row.scores,) for row in rows}) != 1
        ):
            raise UserError(
                f"{metric}: the runs were not scored alike, and cannot stand in one table; score them again"
            )
    # Entered first, hence renamed last: where the text table stands, the TSV does.
    with atomic_open(args.output) as text, atomic_path(args.output.with_suffix(".tsv")) as tsv:
        tsv.write_text(tab_separated(rows), encoding="utf-8")
        text.write(report(args.task, rows, examples, args.samples, args.note))
    if others := other_runs(args.run):
        print(
            f"notice: {args.task} has {len(others)} more runs than {args.output} shows, such as {others[0]}; the lists "
            "models, methods and seeds of the configuration say what it shows",
            file=sys.stderr,
        )


def other_runs(shown: list[Path]) -> list[Path]:
    """Runs of the same task that are not among those shown."""
    return sorted({path.parent for path in shown[0].parents[2].glob("*/*/*/run.json")} - {*shown})


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="the task's name, for the heading")
    parser.add_argument(
        "--metric", action="extend", nargs="+", required=True, help="whose {metric}.json are read from every run"
    )
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="a line below the table")
    parser.add_argument(
        "--run",
        type=Path,
        action="extend",
        nargs="+",
        required=True,
        metavar="DIR",
        help="a run's folder, .../{model}/{method}/{seed}, in the order of the rows; seeds one after the other",
    )
    parser.add_argument("--examples", type=Path, required=True, metavar="FILE", help="test.jsonl")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="examples shown in full [%(default)s]")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .txt; the .tsv goes beside it")
    return parser.parse_args(argv)


def read_rows(runs: list[Path], metrics: list[str]) -> list[Row]:
    """A row for each model and method, whose seeds stand one after the other."""
    groups = itertools.groupby(runs, key=lambda run: run.parent)
    return [read_row(folder.parent.name, folder.name, list(seeds), metrics) for folder, seeds in groups]


def peak_memory(records: list[dict]) -> str:
    """The mean peak memory of trainings, from their run.json; of what is on a GPU too where there was one."""
    measured = [record for record in records if record.get("peak_mb")]  # not where nothing was left to train
    if not measured:
        return "-"
    text = f"{statistics.fmean(record['peak_mb'] for record in measured):,.0f} MB"
    if on_gpu := [record["gpu_peak_gb"] for record in measured if "gpu_peak_gb" in record]:
        text += f", GPU {statistics.fmean(on_gpu):.1f} GB"
    return text


def read_row(model: str, method: str, runs: list[Path], metrics: list[str]) -> Row:
    """What the runs of one model and method recorded."""
    records = [read_record(run / "run.json") for run in runs]
    scored = {metric: [read_scores(run / f"{metric}.json", metric) for run in runs] for metric in metrics}
    counts = {tuple(record[f"{kind}_parameters"] for kind in ("trained", "stored", "base")) for record in records}
    if len(counts) != 1:
        raise UserError(f"{runs[0].parent}: its seeds differ in their parameters; they were not trained alike")
    trained, stored, base = counts.pop()
    for metric, entries in scored.items():
        if len({(*entry["scores"],) for entry in entries}) != 1:
            raise UserError(f"{metric}: the runs in {runs[0].parent} were not scored alike; score them again")
    names = [(metric, name) for metric in metrics for name in scored[metric][0]["scores"]]
    return Row(
        model,
        method,
        runs,
        trained,
        stored,
        base,
        {name: [entry["scores"][name] for entry in scored[metric]] for metric, name in names},
        {name: [entry["intervals"][name] for entry in scored[metric]] for metric, name in names},
        {metric: {entry["signature"] for entry in entries} for metric, entries in scored.items()},
        [
            f"{metric}: {note}"
            for metric, entries in scored.items()
            for each in entries
            for note in each.get("notices", [])
        ],
        [line for _, line in read_lines(runs[0] / "hypotheses.txt")],
        valid_losses(records),
    )


def valid_losses(records: list[dict]) -> list[float]:
    """The lowest validation loss of each training; none of an earlier version's run.json, or of an untuned model."""
    return [record["valid_loss"] for record in records if record.get("valid_loss") is not None]


def folder_of_split(run: str, split: str | None) -> Path:
    """Where the hypotheses and scores of a run are: of the test set in its own folder, of the validation set below."""
    return Path(run) / "valid" if split == "valid" else Path(run)


def read_record(path: Path) -> dict:
    """A run.json.

    Raises:
        UserError: it lacks what tables need.
    """
    record = read_json(path)
    kinds = ("trained", "stored", "base")
    counts = [record.get(f"{kind}_parameters") for kind in kinds] if isinstance(record, dict) else [None]
    if not all(type(count) is int and count >= 0 for count in counts) or not counts[-1]:
        raise UserError(f"{path}: holds no numbers of parameters; remove it, and the run is made again")
    if not all(_is_number(record.get(key) or 0) for key in ("seconds", "peak_mb", "gpu_peak_gb", "valid_loss")):
        raise UserError(
            f"{path}: its times, its memory or its loss are no numbers; remove it, and the run is made again"
        )
    return record


def read_scores(path: Path, metric: str) -> dict:
    """Of a {metric}.json the entry of the metric: scores, intervals, signature.

    Raises:
        UserError: it is not there, or not of this form.
    """
    try:
        entry = read_json(path)["metrics"][metric]
        sound = all(note.isprintable() for note in [entry["signature"], *entry.get("notices", [])])
        sound &= bool(entry["scores"]) and "".join(entry["scores"]).isprintable()
        for name, score in entry["scores"].items():
            low, high = entry["intervals"][name]
            sound &= all(map(_is_number, (score, low, high)))
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: holds no scores of {metric}; remove it, and it is made again")
    return entry


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def tab_separated(rows: list[Row]) -> str:
    """One line per model, method and score: mean, standard deviation (empty for one seed), every seed's value."""
    names = "model method seeds trained_parameters stored_parameters base_parameters score mean standard_deviation"
    lines = ["\t".join([*names.split(), "values", "intervals"])]
    for row in rows:
        for name, values in row.scores.items():
            fields = [row.model, row.method, ",".join(map(str, row.seeds)), row.trained, row.stored, row.base, name]
            fields.append(f"{statistics.fmean(values):.4f}")
            fields.append(f"{statistics.stdev(values):.4f}" if len(values) > 1 else "")
            fields.append(",".join(f"{value:.4f}" for value in values))
            fields.append(",".join(f"{low:.4f}:{high:.4f}" for low, high in row.intervals[name]))
            lines.append("\t".join(map(str, fields)))
    return "\n".join(lines) + "\n"


def report(task: str, rows: list[Row], examples: list[dict], samples: int, notes: list[str]) -> str:
    """The text table and the examples below it."""
    names, losses = list(rows[0].scores), any(row.valid_losses for row in rows)
    header = ["model", "method", "trained", "stored", "% of base", *(["valid loss"] if losses else []), *names]
    body = [
        [row.model, row.method, f"{row.trained:,}", f"{row.stored:,}", f"{row.stored_percent:.2f}"]
        + ([f"{statistics.fmean(row.valid_losses):.3f}" if row.valid_losses else "-"] if losses else [])
        + [summary(row, name) for name in names]
        for row in rows
    ]
    seeds = max(rows, key=lambda row: (len(row.seeds), row.trained)).seeds  # an untrained model has none of its own
    of_seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds, mean ± standard deviation"
    notes = [f"{metric}: {next(iter(found))}" for metric, found in rows[0].signatures.items()] + notes
    notes += dict.fromkeys(f"notice: {notice}" for row in rows for notice in row.notices)
    return "\n".join(
        [
            f"{task}: {', '.join(rows[0].signatures)} on {len(examples):,} test examples, {of_seeds}",
            "",
            *aligned([header, *body], left=2),
            "",
            "trained: parameters that training changed; stored: those that are kept for the task",
            *([VALID_LOSS] if losses else []),
            "in brackets: 95 % interval of one seed's score, by bootstrap over the test examples",
            *wrapped(notes),
            "",
            *itertools.chain.from_iterable(
                sample(examples[index], [(label(row, rows), row.hypotheses[index]) for row in rows])
                for index in spread(len(examples), samples)
            ),
        ]
    )


def wrapped(notes: list[str]) -> list[str]:
    """Lines of sentences below a table, in which names and paths stay whole."""
    return [line for note in notes for line in textwrap.wrap(note, WIDTH, break_on_hyphens=False)]


def summary(row: Row, name: str) -> str:
    """The mean and standard deviation of several seeds' scores; of one seed the score and its interval."""
    values, digits = row.scores[name], digits_of(name)
    if len(values) > 1:
        return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
    return with_interval({"scores": {name: values[0]}, "intervals": {name: row.intervals[name][0]}}, name)


def aligned(table: list[list[str]], left: int) -> list[str]:
    """Lines of a table whose first `left` columns are flush left, the others flush right; a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indexes, evenly over 0 .. count-1."""
    wanted = min(wanted, count)
    return [index * count // wanted for index in range(wanted)]


def label(row: Row, rows: list[Row]) -> str:
    """The method, with the model where there are several."""
    return row.method if len({other.model for other in rows}) == 1 else f"{row.model}, {row.method}"


def sample(example: dict, hypotheses: list[tuple[str, str]]) -> list[str]:
    """One example: source, first reference, and what every method made of it."""
    texts = [("source", example["source"]), ("reference", example["references"][0]), *hypotheses]
    width = max(len(name) for name, _ in texts)
    lines = [printable(f"example {example['id']}")]
    for name, text in texts:
        indent = " " * (width + 4)
        shown = printable(textwrap.shorten(text, 600, placeholder=" ...")) or "(empty)"
        lines += textwrap.wrap(f"  {name.ljust(width)}  {shown}", WIDTH, subsequent_indent=indent)
    return [*lines, ""]


if __name__ == "__main__":
    run_main(main)
