"""Studies: rows from runs, differences between runs that are alike, what failed, plots, and the page of them all."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import report
import study
from common import UserError

STUDY = {
    "title": "Length",
    "question": "Does a longer prefix help?",
    "paper": "up to ten.",
    "methods": ["finetune", "prefix~prefix-length=1", "prefix~prefix-length=10"],
    "x": ["prefix-length"],
    "compare": [["prefix", "finetune"]],
    "points": [
        {"task": "toy", "model": "gpt2_medium", "method": "prefix", "x": 10, "bleu": 62.2},
        {"task": "toy", "model": "gpt2_large", "method": "prefix", "x": 10, "bleu": 63.0},
    ],
}
SCORES = {  # method -> seed -> BLEU; None: it failed
    "finetune": {1: 30.0, 2: 32.0},
    "prefix~prefix-length=1": {1: 20.0, 2: 25.0},
    "prefix~prefix-length=10": {1: 33.0, 2: None},
}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Arguments of study.py for three methods with two seeds each, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for method, seeds in SCORES.items():
        runs = [f"runs/toy/bart/{method}/{seed}" for seed in seeds]
        x = method.partition("=")[2] or None
        rows.append({"model": "bart", "method": method, "x": x, "runs": runs})
        for run, score in zip(runs, seeds.values(), strict=True):
            (tmp_path / run).mkdir(parents=True)
            if score is None:
                continue
            scores = {"scores": {"bleu": score}, "intervals": {"bleu": [0, 1]}, "signature": "s"}
            (tmp_path / run / "bleu.json").write_text(json.dumps({"metrics": {"bleu": scores}}))
            record = {"trained_parameters": 700, "stored_parameters": 70, "base_parameters": 1000}
            record |= {"arch": "prefix_bart_tiny", "seed": 1, "flags": ["--lr", "<1>"], "versions": {"torch": "2"}}
            record |= {"seconds": 60.0, "peak_mb": 500}
            (tmp_path / run / "run.json").write_text(json.dumps(record | {"data_sha256": {"dict.txt": "abc"}}))
    return [
        *("--study", json.dumps(STUDY), "--task", "toy", "--rows", json.dumps({"rows": rows})),
        *("--metric", "bleu", "--output", "results/studies/length/toy.txt"),
    ]


def test_rows_are_means_over_runs_at_places_of_the_axis(arguments, tmp_path):
    study.main(arguments)
    lines = (tmp_path / "results/studies/length/toy.txt").read_text().splitlines()
    assert lines[0] == "toy: Length"
    table = [line.split() for line in lines if line.startswith("bart")]
    assert table[0] == "bart finetune all 2 700 70 7.00 31.00 ± 1.41 60 s, 500 MB".split()
    assert table[1] == "bart prefix 1 2 700 70 7.00 22.50 ± 3.54 60 s, 500 MB".split()
    assert table[2] == "bart prefix 10 1 of 2 700 70 7.00 33.00 60 s, 500 MB".split()


def test_what_failed_is_named_and_has_a_line_without_a_value(arguments, tmp_path):
    study.main(arguments)
    text = (tmp_path / "results/studies/length/toy.txt").read_text()
    assert "failed or not finished (1):\n  runs/toy/bart/prefix~prefix-length=10/2\n" in text
    rows = [line.split("\t") for line in (tmp_path / "results/studies/length/toy.tsv").read_text().splitlines()]
    assert [row[3:] for row in rows if row[3].endswith("=10/2")][0][-2:] == ["", ""]
    assert len(rows) == 1 + 6


def test_differences_are_between_runs_with_the_same_seed(arguments, tmp_path):
    STUDY_WITHOUT_AXIS = {**STUDY, "compare": [["prefix~prefix-length=1", "finetune"]]}
    del STUDY_WITHOUT_AXIS["x"]
    rows = json.loads(arguments[5])
    for row in rows["rows"]:
        row["x"] = None
    arguments[1], arguments[5] = json.dumps(STUDY_WITHOUT_AXIS), json.dumps(rows)
    study.main(arguments)
    text = (tmp_path / "results/studies/length/toy.txt").read_text()
    # 20 - 30 and 25 - 32
    assert "  bart: prefix~prefix-length=1 - finetune = -8.50 ± 2.12, above 0 in 0 of 2\n" in text


def compared(arguments, tmp_path, *pairs) -> list[str]:
    """The lines of a study's comparisons."""
    values = json.loads(arguments[1]) | {"compare": pairs}
    arguments[1] = json.dumps(values)
    study.main(arguments)
    text = (tmp_path / "results/studies/length/toy.txt").read_text()
    return [line.strip() for line in text.splitlines() if " above 0 in " in line]


def test_a_method_off_the_axis_is_compared_at_each_place_of_the_other(arguments, tmp_path):
    assert compared(arguments, tmp_path, ["prefix", "finetune"]) == [
        "bart at 1: prefix - finetune = -8.50 ± 2.12, above 0 in 0 of 2",
        "bart at 10: prefix - finetune = 3.00, above 0 in 1 of 1",
    ]


def test_two_places_of_an_axis_are_compared_by_the_names_of_their_methods(arguments, tmp_path):
    pairs = [["prefix~prefix-length=10", "prefix~prefix-length=1"], ["finetune", "prefix~prefix-length=1"]]
    assert compared(arguments, tmp_path, *pairs) == [
        "bart: prefix~prefix-length=10 - prefix~prefix-length=1 = 13.00, above 0 in 1 of 1",
        "bart: finetune - prefix~prefix-length=1 = 8.50 ± 2.12, above 0 in 2 of 2",
    ]


def test_a_study_says_which_split_its_scores_are_of_and_reads_that_one(arguments, tmp_path):
    study.main(arguments)
    path = tmp_path / "results/studies/length/toy.txt"
    assert "scores: on the test set, mean" in path.read_text()
    arguments[1] = json.dumps(json.loads(arguments[1]) | {"split": "valid"})
    with pytest.raises(UserError, match="toy: no run of this study has scores"):
        study.main(arguments)
    for test in tmp_path.glob("runs/*/*/*/*/bleu.json"):
        scores = {"metrics": {"bleu": {"scores": {"bleu": 7.0}, "intervals": {"bleu": [0, 1]}, "signature": "s"}}}
        (test.parent / "valid").mkdir()
        (test.parent / "valid" / "bleu.json").write_text(json.dumps(scores))
    study.main(arguments)
    text = path.read_text()
    assert "scores: on the validation set, mean" in text and "7.00 ± 0.00" in text and "22.50" not in text


def test_notes_and_validation_losses_are_in_the_table(arguments, tmp_path):
    arguments[5] = json.dumps(json.loads(arguments[5]) | {"notes": ["infix of bart: left out"]})
    for number, path in enumerate(sorted(tmp_path.glob("runs/toy/bart/prefix~prefix-length=1/*/run.json"))):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"valid_loss": 2.5 + number}))
    study.main(arguments)
    lines = (tmp_path / "results/studies/length/toy.txt").read_text().splitlines()
    table = [line.split() for line in lines if line.startswith("bart")]
    assert table[0] == "bart finetune all 2 700 70 7.00 - 31.00 ± 1.41 60 s, 500 MB".split()
    assert table[1] == "bart prefix 1 2 700 70 7.00 3.000 ± 0.707 22.50 ± 3.54 60 s, 500 MB".split()
    assert "infix of bart: left out" in lines and any(line.startswith("valid loss: the lowest loss") for line in lines)


def test_a_score_that_no_run_has_is_one_sentence(arguments):
    arguments[1] = json.dumps(json.loads(arguments[1]) | {"score": "bleu:unseen"})
    with pytest.raises(UserError, match="toy: the runs of this study have no score 'bleu:unseen'; they have: bleu"):
        study.main(arguments)


def test_plots_are_pictures_and_the_same_bytes_each_time(arguments, tmp_path):
    study.main(arguments)
    folder = tmp_path / "results/studies/length"
    first = (folder / "toy.svg").read_bytes()
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert (folder / "toy.png").read_bytes().startswith(b"\x89PNG")
    study.main(arguments)
    assert (folder / "toy.svg").read_bytes() == first


def legend(monkeypatch, arguments):
    """The entries of the plot's legend that are the paper's."""
    from matplotlib.axes import Axes

    found = []
    monkeypatch.setattr(Axes, "legend", lambda axes, **_: found.extend(axes.get_legend_handles_labels()[0]))
    study.main(arguments)
    return [(line.get_label(), *map(list, line.get_data())) for line in found if "paper" in line.get_label()]


def test_the_papers_points_stand_at_their_place_of_the_axis_and_say_which_model_they_are_of(arguments, monkeypatch):
    assert legend(monkeypatch, arguments) == [("prefix (paper, gpt2_medium)", [2], [62.2])]
    study_of_a_model = json.loads(arguments[1])
    study_of_a_model["points"][1]["model"] = "bart"  # its own points before another's
    arguments[1] = json.dumps(study_of_a_model)
    assert legend(monkeypatch, arguments) == [("prefix (paper, bart)", [2], [63.0])]


def test_the_papers_points_stand_on_the_bars_of_their_methods(arguments, monkeypatch):
    without_axis = json.loads(arguments[1])
    del without_axis["x"]
    points = [{"method": name, "bleu": value} for name, value in (("finetune", 68.8), ("adapter", 68.9))]
    without_axis["points"] = [{"task": "toy", "model": "gpt2_medium", **point} for point in points]
    arguments[1] = json.dumps(without_axis)
    assert legend(monkeypatch, arguments) == [("paper, gpt2_medium", [68.8], [0])]


def test_without_any_scores_there_is_no_table(arguments, tmp_path):
    for path in tmp_path.glob("runs/*/*/*/*/bleu.json"):
        path.unlink()
    with pytest.raises(UserError, match="toy: no run of this study has scores"):
        study.main(arguments)
    assert not list((tmp_path / "results").rglob("toy*"))


def test_without_a_paper_neither_table_nor_page_speaks_of_one(arguments, tmp_path):
    values = {key: value for key, value in json.loads(arguments[1]).items() if key != "paper"}
    arguments[1] = json.dumps(values)
    study.main(arguments)
    table = "results/studies/length/toy.txt"
    page = ["--studies", json.dumps({"length": values}), "--output", "results/studies/report.html", "--table", table]
    report.main(page)
    for name in (table, "results/studies/report.html"):
        assert "In the paper" not in (tmp_path / name).read_text()


def test_the_page_needs_nothing_else_and_says_what_was_run(arguments, tmp_path):
    study.main(arguments)
    report.main(
        [
            *("--studies", json.dumps({"length": STUDY}), "--output", "results/studies/report.html"),
            *("--table", "results/studies/length/toy.txt"),
        ]
    )
    page = (tmp_path / "results/studies/report.html").read_text()
    assert "Does a longer prefix help?" in page and "22.50 ± 3.54" in page and "<svg" in page
    assert "prefix_bart_tiny seed 1: --lr &lt;1&gt;" in page and "abc  dict.txt" in page and "torch 2" in page
    assert "no record: it failed" in page
    assert "src=" not in page and "url(http" not in page
