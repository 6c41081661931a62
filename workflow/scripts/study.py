"""A study on one task: its rows as a text table and a TSV, the comparisons it is about, and a plot (SVG and PNG).

What a study varies is in configs/studies/{name}.yaml; the workflow gives its rows here, each with the folders of its
runs (seeds, and draws of a subset). Scores are those of the test set, with `split: valid` of the validation set. A run
without scores, because it failed or has not ended, is counted and named.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import textwrap
from dataclasses import dataclass
from pathlib import Path

from common import UserError, atomic_open, atomic_path, json_object, run_main
from config import label as label_of
from config import paired
from score import digits_of
from table import (
    VALID_LOSS,
    WIDTH,
    aligned,
    folder_of_split,
    peak_memory,
    read_record,
    read_scores,
    valid_losses,
    wrapped,
)

PARAMETERS = ("trained_parameters", "stored_parameters", "base_parameters")


@dataclass(frozen=True)
class Row:
    """A model and a method at one place of the axis, with what its runs recorded."""

    model: str
    method: str  # the name of the method, with the flags of a variant
    label: str  # how plots and tables call it: without the flag that is the axis
    x: str | None
    runs: list[str]
    scores: dict[str, dict[str, float]]  # run -> score -> value
    records: list[dict]  # their run.json

    @property
    def trainings(self) -> list[dict]:
        return [record for record in self.records if record["trained_parameters"]]

    @property
    def failed(self) -> list[str]:
        return [run for run in self.runs if run not in self.scores]

    def values(self, name: str) -> list[float]:
        return [self.scores[run][name] for run in self.runs if run in self.scores]


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    rows = [read_row(args, **row) for row in args.rows["rows"]]
    names = list(dict.fromkeys(name for row in rows for scores in row.scores.values() for name in scores))
    if not names:
        raise UserError(f"{args.task}: no run of this study has scores")
    score = args.study.get("score", names[0])
    if score not in names:
        raise UserError(f"{args.task}: the runs of this study have no score {score!r}; they have: {', '.join(names)}")
    stem = args.output.with_suffix("")
    # Entered first, hence renamed last: where the text table stands, the rest does.
    with (
        atomic_open(args.output) as text,
        atomic_path(stem.with_suffix(".tsv")) as tsv,
        atomic_path(stem.with_suffix(".svg")) as svg,
        atomic_path(stem.with_suffix(".png")) as png,
    ):
        tsv.write_text(tab_separated(rows), encoding="utf-8")
        draw(args, rows, score, svg, png)
        text.write(report(args, rows, names, score))


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=json_object, required=True, metavar="JSON", help="what its YAML file says")
    parser.add_argument("--task", required=True, help="the task's name")
    parser.add_argument(
        "--rows",
        type=json_object,
        required=True,
        metavar="JSON",
        help='{"rows": [{"model", "method", "x", "runs": [folders]}], "notes": [sentences]}; notes may be absent',
    )
    parser.add_argument(
        "--metric", action="extend", nargs="+", required=True, help="whose {metric}.json are read from every run"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .txt; the others go beside it")
    return parser.parse_args(argv)


# Reading --------------------------------------------------------------------------------------------------------------


def read_row(args: argparse.Namespace, model: str, method: str, x: str | None, runs: list[str]) -> Row:
    """What the runs of one row recorded; those that have no scores are left for `failed`."""
    scores, records = {}, []
    for run in runs:
        found = [folder_of_split(run, args.study.get("split")) / f"{metric}.json" for metric in args.metric]
        if not all(path.exists() for path in found):
            continue
        scores[run] = {
            name: value
            for metric, path in zip(args.metric, found, strict=True)
            for name, value in read_scores(path, metric)["scores"].items()
        }
        records.append(read_record(Path(run) / "run.json"))
    return Row(model, method, label_of(method, args.study.get("x", [])), x, runs, scores, records)


# Text -----------------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, rows: list[Row], names: list[str], score: str) -> str:
    """The title, the table, the notes, the comparisons, and the runs that failed."""
    study = args.study
    losses = any(valid_losses(row.records) for row in rows)
    header = [
        "model",
        "method",
        *([" / ".join(study["x"])] if "x" in study else []),
        "runs",
        "trained",
        "stored",
        "% of base",
        *(["valid loss"] if losses else []),
    ]
    body = [_cells(row, names, "x" in study, losses) for row in rows]
    lines = [f"{args.task}: {study['title']}", ""]
    lines += textwrap.wrap(study["question"], WIDTH)
    lines += ["", *aligned([[*header, *names, "training"], *body], left=2), ""]
    split = {"test": "test", "valid": "validation"}[study.get("split", "test")]
    lines.append(
        f"scores: on the {split} set, mean ± standard deviation over the runs; "
        "training: mean time and peak memory of a run"
    )
    lines += [VALID_LOSS] if losses else []
    lines += wrapped(args.rows.get("notes", []))
    if comparisons := [line for pair in study.get("compare", []) for line in compare(rows, pair, score)]:
        lines += ["", f"Differences in {score}, run by run:", *comparisons]
    if failed := [run for row in rows for run in row.failed]:
        lines += ["", f"Without scores, failed or not finished ({len(failed)}):", *(f"  {run}" for run in failed)]
    if "paper" in study:
        lines += ["", *textwrap.wrap(f"In the paper: {study['paper']}", WIDTH)]
    return "\n".join([*lines, ""])


def _cells(row: Row, names: list[str], has_x: bool, losses: bool) -> list[str]:
    runs = str(len(row.scores)) + (f" of {len(row.runs)}" if row.failed else "")
    cells = [row.model, row.label, *([row.x or "all"] if has_x else []), runs]
    if not row.scores:
        return [*cells, *["-"] * (4 + losses + len(names))]
    trained, stored, base = (row.records[0][name] for name in PARAMETERS)
    cells += [f"{trained:,}", f"{stored:,}", f"{100 * stored / base:.2f}"]
    cells += [spread(found, 3) if (found := valid_losses(row.records)) else "-"] if losses else []
    cells += [spread(row.values(name), digits_of(name)) for name in names]
    if not row.trainings:
        return [*cells, "-"]
    seconds = statistics.fmean(record["seconds"] for record in row.trainings)
    return [*cells, f"{seconds:.0f} s, {peak_memory(row.trainings)}"]


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation; of one value itself."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def compare(rows: list[Row], pair: list[str], name: str) -> list[str]:
    """One line per model and place of the axis where both methods have runs: differences between runs alike but for
    the method (same draw and seed; an untuned model's only run stands against every seed).
    """
    lines = []
    for a, b in paired([(row.model, row.label, row.method, row.x) for row in rows], pair):
        first, second = rows[a], rows[b]
        others = {_alike(run): value[name] for run, value in second.scores.items()}
        only = next(iter(others.values()), None) if len(second.runs) == 1 else None
        differences = [
            value[name] - others.get(_alike(run), only)
            for run, value in first.scores.items()
            if others.get(_alike(run), only) is not None
        ]
        if differences:
            above = sum(difference > 0 for difference in differences)
            lines.append(
                f"  {first.model}{_place(first, second, pair)}: {pair[0]} - {pair[1]} = "
                f"{spread(differences, digits_of(name))}, above 0 in {above} of {len(differences)}"
            )
    return lines


def _place(first: Row, second: Row, pair: list[str]) -> str:
    """Where on the axis two rows are compared; of a method that the pair names with its flags, its name says it."""
    places = dict.fromkeys(
        row.x for row, name in zip((first, second), pair, strict=True) if row.x and name == row.label
    )
    return "".join(f" at {place}" for place in places)


def _alike(run: str) -> tuple[str, str]:
    """(task, seed) of runs/{task}/{model}/{method}/{seed}."""
    parts = Path(run).parts
    return parts[-4], parts[-1]


def tab_separated(rows: list[Row]) -> str:
    """One line per run and score; a run without scores has one line with none."""
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerow(["model", "method", "x", "run", *PARAMETERS, "score", "value"])
    for row in rows:
        for run in row.runs:
            start = [row.model, row.method, row.x or "", run]
            counts = [row.records[0][name] if row.records else "" for name in PARAMETERS]
            found = row.scores.get(run, {"": ""})
            table.writerows([*start, *counts, name, value] for name, value in found.items())
    return file.getvalue()


# Plot -----------------------------------------------------------------------------------------------------------------


def draw(args: argparse.Namespace, rows: list[Row], name: str, svg: Path, png: Path) -> None:
    """One panel per model: curves with bands over the axis, or a bar per method; the paper's points are hollow."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "study", "svg.fonttype": "path", "font.size": 10})
    from matplotlib import pyplot

    models = list(dict.fromkeys(row.model for row in rows))
    figure, panels = pyplot.subplots(
        1, len(models), figsize=(1 + 4.6 * len(models), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, model in zip(panels[0], models, strict=True):
        own = [row for row in rows if row.model == model and row.scores]
        points = paper_points(args, model, name)
        if "x" in args.study:
            _draw_curves(panel, own, name)
            _draw_paper_curves(panel, points, name)
        else:
            _draw_bars(panel, own, name)
            _draw_paper_marks(panel, own, points, name)
        panel.set_title(model)
        panel.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylabel(name)
    if "x" in args.study:
        figure.supxlabel(" / ".join(args.study["x"]))
        panels[0][-1].legend(fontsize=8)
    elif panels[0][-1].get_legend_handles_labels()[1]:
        panels[0][-1].legend(fontsize=8)
    figure.suptitle(f"{args.task}: {args.study['title']}")
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def _draw_curves(panel, rows: list[Row], name: str) -> None:
    """Means over the axis, in the order of its values and evenly spaced, with a band of one standard deviation."""
    places = list(dict.fromkeys(row.x or "all" for row in rows))
    for label in dict.fromkeys(row.label for row in rows):
        own = [row for row in rows if row.label == label]
        x = [places.index(row.x or "all") for row in own]
        means = [statistics.fmean(row.values(name)) for row in own]
        spreads = [statistics.stdev(row.values(name)) if len(row.scores) > 1 else 0.0 for row in own]
        (line,) = panel.plot(x, means, marker="o", label=label)
        low, high = ([mean + sign * s for mean, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    panel.set_xticks(range(len(places)), places)


def _draw_bars(panel, rows: list[Row], name: str) -> None:
    for place, row in enumerate(rows):
        values = row.values(name)
        error = statistics.stdev(values) if len(values) > 1 else None
        panel.barh(place, statistics.fmean(values), xerr=error, color="tab:blue", alpha=0.6, capsize=3)
    panel.set_yticks(range(len(rows)), [row.label for row in rows])
    panel.invert_yaxis()
    panel.set_xlabel(name)


def paper_points(args: argparse.Namespace, model: str, name: str) -> list[dict]:
    """What the paper has of this task and score: over this model; where it has nothing, over the first that it has."""
    points = [point for point in args.study.get("points", []) if point["task"] == args.task and name in point]
    models = [point["model"] for point in points]
    return [point for point in points if point["model"] == (model if model in models else models[0])]


def _draw_paper_curves(panel, points: list[dict], name: str) -> None:
    """The points that have a place on the axis, hollow and grey."""
    places = [tick.get_text() for tick in panel.get_xticklabels()]
    points = [point for point in points if str(point.get("x")) in places]
    for label, marker in zip(dict.fromkeys(point["method"] for point in points), "sD^v*", strict=False):
        own = [point for point in points if point["method"] == label]
        x, y = [places.index(str(point["x"])) for point in own], [point[name] for point in own]
        style = {"marker": marker, "linestyle": "--", "fillstyle": "none", "color": "gray"}
        panel.plot(x, y, label=f"{label} (paper, {own[0]['model']})", **style)


def _draw_paper_marks(panel, rows: list[Row], points: list[dict], name: str) -> None:
    """A hollow mark on the bar of each method that the paper has a number of."""
    labels = [row.label for row in rows]
    points = [point for point in points if point["method"] in labels]
    if points:
        x, y = [point[name] for point in points], [labels.index(point["method"]) for point in points]
        panel.plot(x, y, "D", fillstyle="none", color="black", label=f"paper, {points[0]['model']}")


if __name__ == "__main__":
    run_main(main)
