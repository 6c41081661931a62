"""What the runs of a task cost: time and memory of training and of decoding, beside what they scored.

Times are Snakemake's own measurements ({run}/train.benchmark.tsv and generate.benchmark.tsv below the logs), so
they differ from machine to machine, and a step that was interrupted counts from its last start. Memory is that of the
training process, from its run.json; a GPU's is not in it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from datetime import timedelta
from pathlib import Path

from common import UserError, atomic_open, atomic_path, read_json, read_jsonl, run_main
from table import Row, aligned, read_rows, summary

COMMANDS = ("train", "generate")


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    count = sum(1 for _ in read_jsonl(args.examples))
    rows = []
    for row in read_rows(args.run, args.metric):
        measured = COMMANDS if row.trained else ["generate"]
        costs = {c: [read_seconds(args.logs / run / f"{c}.benchmark.tsv") for run in row.runs] for c in measured}
        rows.append((row, costs, [read_json(run / "run.json").get("peak_mb", 0) for run in row.runs]))
    # Entered first, hence renamed last: where the text table stands, the TSV does.
    with atomic_open(args.output) as text, atomic_path(args.output.with_suffix(".tsv")) as tsv:
        tsv.write_text(tab_separated(rows), encoding="utf-8")
        text.write(report(args.task, rows, count))


def read_seconds(path: Path) -> float:
    """From a benchmark file of Snakemake's."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return float(next(csv.DictReader(file, delimiter="\t"))["s"])
    except (OSError, StopIteration, KeyError, ValueError):
        raise UserError(f"{path}: not a benchmark of Snakemake's; remove it, and its step is run again") from None


def tab_separated(rows: list[tuple[Row, dict, list]]) -> str:
    """One line per model, method, seed and command; memory is the training's."""
    lines = ["model\tmethod\tseed\tcommand\tseconds\tpeak_mb"]
    for row, costs, memory in rows:
        for command, seconds in costs.items():
            peaks = memory if command == "train" else [""] * len(memory)
            for seed, value, peak in zip(row.seeds, seconds, peaks, strict=True):
                lines.append(f"{row.model}\t{row.method}\t{seed}\t{command}\t{value:.1f}\t{peak}")
    return "\n".join(lines) + "\n"


def report(task: str, rows: list[tuple[Row, dict, list]], count: int) -> str:
    """The text table; of several seeds the mean."""
    names = list(rows[0][0].scores)
    header = ["model", "method", "trained", "stored", *names, "training", "peak MB", "decoding", "texts/s"]
    body = []
    for row, costs, memory in rows:
        cells = [row.model, row.method, f"{row.trained:,}", f"{row.stored:,}"]
        cells += [summary(row, name) for name in names]
        cells += [_time(costs["train"]), f"{statistics.fmean(memory):,.0f}"] if "train" in costs else ["-", "-"]
        cells += [_time(costs["generate"]), f"{count / statistics.fmean(costs['generate']):.1f}"]
        body.append(cells)
    return "\n".join(
        [
            f"{task}: time and memory; {count:,} test examples decoded",
            "",
            *aligned([header, *body], left=2),
            "",
            "h:mm:ss, starting included; peak MB of the training process (0: not known); means over the seeds",
            "",
        ]
    )


def _time(seconds: list[float]) -> str:
    return str(timedelta(seconds=round(statistics.fmean(seconds))))


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
