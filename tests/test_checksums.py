"""Checksums around Snakemake's jobs: what a stage reads is what another wrote."""

from types import SimpleNamespace

import checksums
import pytest
from snakemake.exceptions import WorkflowError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def job(inputs, outputs, text="made\n"):
    """Run a job that writes its outputs, as Snakemake runs one of a rule."""

    def run(input, output, *others):
        assert others == ("params",)
        for path in output:
            with open(path, "w") as file:
                file.write(text)

    rule = SimpleNamespace(run_func=run)
    checksums.check_files(SimpleNamespace(rules=[rule, SimpleNamespace(run_func=None)]))
    rule.run_func(inputs, outputs, "params")


@pytest.mark.parametrize("content", ["", "mad", "nade\n"])
def test_a_file_that_changed_after_it_was_made_is_refused(folder, content):
    job([], ["data/made.txt"])
    job(["data/made.txt"], ["data/next.txt"])
    (folder / "data/made.txt").write_text(content)
    with pytest.raises(
        WorkflowError, match=r"^error: data/made\.txt is damaged or was changed: .* Delete it and run again"
    ):
        job(["data/made.txt"], ["data/after.txt"])
    assert not (folder / "data/after.txt").exists()
    job([], ["data/made.txt"])
    job(["data/made.txt"], ["data/after.txt"])


def test_a_change_that_is_meant_is_taken_when_the_note_is_gone(folder):
    job([], ["data/made.txt"])
    (folder / "data/made.txt").write_text("by hand")
    (folder / "data" / checksums.NOTES / "made.txt").unlink()
    job(["data/made.txt"], ["data/next.txt"])


def test_files_laid_in_place_and_files_elsewhere_are_taken_as_they_are(folder, tmp_path_factory):
    (folder / "data/laid.txt").write_text("laid")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "script.py"
    elsewhere.write_text("x")
    job(["data/laid.txt", str(elsewhere), "../outside.txt"], ["data/made.txt"])
    assert [path.name for path in folder.rglob(f"{checksums.NOTES}/**/*")] == ["made.txt"]


def test_a_job_that_fails_leaves_no_note_of_an_earlier_one(folder):
    job([], ["data/made.txt"])
    with pytest.raises(FileNotFoundError):
        job([], ["data/made.txt", "missing/folder.txt"])
    assert not (folder / "data" / checksums.NOTES / "made.txt").exists()


def test_a_file_is_read_once_while_it_stays_the_same(folder, monkeypatch):
    read, sha256_file = [], checksums.sha256_file
    monkeypatch.setattr(checksums, "sha256_file", lambda file: read.append(file) or sha256_file(file))
    job([], ["data/made.txt"])
    for name in ("one", "two"):
        job(["data/made.txt"], [f"data/{name}.txt"])
    assert read.count("data/made.txt") == 1


def test_a_full_disk_does_not_cost_the_file(folder, monkeypatch):
    monkeypatch.setattr(checksums, "NOTES", "made.txt")  # no folder can be made below a file
    job([], ["data/made.txt"])
    assert (folder / "data/made.txt").read_text() == "made\n"
