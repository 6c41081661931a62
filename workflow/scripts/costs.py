"""What the runs of a task cost: time and memory of training and of decoding, beside what they scored.

The figures are Snakemake's own measurements ({run}/train.benchmark.tsv and generate.benchmark.tsv below the logs), so
they differ from machine to machine, and a step that was interrupted counts from its last start. Memory is that of the
processes; a GPU's is not in it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from datetime import timedelta
from pathlib import Path

from common import UserError, atomic_open, atomic_path, read_jsonl, run_main
from table import Row, aligned, read_row, summary

COMMANDS = {"train": "training", "generate": "decoding"}


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    count = sum(1 for _ in read_jsonl(args.examples))
    groups = itertools.groupby(args.run, key=lambda run: (run.parts[-3], run.parts[-2]))
    rows = []
    for (model, method), folders in groups:
        runs = list(folders)
        row = read_row(model, method, runs, args.metric)
        measured = COMMANDS if row.trained else ["generate"]
        costs = {c: [_read_benchmark(args.logs / run / f"{c}.benchmark.tsv") for run in runs] for c in measured}
        rows.append((row, costs))
    # Entered first, hence renamed last: where the text table stands, the TSV does.
    with atomic_open(args.output) as text, atomic_path(args.output.with_suffix(".tsv")) as tsv:
        tsv.write_text(tab_separated(rows), encoding="utf-8")
        text.write(report(args.task, rows, count))


def _read_benchmark(path: Path) -> tuple[float, float]:
    """(seconds, peak MB)."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            row = next(csv.DictReader(file, delimiter="\t"))
        return float(row["s"]), float(row["max_rss"]) if row["max_rss"] != "NA" else 0.0  # NA: it took no time
    except (OSError, StopIteration, KeyError, ValueError):
        raise UserError(f"{path}: not a benchmark of Snakemake's; remove it, and its step is run again") from None


def tab_separated(rows: list[tuple[Row, dict]]) -> str:
    """One line per model, method, seed and command."""
    lines = ["model\tmethod\tseed\tcommand\tseconds\tpeak_mb"]
    for row, costs in rows:
        for command, measured in costs.items():
            for seed, (seconds, memory) in zip(row.seeds, measured, strict=True):
                lines.append(f"{row.model}\t{row.method}\t{seed}\t{command}\t{seconds:.1f}\t{memory:.0f}")
    return "\n".join(lines) + "\n"


def report(task: str, rows: list[tuple[Row, dict]], count: int) -> str:
    """The text table; of several seeds the mean."""
    names = list(rows[0][0].scores)
    header = ["model", "method", "trained", "stored", *names]
    header += [f"{label}{unit}" for label in COMMANDS.values() for unit in ("", ", MB")] + ["texts/s"]
    body = []
    for row, costs in rows:
        cells = [row.model, row.method, f"{row.trained:,}", f"{row.stored:,}"]
        cells += [summary(row, name) for name in names]
        for command in COMMANDS:
            cells += _cells(costs.get(command, []))
        cells.append(f"{count / statistics.fmean(seconds for seconds, _ in costs['generate']):.1f}")
        body.append(cells)
    return "\n".join(
        [
            f"{task}: time and memory; {count:,} test examples decoded",
            "",
            *aligned([header, *body], left=2),
            "",
            "h:mm:ss and peak MB of the processes that train and decode, starting included; means over the seeds",
            "",
        ]
    )


def _cells(measured: list[tuple[float, float]]) -> list[str]:
    if not measured:
        return ["-", "-"]
    seconds, memory = (statistics.fmean(values) for values in zip(*measured, strict=True))
    return [str(timedelta(seconds=round(seconds))), f"{memory:,.0f}"]


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="the task's name, for the heading")
    parser.add_argument(
        "--metric", nargs="*", default=[], help="the scores shown: {metric}.json is read from every run"
    )
    parser.add_argument(
        "--run", type=Path, action="extend", nargs="+", required=True, metavar="DIR", help="as for table.py"
    )
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR", help="{logs}/{run}/*.benchmark.tsv are read")
    parser.add_argument("--examples", type=Path, required=True, metavar="FILE", help="test.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .txt; the .tsv goes beside it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
