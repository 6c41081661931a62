"""The data report: every figure by hand on a small set, and what an absent split looks like."""

import json
import re

import pytest
from common import UserError
from conftest import example
from describe import main

RECORD = {
    "reader": "jsonl",
    "options": {"source": "text"},
    "inputs": {"train": {"file": "train.jsonl", "sha256": "ab" * 32}},
    "absent": [],
    "left_out": {"train": {"empty text": 3}},
}
ROWS = {
    "train": [
        example(1, "the cat sat", "a cat", group="x"),
        example(2, "the cat sat", "a cat and a dog", group="x"),
        example(3, "one", "two", group="y"),
    ],
    "valid": [example(1, "one", "two", "three"), example(2, "the cat", "a cat", group="x")],
    "test": [example(1, "one", "two"), example(2, "the cat", "no cat", "some cat")],
}


@pytest.fixture
def describe(tmp_path, byte_bpe, write_jsonl):
    """A function (record, rows, more arguments) that makes a report and returns its table by measure, and its text."""

    def run(record=RECORD, rows=ROWS, *more, output="data.txt"):
        for split in ("train", "valid", "test"):
            write_jsonl(f"data/{split}.jsonl", rows[split])
        (tmp_path / "data" / "data.json").write_text(json.dumps(record))
        files = {"encoder-json": str(byte_bpe[0]), "vocab-bpe": str(byte_bpe[1])}
        models = {"large": files | {"max-source-tokens": 3, "max-target-tokens": 4}, "small": files}
        argv = ["--task", "toy", "--input-dir", str(tmp_path / "data"), "--models", json.dumps(models)]
        main([*argv, "--output", str(tmp_path / output), *more])
        lines = (tmp_path / output).with_suffix(".tsv").read_text().splitlines()
        return {name: values for name, *values in (line.split("\t") for line in lines)}, (tmp_path / output).read_text()

    return run


@pytest.mark.parametrize("limit", [-5, "3", 2.5])
def test_a_limit_that_is_no_length_is_refused(describe, limit):
    models = {"large": {"max-source-tokens": limit}, "small": {"max-source-tokens": None}}
    with pytest.raises(UserError, match=r"--models: large: max-source-tokens is .*; expected a whole number, 0 \(no"):
        describe(RECORD, ROWS, "--models", json.dumps(models))


def test_every_figure(describe):
    table, _ = describe()
    assert table["measure"] == ["train", "valid", "test"]
    expected = {
        "examples": ["3", "2", "2"],
        "references": ["3", "3", "3"],
        "unique sources": ["2", "2", "2"],
        "references per source: min": ["1", "1", "1"],
        "references per source: mean": ["1.5000"] * 3,
        "references per source: max": ["2", "2", "2"],
        "source words: mean": ["2.3333", "1.5000", "1.5000"],
        "source words: median": ["3", "1", "1"],
        "source words: 95 %": ["3", "2", "2"],
        "source words: max": ["3", "2", "2"],
        "target words: mean": ["2.6667", "1.3333", "1.6667"],
        "target words: median": ["2", "1", "2"],
        # t|he| cat| |s|at, and o|n|e
        "source tokens (large, small): mean": ["5.0000", "3.0000", "3.0000"],
        "source tokens (large, small): max": ["6", "3", "3"],
        "sources cut to 3 tokens (large)": ["2", "0", "0"],
        "targets cut to 4 tokens (large)": ["1", "", ""],
        "left out: empty text": ["3", "0", "0"],
        "sources also in train": ["", "1", "1"],
        "source and reference also in train": ["", "1", "1"],
        "sources also in valid": ["", "", "2"],
        "source and reference also in valid": ["", "", "1"],
        "group: x": ["2", "1", "0"],
        "group: y": ["1", "0", "0"],
        "without a group": ["0", "1", "2"],
    }
    assert {name: table[name] for name in expected} == expected
    assert not [name for name in table if "cut to" in name and "small" in name]  # it has no limits


def test_the_text_for_people(describe):
    _, text = describe()
    lines = text.splitlines()
    assert lines[0] == 'toy: reader jsonl with source "text"'
    assert lines[3].split() == ["examples", "3", "2", "2"]
    assert lines[-1] == f"  train: train.jsonl, sha256 {'ab' * 32}"
    assert re.search(r"^references per source: mean +1\.5 +1\.5 +1\.5$", text, re.MULTILINE)
    assert not any(line != line.rstrip() for line in lines)


def test_an_absent_split_is_called_absent(describe):
    table, text = describe(RECORD | {"absent": ["train"], "left_out": {}}, ROWS | {"train": []})
    assert table["examples"] == ["", "2", "2"]
    assert table["sources also in valid"] == ["", "", "2"] and "sources also in train" not in table
    assert "absent" in next(line for line in text.splitlines() if line.startswith("examples"))


def test_a_subset_says_what_it_was_drawn_from(describe):
    record = {
        "subset_of": "toy",
        "seed": 3,
        "drawn": {"train": 3, "valid": 1},
        "absent": [],
        "left_out": {},
        "inputs": {},
    }
    _, text = describe(record)
    assert text.startswith("toy: 3 training and 1 validation pairs of toy, drawn with seed 3\n")


def test_many_groups_are_in_the_tsv(describe):
    rows = ROWS | {"train": [example(n, f"s {n}", "t", group=f"g{n:02}") for n in range(25)]}
    table, text = describe(rows=rows)
    assert "group: g24" in table and "group: g24" not in text
    assert "(6 more groups are in the TSV beside this file)" in text


def test_workers_change_no_byte(describe, tmp_path):
    rows = ROWS | {"train": [example(n, f"the cat {n}", "t" * (n % 7 + 1), group="abc"[n % 3]) for n in range(700)]}
    describe(RECORD, rows, output="one.txt")
    describe(RECORD, rows, "--workers", "3", output="two.txt")
    for suffix in ("txt", "tsv"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_an_unprepared_file_is_named_and_nothing_is_written(describe, tmp_path):
    with pytest.raises(UserError, match="valid.jsonl, line 1: no field 'references'"):
        describe(rows=ROWS | {"valid": [{"source": "a"}]})
    assert not (tmp_path / "data.txt").exists() and not (tmp_path / "data.tsv").exists()
