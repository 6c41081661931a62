"""What the runs of a task cost: time and memory of training and of decoding, beside what they scored.

Times are Snakemake's own measurements ({run}/train.benchmark.tsv and generate.benchmark.tsv below the logs), so
they differ from machine to machine, and a step that was interrupted counts from its last start. Memory is that of the
training process, and on a GPU that of its tensors there, from its run.json.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from datetime import timedelta
from pathlib import Path

from common import UserError, atomic_open, atomic_path, read_jsonl, run_main
from table import Row, aligned, peak_memory, read_record, read_rows, summary, wrapped

COMMANDS = ("train", "generate")


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    count = sum(1 for _ in read_jsonl(args.examples))
    rows = []
    for row in read_rows(args.run, args.metric):
        measured = COMMANDS if row.trained else ["generate"]
        costs = {c: [read_seconds(args.logs / run / f"{c}.benchmark.tsv") for run in row.runs] for c in measured}
        rows.append((row, costs, [read_record(run / "run.json") for run in row.runs]))
    # Entered first, hence renamed last: where the text table stands, the TSV does.
    with atomic_open(args.output) as text, atomic_path(args.output.with_suffix(".tsv")) as tsv:
        tsv.write_text(tab_separated(rows), encoding="utf-8")
        text.write(report(args.task, rows, count, args.note))


def read_seconds(path: Path) -> float:
    """From a benchmark file of Snakemake's."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return float(next(csv.DictReader(file, delimiter="\t"))["s"])
    except (OSError, StopIteration, KeyError, ValueError):
        raise UserError(f"{path}: not a benchmark of Snakemake's; remove it, and its step is run again") from None


def tab_separated(rows: list[tuple[Row, dict, list]]) -> str:
    """One line per model, method, seed and command; memory is the training's."""
    lines = ["model\tmethod\tseed\tcommand\tseconds\tpeak_mb\tgpu_peak_gb"]
    for row, costs, records in rows:
        for command, seconds in costs.items():
            for seed, value, record in zip(row.seeds, seconds, records, strict=True):
                memory = [record.get(key, "") if command == "train" else "" for key in ("peak_mb", "gpu_peak_gb")]
                lines.append("\t".join(map(str, (row.model, row.method, seed, command, f"{value:.1f}", *memory))))
    return "\n".join(lines) + "\n"


def report(task: str, rows: list[tuple[Row, dict, list]], count: int, notes: list[str]) -> str:
    """The text table; of several seeds the mean."""
    names = list(rows[0][0].scores)
    header = ["model", "method", "trained", "stored", *names, "training", "peak memory", "decoding", "texts/s"]
    body = []
    for row, costs, records in rows:
        cells = [row.model, row.method, f"{row.trained:,}", f"{row.stored:,}"]
        cells += [summary(row, name) for name in names]
        cells += [_time(costs["train"]), peak_memory(records)] if "train" in costs else ["-", "-"]
        cells += [_time(costs["generate"]), f"{count / statistics.fmean(costs['generate']):.1f}"]
        body.append(cells)
    return "\n".join(
        [
            f"{task}: time and memory; {count:,} test examples decoded",
            "",
            *aligned([header, *body], left=2),
            "",
            "h:mm:ss, starting included; memory of the training process; means over the seeds",
            *wrapped(notes),
            "",
        ]
    )


def _time(seconds: list[float]) -> str:
    return str(timedelta(seconds=round(statistics.fmean(seconds))))


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="the task's name, for the heading")
    parser.add_argument(
        "--metric",
        action="extend",
        nargs="*",
        default=[],
        help="the scores shown: {metric}.json is read from every run",
    )
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="a line below the table")
    parser.add_argument(
        "--run", type=Path, action="extend", nargs="+", required=True, metavar="DIR", help="as for table.py"
    )
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR", help="{logs}/{run}/*.benchmark.tsv are read")
    parser.add_argument("--examples", type=Path, required=True, metavar="FILE", help="test.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .txt; the .tsv goes beside it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
