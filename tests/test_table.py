"""The table: what its numbers mean, that it is the same bytes each time, and what it refuses."""

import json

import pytest
import table
from common import UserError
from conftest import example


def recorded(scores, signature="stemmer:yes", metric="rouge"):
    """What score.py writes; every interval reaches one below and two above."""
    intervals = {name: [score - 1, score + 2] for name, score in scores.items()}
    return {"metrics": {metric: {"scores": scores, "intervals": intervals, "signature": signature}}}


SCORES = {
    "base/0": ({"rouge1": 10.0, "rougeL": 8.0}, 0, 0),
    "prefix/1": ({"rouge1": 40.0, "rougeL": 30.0}, 501_504, 30_720),
    "prefix/2": ({"rouge1": 42.0, "rougeL": 31.0}, 501_504, 30_720),
}


@pytest.fixture
def runs(tmp_path, write_jsonl):
    """Arguments of table.py for a base and a prefix with two seeds; the output is tmp_path/results/rouge.txt."""
    write_jsonl("test.jsonl", [example(n, f"the source {n}", f"the reference {n}") for n in range(10)])
    folders = []
    for name, (scores, trained, stored) in SCORES.items():
        folder = tmp_path / "runs" / "task" / "bart" / name
        folder.mkdir(parents=True)
        (folder / "rouge.json").write_text(json.dumps(recorded(scores)))
        (folder / "nist.json").write_text(json.dumps(recorded({"nist": 8.12345}, "case:lc", "nist")))
        record = {"trained_parameters": trained, "stored_parameters": stored, "base_parameters": 1_228_800}
        (folder / "run.json").write_text(json.dumps({**record, "seconds": 12.3}))
        (folder / "hypotheses.txt").write_text("".join(f"{name} wrote {n}\n" for n in range(10)))
        folders.append(str(folder))
    return ["--task", "task", "--metric", "rouge", "--run", *folders, "--examples", str(tmp_path / "test.jsonl")] + [
        "--output",
        str(tmp_path / "results" / "rouge.txt"),
    ]


def test_rows_are_methods_with_mean_deviation_and_parameters(runs, tmp_path):
    table.main(runs)
    lines = (tmp_path / "results" / "rouge.txt").read_text().splitlines()
    assert lines[0] == "task: rouge on 10 test examples, 2 seeds, mean ± standard deviation"
    assert lines[2].split() == ["model", "method", "trained", "stored", "%", "of", "base", "rouge1", "rougeL"]
    assert lines[4].split() == "bart base 0 0 0.00 10.00 [9.00, 12.00] 8.00 [7.00, 10.00]".split()  # a single seed
    assert lines[5].split() == "bart prefix 501,504 30,720 2.50 41.00 ± 1.41 30.50 ± 0.71".split()
    assert len({len(line) for line in lines[3:6]}) == 1  # aligned
    assert "rouge: stemmer:yes" in lines


def test_several_metrics_share_a_table(runs, tmp_path):
    runs[runs.index("rouge")] = "nist"
    runs.insert(runs.index("nist") + 1, "rouge")
    table.main([*runs, "--note", "meteor: not computed; it needs Java"])
    lines = (tmp_path / "results" / "rouge.txt").read_text().splitlines()
    assert lines[0].startswith("task: nist, rouge on 10 test examples")
    assert lines[2].split()[-3:] == ["nist", "rouge1", "rougeL"]
    assert "8.1235 [7.1235, 10.1235]" in lines[4] and "8.1235 ± 0.0000" in lines[5]
    for line in ("nist: case:lc", "rouge: stemmer:yes", "meteor: not computed; it needs Java"):
        assert line in lines


def test_examples_show_every_method_beside_the_reference(runs, tmp_path):
    table.main([*runs, "--samples", "2"])
    text = (tmp_path / "results" / "rouge.txt").read_text()
    assert text.count("example ") == 2
    shown = text[text.index("example 5") :].split("\n")
    assert [line.split(maxsplit=1) for line in shown[1:5]] == [
        ["source", "the source 5"],
        ["reference", "the reference 5"],
        ["base", "base/0 wrote 5"],
        ["prefix", "prefix/1 wrote 5"],
    ]


def test_the_tsv_has_every_seed(runs, tmp_path):
    table.main(runs)
    lines = [line.split("\t") for line in (tmp_path / "results" / "rouge.tsv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert [(row["method"], row["score"]) for row in rows] == [
        (method, score) for method in ("base", "prefix") for score in ("rouge1", "rougeL")
    ]
    assert rows[0]["standard_deviation"] == ""
    assert rows[2] | {"mean": "41.0000", "standard_deviation": "1.4142", "values": "40.0000,42.0000"} == rows[2]
    assert rows[2]["intervals"] == "39.0000:42.0000,41.0000:44.0000"
    assert (rows[2]["seeds"], rows[2]["trained_parameters"], rows[2]["stored_parameters"]) == ("1,2", "501504", "30720")


def test_validation_losses_are_shown_beside_the_scores_where_trainings_recorded_them(runs, tmp_path):
    for seed, loss in ((1, 2.0), (2, 2.5)):
        path = tmp_path / "runs" / "task" / "bart" / "prefix" / str(seed) / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"valid_loss": loss}))
    table.main(runs)
    lines = (tmp_path / "results" / "rouge.txt").read_text().splitlines()
    assert lines[2].split()[5:] == ["%", "of", "base", "valid", "loss", "rouge1", "rougeL"][1:]
    assert lines[4].split()[4:6] == ["0.00", "-"] and lines[5].split()[4:6] == ["2.50", "2.250"]
    assert any(line.startswith("valid loss: the lowest loss on the validation set") for line in lines)


def test_a_notice_of_a_score_stands_below_the_table_once(runs, tmp_path):
    for path in (tmp_path / "runs").rglob("rouge.json"):
        record = json.loads(path.read_text())
        record["metrics"]["rouge"]["notices"] = ["3 of 10 references lose most or all of their text"]
        path.write_text(json.dumps(record))
    table.main(runs)
    text = (tmp_path / "results" / "rouge.txt").read_text()
    assert text.count("notice: rouge: 3 of 10 references lose most or all of their text\n") == 1


def test_the_seconds_of_a_run_change_nothing(runs, tmp_path):
    table.main(runs)
    before = (tmp_path / "results" / "rouge.txt").read_bytes(), (tmp_path / "results" / "rouge.tsv").read_bytes()
    path = tmp_path / "runs" / "task" / "bart" / "prefix" / "1" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 99.9}))
    table.main(runs)
    assert before == (
        (tmp_path / "results" / "rouge.txt").read_bytes(),
        (tmp_path / "results" / "rouge.tsv").read_bytes(),
    )


@pytest.mark.parametrize(
    "file, change, sentence",
    [
        ("prefix/1/run.json", {"stored_parameters": 5}, "its seeds differ in their parameters"),
        ("prefix/2/run.json", {"stored_parameters": 5}, "its seeds differ in their parameters"),
        ("prefix/2/run.json", {"valid_loss": "low"}, "its times, its memory or its loss are no numbers"),
        ("base/0/rouge.json", recorded({"rouge1": 10.0, "rougeL": 8.0}, "stemmer:no"), "not scored alike"),
        ("prefix/2/rouge.json", recorded({"rouge1": 10.0, "rougeL": 8.0}, "stemmer:no"), "not scored alike"),
        ("base/0/rouge.json", recorded({"rouge1": 10.0}), "not scored alike"),
        ("prefix/2/rouge.json", recorded({"rouge1": 10.0}), "not scored alike"),
        ("prefix/2/rouge.json", {"metrics": {}}, "rouge.json: holds no scores of rouge; remove it"),
        ("prefix/1/hypotheses.txt", "one line\n", "1 hypotheses for 10 examples"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path, file, change, sentence):
    path = tmp_path / "runs" / "task" / "bart" / file
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        table.main(runs)
    assert not (tmp_path / "results" / "rouge.txt").exists()


def test_runs_that_a_table_leaves_out_are_counted_on_stderr(runs, tmp_path, capsys):
    table.main(runs)
    assert capsys.readouterr().err == ""
    seed = runs.index(str(tmp_path / "runs" / "task" / "bart" / "prefix" / "2"))
    table.main(runs[:seed] + runs[seed + 1 :])
    assert "notice: task has 1 more runs than" in capsys.readouterr().err
