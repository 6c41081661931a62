"""Files that earlier versions wrote: bases, training checkpoints and exports (made by tests/fixtures/make.py)."""

import json

import pytest
import torch
from conftest import REPOSITORY
from fixtures import make
from safetensors.torch import load_file

from fairseq_prefix import api
from fairseq_prefix.__main__ import main

pytestmark = pytest.mark.usefixtures("hooks")
FOLDER = REPOSITORY / "tests" / "fixtures" / "0.1"
FAMILIES = list(make.METHODS)
CHECKPOINTS = [(family, name) for family, methods in make.METHODS.items() for name in methods]
EXPORTS = [(family, name) for family, name in CHECKPOINTS if name != "full"]


def same_as_then(family, name, model, task):
    """Assert that a model computes what the version that wrote its file computed."""
    logits, hypotheses = make.observe(model, task)
    torch.testing.assert_close(logits, load_file(FOLDER / family / "logits.safetensors")[name], atol=1e-6, rtol=0)
    expected = json.loads((FOLDER / family / "expected.json").read_text())["hypotheses"][name]
    for row, expected_row in zip(hypotheses, expected, strict=True):
        assert [tokens for tokens, _ in row] == [tokens for tokens, _ in expected_row]
        assert [score for _, score in row] == pytest.approx([score for _, score in expected_row], abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_gives_the_same_logits_and_hypotheses(family):
    same_as_then(family, "base", *make.load_base(FOLDER, family))


@pytest.mark.parametrize(("family", "name"), CHECKPOINTS)
def test_a_checkpoint_gives_the_same_logits_and_hypotheses(family, name):
    same_as_then(family, name, *make.load_checkpoint(FOLDER, family, FOLDER / family / f"{name}.pt"))


@pytest.mark.parametrize(("family", "name"), EXPORTS)
def test_an_imported_export_gives_the_same_logits_and_hypotheses(family, name, tmp_path):
    export, imported = FOLDER / family / f"{name}.safetensors", tmp_path / "imported.pt"
    main(["import", str(export), str(imported), "--base-model", str(FOLDER / family / "base")])
    same_as_then(family, name, *make.load_checkpoint(FOLDER, family, imported))


@pytest.mark.parametrize(("family", "name"), EXPORTS)
def test_a_checkpoint_is_exported_to_the_same_bytes(family, name, tmp_path):
    main(["export", str(FOLDER / family / f"{name}.pt"), str(tmp_path / "again.safetensors")])
    assert (tmp_path / "again.safetensors").read_bytes() == (FOLDER / family / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_api_generates_the_same_texts(family):
    expected = json.loads((FOLDER / family / "expected.json").read_text())["answers"]
    assert make.answers(FOLDER, family) == expected
    assert len({tuple(texts) for texts in expected.values()}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_api_takes_a_prefix_from_its_checkpoint_too(family):
    expected = json.loads((FOLDER / family / "expected.json").read_text())["answers"]
    model = api.load(FOLDER / family / "base")
    model.add("table", FOLDER / family / "prefix_mlp.pt")
    assert model.generate(make.TEXTS, "table", **make.SEARCH) == expected["prefix_mlp"]


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_described_with_the_same_fields(family):
    expected = json.loads((FOLDER / family / "expected.json").read_text())["descriptions"]
    found = {path.relative_to(FOLDER / family).as_posix(): make.describe(path) for path in make.written(FOLDER, family)}
    assert found == expected


def test_a_training_is_resumed(tmp_path):
    """For one update more, after which its prefix is the one that the version which began it ended with."""
    family, name = make.RESUMED
    method, more = make.METHODS[family][name]
    make.command(
        *("train", *make.training(FOLDER, family, method, make.UPDATES + 1), *more.split()),
        *("--user-dir", REPOSITORY / "fairseq_prefix"),
        *("--restore-file", FOLDER / family / f"{name}.pt", "--save-dir", tmp_path / "saved"),
    )
    ended = tmp_path / "saved" / "checkpoint_last.pt"
    assert make.describe(ended)["updates"] == make.UPDATES + 1
    main(["export", str(ended), str(tmp_path / "ended.safetensors")])
    expected, start = (load_file(FOLDER / family / f"{file}.safetensors") for file in ("resumed", name))
    for site, table in load_file(tmp_path / "ended.safetensors").items():
        torch.testing.assert_close(table, expected[site], atol=1e-5, rtol=0)
        assert not torch.allclose(table, start[site], atol=1e-3)
