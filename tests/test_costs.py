"""What runs cost: the benchmarks of Snakemake, beside the scores."""

import json

import costs
import pytest
from common import UserError
from conftest import example

HEADER = "s\th:m:s\tmax_rss\tmax_vms"
MEASURED = {  # seconds of training and decoding, and MB of the training
    "base/0": (None, 10, 0),
    "prefix/1": (60, 20, 500),
    "prefix/2": (80, 30, 520),
}


@pytest.fixture
def arguments(tmp_path, write_jsonl):
    """Arguments of costs.py for an untuned base and a prefix with two seeds."""
    write_jsonl("test.jsonl", [example(n, f"the source {n}", f"the reference {n}") for n in range(50)])
    for name, measured in MEASURED.items():
        run, log = tmp_path / "runs" / "task" / "bart" / name, tmp_path / "logs" / "runs" / "task" / "bart" / name
        run.mkdir(parents=True)
        log.mkdir(parents=True)
        scores = {"scores": {"bleu": 40.0}, "intervals": {"bleu": [39.0, 41.0]}, "signature": "case:lc"}
        (run / "bleu.json").write_text(json.dumps({"metrics": {"bleu": scores}}))
        trained = 0 if name == "base/0" else 700
        record = {"trained_parameters": trained, "stored_parameters": trained // 10, "base_parameters": 1000}
        (run / "run.json").write_text(json.dumps({**record, "peak_mb": measured[2], "gpu_peak_gb": 2.0}))
        (run / "hypotheses.txt").write_text("a hypothesis\n" * 50)
        for command, seconds in zip(("train", "generate"), measured[:2], strict=True):
            if seconds:
                row = f"{seconds}\t0:00:00\t26\t1.0"
                (log / f"{command}.benchmark.tsv").write_text(f"{HEADER}\n{row}\n")
    runs = [f"runs/task/bart/{name}" for name in MEASURED]
    return ["--task", "task", "--metric", "bleu", "--run", *runs, "--logs", "logs", "--examples", "test.jsonl"] + [
        "--output",
        "results/costs.txt",
    ]


def test_times_memory_and_speed_beside_the_score(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    costs.main(arguments)
    lines = (tmp_path / "results" / "costs.txt").read_text().splitlines()
    assert lines[0] == "task: time and memory; 50 test examples decoded"
    assert lines[4].split() == "bart base 0 0 40.00 [39.00, 41.00] - - 0:00:10 5.0".split()
    assert lines[5].split() == "bart prefix 700 70 40.00 ± 0.00 0:01:10 510 MB, GPU 2.0 GB 0:00:25 2.0".split()
    rows = [line.split("\t") for line in (tmp_path / "results" / "costs.tsv").read_text().splitlines()]
    assert rows[0] == "model method seed command seconds peak_mb gpu_peak_gb".split()
    assert ["bart", "prefix", "2", "train", "80.0", "520", "2.0"] in rows and len(rows) == 1 + 5


def test_without_a_score_there_are_times_still(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    costs.main([argument for argument in arguments if argument != "bleu"])
    lines = (tmp_path / "results" / "costs.txt").read_text().splitlines()
    assert lines[5].split() == "bart prefix 700 70 0:01:10 510 MB, GPU 2.0 GB 0:00:25 2.0".split()


def test_a_seed_without_its_measurement_is_an_error_not_a_mean_of_the_others(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs/runs/task/bart/prefix/1/train.benchmark.tsv").unlink()
    with pytest.raises(UserError, match="prefix/1/train.benchmark.tsv: not a benchmark"):
        costs.main(arguments)


def test_a_damaged_benchmark_is_named(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs/runs/task/bart/prefix/2/generate.benchmark.tsv").write_text(HEADER + "\n")
    with pytest.raises(UserError, match="prefix/2/generate.benchmark.tsv: not a benchmark"):
        costs.main(arguments)
    assert not (tmp_path / "results" / "costs.txt").exists()
