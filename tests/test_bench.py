"""The benchmark on tiny shapes: that it runs and what it tells, not how long anything takes."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "tests" / "bench"))

import measure  # noqa: E402
import tables  # noqa: E402
from contestants import Settings  # noqa: E402

SHAPES = {
    **{"size": "tiny", "vocabulary": 100, "source": 12, "target": 8, "prefix_length": 50, "mid_dim": 8},
    **{"beam": 2, "forced": 5, "threads": 1, "device": "cpu"},
}
ROUNDS = 2


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """(table, JSON) of a run without peers."""
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    options = [part for name, value in SHAPES.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "tests/bench", *options, "--rounds", str(ROUNDS), "--batch", "4", "--output", output]
    command += ["--only", "training", "decoding", "sizes", "--contestants", "ours", "stock fairseq"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(output.read_text())


def rows(table: str, start: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.startswith(start)]


def test_every_sample_is_in_the_json_with_versions_and_machine(outcome):
    _, record = outcome
    assert record["versions"]["torch"] and {"fairseq-prefix", "peft", "adapters"} <= record["versions"].keys()
    assert record["machine"]["cpu"] and record["machine"]["threads"] == 1
    assert SHAPES.items() <= record["settings"].items()
    for name in ("ours", "stock fairseq"):
        samples = record["results"]["training"]["4"][name]["samples"]
        assert [len(samples[key]) for key in (measure.FORWARD_BACKWARD, measure.STEP)] == [ROUNDS, ROUNDS]
        assert len(record["results"]["decoding"]["4"][name]["samples"][measure.SEARCH]) == ROUNDS
    files = {name: result["samples"] for name, result in record["results"]["sizes"]["0"].items()}
    assert files["ours"][measure.FILES][0] == pytest.approx(4 * 3 * 50 * 2 * 2 * 128, rel=0.01)  # P x L*2*D in fp32
    assert files["ours"][measure.TRAINED][0] < files["stock fairseq"][measure.TRAINED][0]


def test_every_limit_stands_beside_what_was_reached(outcome):
    table, record = outcome
    assert len(record["limits"]) == len(measure.LIMITS)
    kept = {(limit["part"], limit["batch"], *limit["ours"], *limit["other"]): limit for limit in record["limits"]}
    measured = kept["training", 4, "ours", measure.STEP, "stock fairseq", measure.FORWARD_BACKWARD]
    assert measured["kept"] in (True, False) and len(measured["ratios"]) == ROUNDS and measured["limit"] == 0.80
    elsewhere = kept["training", 16, "ours", measure.STEP, "stock fairseq", measure.FORWARD_BACKWARD]
    assert elsewhere["kept"] is None and "not run" in elsewhere["reason"]
    shown = table[table.index("Limits") :]
    for limit in measure.LIMITS:
        assert any(f"{limit.limit:.2f}" in row for row in rows(shown, f"{limit.part}"))


def test_who_fails_stands_in_the_table_and_the_others_go_on():
    def run(contestant):
        ran.append(contestant)
        if contestant == "second" and ran.count("second") == 2:
            raise ValueError("no memory\nand more")
        return {measure.SEARCH: 1.0}

    ran = []
    ready, missing = {"ours": "first", "PEFT": "second"}, {"adapters": "ImportError: not there"}
    results = measure.take_turns(ready, missing, 3, run, "title")
    assert ran == ["first", "second", "first", "second", "first", "first"]
    lines = tables.part_table(results, 1.0)
    assert [line.split() for line in lines[2:5]] == [
        ["ours", "1.00", "(1.00-1.00)"],
        ["PEFT", "failed"],
        ["adapters", "failed"],
    ]
    assert lines[5:] == ["PEFT failed: ValueError: no memory", "adapters failed: ImportError: not there"]
    limit = measure.Limit("decoding", 4, ("ours", measure.SEARCH), ("PEFT", measure.SEARCH), 0.45)
    compared = measure.compare(limit, {"decoding": {4: results}})
    assert compared["kept"] is None and compared["reason"] == "PEFT: ValueError: no memory"


def test_peak_memory_is_a_fresh_process(tmp_path):
    settings = Settings(**SHAPES, base=str(tmp_path / "base"))
    settings.save_base()
    results = measure.memory(["ours"], settings, [4, 2], 1)
    samples = results[2]["ours"]["samples"]
    assert 4e6 < samples[measure.BUILDING][0] <= samples[measure.PEAK][0] < 1e9  # a million parameters at least
