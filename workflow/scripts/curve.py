"""The training curve: what fairseq logged of a training, whole across its interruptions, as a table and as a plot.

While it trains, train.py appends what fairseq says to `metrics.jsonl` in its work folder (`Metrics`), and makes of it
`curve.tsv` beside the checkpoint. Called as a script, draws curve.tsv as curve.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

from common import UserError, atomic_open, atomic_path, read_lines, run_main

# Column -> where fairseq says it, for a log line of training and of validation.
TRAIN = {"epoch": "epoch", "loss": "loss", "lr": "lr", "gradient_norm": "gnorm", "updates_per_second": "ups"}
VALID = {"epoch": "epoch", "valid_loss": "valid_loss"}
COLUMNS = ("update", "epoch", "loss", "valid_loss", "lr", "gradient_norm", "updates_per_second")


class Metrics:
    """What was logged of one training, one JSON object a line; a training that goes on adds to it."""

    def __init__(self, work: Path) -> None:
        self._path = work / "metrics.jsonl"

    def add(self, values: dict[str, object]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(values))  # first: the line before may be cut off

    def resumed(self, updates: int) -> None:
        """The training goes on from a checkpoint after so many updates; 0: it begins."""
        self.add({"resumed_from": updates})

    def resumptions(self) -> list[int]:
        """After how many updates it was gone on from a checkpoint, each time that it was."""
        return [values["resumed_from"] for values in self._lines() if values.get("resumed_from")]

    def take(self, kind: str, values: dict[str, object]) -> None:
        """Note what fairseq logged: of `train_inner` or of `valid`."""
        updates = values.get("num_updates" if kind == "train_inner" else "valid_num_updates")
        names = {"train_inner": TRAIN, "valid": VALID}.get(kind)
        if names and updates is not None:
            found = {column: values[name] for column, name in names.items() if name in values}
            self.add({"update": int(float(updates)), **found})

    def valid_loss(self) -> float | None:
        """The lowest validation loss; None where nothing was validated."""
        losses = [float(row["valid_loss"]) for row in self.rows() if "valid_loss" in row]
        return min(filter(math.isfinite, losses), default=None)

    def rows(self) -> list[dict[str, object]]:
        """One per update that something was logged at."""
        rows: dict[int, dict[str, object]] = {}
        for values in self._lines():
            if "update" in values:  # after a kill some are made again, and then count as they were logged last
                rows[values["update"]] = rows.get(values["update"], {}) | values
        return [rows[update] for update in sorted(rows)]

    def _lines(self) -> Iterator[dict[str, object]]:
        with contextlib.suppress(FileNotFoundError), open(self._path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError):  # cut off by a kill
                    values = json.loads(line)
                    if isinstance(values, dict) and type(values.get("update", values.get("resumed_from"))) is int:
                        yield {name: value for name, value in values.items() if _is_number(value)}

    def write(self, output: Path) -> None:
        """curve.tsv; a cell is empty where nothing was said."""
        with atomic_open(output) as file:
            table = csv.DictWriter(file, COLUMNS, "", "ignore", delimiter="\t", lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows())


def _is_number(value: object) -> bool:
    """Also as fairseq writes it, as a text."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        float(value)
        return True
    return False


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    rows = read_curve(args.input)
    with atomic_path(args.output) as svg:
        draw(args.title, rows, svg)


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve.tsv, each without the cells that are empty."""
    lines = read_lines(path)
    if tuple(next(lines, (1, ""))[1].split("\t")) != COLUMNS:
        raise UserError(f"{path}: not a curve.tsv, its columns are not {', '.join(COLUMNS)}")
    rows = []
    for number, line in lines:
        try:
            cells = zip(COLUMNS, line.split("\t"), strict=True)
            row = {column: float(cell) for column, cell in cells if cell or column == "update"}
        except ValueError:
            raise UserError(
                f"{path}, line {number}: expected {len(COLUMNS)} columns of numbers; all but the update may be empty"
            ) from None
        rows.append(row)
    return rows


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="curve.tsv")
    parser.add_argument("--title", required=True, help="what was trained")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="curve.svg")
    return parser.parse_args(argv)


def draw(title: str, rows: list[dict[str, float]], svg: Path) -> None:
    """Both losses over the updates, and the learning rate below; the same rows give the same bytes."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "curve", "svg.fonttype": "path", "font.size": 10})
    from matplotlib import pyplot

    figure, (losses, rates) = pyplot.subplots(
        2, 1, figsize=(6.4, 4.8), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    for panel, column, label, style in (
        (losses, "loss", "training", "-"),
        (losses, "valid_loss", "validation", "o-"),
        (rates, "lr", "", "-"),
    ):
        points = [row for row in rows if column in row]
        x, y = [[row[name] for row in points] for name in ("update", column)]
        panel.plot(x, y, style, markersize=3, label=label)
        panel.grid(alpha=0.3)
    losses.set_ylabel("loss (bits)")
    losses.legend()
    rates.set_ylabel("learning rate")
    rates.set_xlabel("update")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    losses.set_title(title, fontsize=10)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    run_main(main)
