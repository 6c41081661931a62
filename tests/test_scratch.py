"""Checkpoints on a local disk: what reaches the shared folder, when, and that trainings end as without it."""

import pytest
from common import UserError
from scratch import scratch
from test_rank import train
from test_training import world  # noqa: F401 -- a fixture

SAVED = "| INFO | fairseq.checkpoint_utils | Saved checkpoint x/checkpoint_last.pt (epoch 1 @ 2 updates, score None)"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(the shared folder of a training, the local disk)"""
    for name in ("shared", "local"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PREFIX_SCRATCH", str(tmp_path / "local"))
    return tmp_path / "shared", tmp_path / "local"


def test_what_was_saved_is_shared_as_soon_as_the_log_says_so(folders):
    shared, local = folders
    with scratch(shared) as place:
        assert place.folder.is_relative_to(local)
        (place.folder / "checkpoint_last.pt").write_text("half")
        place.follow("| INFO | train_inner | {}")
        assert not list(shared.iterdir())
        place.follow(SAVED)
        assert (shared / "checkpoint_last.pt").read_text() == "half"
        (place.folder / "checkpoint_last.pt").write_text("whole")
        (place.folder / "checkpoint_best.pt").write_text("best")
        (place.folder / "checkpoint_1_2.pt").write_text("not needed again")
    assert {path.name: path.read_text() for path in shared.iterdir()} == {
        "checkpoint_last.pt": "whole",
        "checkpoint_best.pt": "best",
    }
    assert not list(local.iterdir())


def test_the_disk_may_be_below_the_home_folder(folders, monkeypatch):
    shared, local = folders
    monkeypatch.setenv("HOME", str(local.parent))
    monkeypatch.setenv("PREFIX_SCRATCH", f"~/{local.name}")
    with scratch(shared) as place:
        assert place.folder.parent == local


def test_a_training_goes_on_from_what_is_shared_and_not_from_what_was_left_on_the_disk(folders):
    shared, _ = folders
    (shared / "checkpoint_last.pt").write_text("of another node")
    with scratch(shared) as place:
        left = place.folder
    left.mkdir()
    (left / "checkpoint_last.pt").write_text("older")
    with scratch(shared) as place:
        assert place.folder == left and (left / "checkpoint_last.pt").read_text() == "of another node"


def test_without_the_variable_there_is_one_folder(folders, monkeypatch):
    monkeypatch.delenv("PREFIX_SCRATCH")
    shared, _ = folders
    (shared / "checkpoint_last.pt").write_text("kept")
    with scratch(shared) as place:
        assert place.folder == shared
        place.follow(SAVED)
    assert (shared / "checkpoint_last.pt").read_text() == "kept"


def test_across_nodes_the_shared_folder_is_the_one_that_all_processes_see(folders, capsys):
    shared, local = folders
    with scratch(shared, nodes=2) as place:
        assert place.folder == shared and not list(local.iterdir())
    assert "PREFIX_SCRATCH is for trainings on one node" in capsys.readouterr().err


def test_a_disk_that_is_not_there_is_one_sentence(folders, monkeypatch):
    monkeypatch.setenv("PREFIX_SCRATCH", "/nowhere")
    with (
        pytest.raises(UserError, match="PREFIX_SCRATCH=/nowhere: checkpoints cannot be written there"),
        scratch(folders[0]),
    ):
        pass


@pytest.mark.slow
def test_a_training_ends_the_same_with_it(world, tmp_path, folders, monkeypatch):  # noqa: F811
    assert train(world, tmp_path / "with").returncode == 0
    assert f"--save-dir {folders[1]}" in (tmp_path / "with" / "train.log").read_text()
    monkeypatch.delenv("PREFIX_SCRATCH")
    assert train(world, tmp_path / "without").returncode == 0
    logged = [(tmp_path / name / "curve.tsv").read_text().splitlines() for name in ("with", "without")]
    curves = [[line.rpartition("\t")[0] for line in lines] for lines in logged]  # without the speed
    assert len(curves[0]) > 3 and curves[0] == curves[1]
    assert not list(folders[1].iterdir())
