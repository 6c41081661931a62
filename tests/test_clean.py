"""`make clean` and `make clean-trained`: what is dear is deleted only by who says so."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import clean
import pytest
from common import UserError
from conftest import REPOSITORY, SCRIPTS

TREE = ("data/e2e/train.jsonl", "bases/b/model.pt", "logs/a.log", "results/e2e/bleu.txt", ".snakemake/metadata/a")
RUNS = ("runs/e2e/b/prefix/1", "runs/e2e/b/prefix/2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*TREE, "resources/e2e/a.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    for run in RUNS:
        Path(run).mkdir(parents=True)
        (Path(run) / "run.json").write_text(json.dumps({"seconds": 5400}))
    kept = Path(RUNS[0]) / ".trained" / "run.json"  # a second name
    kept.parent.mkdir()
    kept.hardlink_to(Path(RUNS[0]) / "run.json")
    return tmp_path


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_make_clean_deletes_only_what_is_made_again_in_seconds(folder):
    subprocess.run(["make", "-f", REPOSITORY / "Makefile", "clean"], check=True)
    assert left(folder) == {"data", "bases", "logs", ".snakemake", "resources", "runs"}


def run(**options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPTS / "clean.py"], stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("answer", "deleted"), [("yes\n", True), ("y\n", False), ("\n", False)])
def test_what_is_dear_is_deleted_after_a_question_that_says_what_it_is(folder, answer, deleted):
    master, slave = pty.openpty()
    os.write(master, answer.encode())
    result = run(stdin=slave, stderr=subprocess.PIPE)
    os.close(slave)
    os.close(master)
    assert result.stdout.startswith("to be deleted: data, bases, runs, results, logs, .snakemake\n")
    assert "they hold 2 runs, 1 bases, 3.0 hours of training; 0.00 GB in all\n" in result.stdout
    assert (result.returncode == 0) == deleted == (left(folder) == {"resources"})


def test_nobody_is_asked_where_there_is_no_terminal(folder):
    before = left(folder)
    result = run(stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert result.returncode == 1 and left(folder) == before
    assert result.stderr.startswith("error: nothing was deleted: there is no terminal to ask on")
    clean.main(["--yes"])
    assert left(folder) == {"resources"}


def test_what_is_behind_a_link_stays(folder, tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared") / "bases"
    Path("bases").rename(shared)
    Path("bases").symlink_to(shared)
    clean.main(["--yes"])
    assert left(folder) == {"resources"} and (shared / "b" / "model.pt").exists()


def test_nothing_is_deleted_under_a_running_workflow(folder, monkeypatch):
    monkeypatch.setattr(clean, "refuse_if_living", lambda: (_ for _ in ()).throw(UserError("it is running")))
    with pytest.raises(UserError, match="it is running"):
        clean.main(["--yes"])
    assert "runs" in left(folder)
