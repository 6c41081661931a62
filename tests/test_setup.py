"""The set-up of the environment: one at a time, in any order, and what `pip check` finds in it."""

import fcntl
import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "workflow"))
import environment

PYTHON = """#!/bin/sh
case "$*" in
    *"-m pip install"* | *environment.py*) echo "$*" >> installed ;;
    "-c import pip") ;;
    -) script=$(cat); case $script in *needed*) exit 1 ;; *) echo "$script" | {python} - ;; esac ;;
    *) exec {python} "$@" ;;
esac
"""
METADATA = """Metadata-Version: 2.4
Name: fairseq-fixed
Version: 0.12.3.1
Requires-Dist: torch>=1.13
Requires-Dist: torchaudio>=0.8.0
Requires-Dist: torchaudio-extras

Needs torchaudio.
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with the set-up's files and an environment whose pip only notes what it is asked for."""
    for name in ("workflow/setup.sh", "setup.py", *(path.name for path in REPOSITORY.glob("requirements*.lock"))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "workflow" / "environment.py").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text(PYTHON.format(python=sys.executable))
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    return tmp_path


def start(clone: Path, kind: str) -> subprocess.Popen:
    setup = [clone / "workflow" / "setup.sh", kind]
    return subprocess.Popen(setup, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")


def test_a_second_set_up_waits_and_says_so(clone):
    with open(clone / ".venv.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = start(clone, "scores")
        assert waiting.stdout.readline() == "Another set-up runs in this folder; waiting until it ends\n"
        assert not (clone / "installed").exists()
    assert waiting.wait() == 0, waiting.stdout.read()
    installed = (clone / "installed").read_text()
    assert "requirements-scores.lock" in installed and installed.endswith("workflow/environment.py\n")


def test_a_set_up_that_is_done_is_not_done_again_after_any_other(clone):
    kinds = ("scores", "test", "run", "scores", "test")
    for kind in kinds:
        process = start(clone, kind)
        assert process.wait() == 0, process.stdout.read()
    installed = (clone / "installed").read_text()
    assert [installed.count(f"requirements-{kind}.lock") for kind in ("scores", "test")] == [1, 1]


def test_after_a_kill_no_lock_is_left_behind(clone):
    os.mkfifo(clone / "installed")  # pip waits here
    process = start(clone, "run")
    with open(clone / "installed"):
        process.kill()
        process.wait()
    (clone / "installed").unlink()
    again = start(clone, "run")
    assert again.wait() == 0 and "Installing the project itself" in again.stdout.read()


def package(folder: Path) -> Distribution:
    info = folder / "fairseq_fixed-0.12.3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    lines = [f"{info.name}/METADATA,sha256=old,1", f"{info.name}/RECORD,,", "fairseq/__init__.py,sha256=kept,2"]
    (info / "RECORD").write_text("\n".join(lines) + "\n")
    return Distribution.at(info)


def test_a_requirement_that_is_left_out_is_gone_from_the_metadata_and_nothing_else(tmp_path):
    installed = package(tmp_path)
    for _ in range(2):
        environment.drop_requirement(installed, "torchaudio")
    assert installed.requires == ["torch>=1.13", "torchaudio-extras"]
    assert installed.read_text("METADATA") == METADATA.replace("Requires-Dist: torchaudio>=0.8.0\n", "")
    first, *others = installed.read_text("RECORD").splitlines()
    data = (tmp_path / "fairseq_fixed-0.12.3.1.dist-info" / "METADATA").read_bytes()
    digest = environment.base64.urlsafe_b64encode(environment.hashlib.sha256(data).digest()).decode().rstrip("=")
    assert first == f"fairseq_fixed-0.12.3.1.dist-info/METADATA,sha256={digest},{len(data)}"
    assert others == ["fairseq_fixed-0.12.3.1.dist-info/RECORD,,", "fairseq/__init__.py,sha256=kept,2"]


def test_what_a_user_has_added_does_not_make_the_set_up_fail():
    report = (
        "pyOpenSSL 25.0 requires cryptography, which is not installed.\n"
        "fairseq-fixed 0.12.3.1 has requirement hydra-core==1.3.2, but you have hydra-core 1.0.7.\n"
        "rouge-score 0.1.2 requires six, which is not installed.\n"
    )
    ours, others = environment.sorted_findings(report, environment.locked_packages())
    assert [line.split()[0] for line in ours] == ["fairseq-fixed", "rouge-score"]
    assert [line.split()[0] for line in others] == ["pyOpenSSL"]
    assert environment.sorted_findings("No broken requirements found.\n", set()) == ([], [])


@pytest.mark.parametrize("loads", [True, False])
def test_a_torchaudio_that_cannot_be_imported_is_removed(monkeypatch, loads):
    calls = []

    def python(*arguments):
        calls.append(arguments)
        failed = arguments == ("-c", "import torchaudio") and not loads
        return subprocess.CompletedProcess(arguments, int(failed), stdout="")

    monkeypatch.setattr(environment, "LEFT_OUT", {})
    monkeypatch.setattr(environment, "python", python)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: name == "torchaudio")
    environment.main()
    assert (("-m", "pip", "uninstall", "--yes", "--quiet", "torchaudio") in calls) is not loads


def test_the_lock_file_has_no_torchaudio():
    assert "torchaudio" not in environment.locked_packages()
