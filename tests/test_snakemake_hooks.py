"""What the workflow changes of Snakemake: lost where Snakemake has another name for it, and nothing else with it."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import scheduler
import snakemake.persistence
import snakemake_hooks
import unlock
import watch
from common import UserError
from conftest import SCRIPTS
from snakemake.exceptions import WorkflowError
from snakemake.persistence import PersistenceBase
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake_hooks import install
from snakemake_interface_executor_plugins.settings import ExecMode
from snakemake_interface_logger_plugins.common import LogEvent

SNAKEFILE = """
import sys, types
sys.path.append({scripts!r})
from snakemake_hooks import AT_START, OF_RULES, install
modules = {{name: sys.modules[name] for name in {renamed!r}}}
sys.modules |= dict.fromkeys(modules, types.ModuleType("of another version"))
install(workflow, AT_START)
sys.modules |= modules

rule all:
    output: "data/a.txt"
    message: "Making a"
    shell: "{command}; touch {{output}}"

install(workflow, OF_RULES)
"""
NOTICE = "differs from the one that requirements.lock names"


def run_snakemake(folder: Path, *options: str, renamed: list[str] = (), command: str = "true", **options_of_run):
    text = SNAKEFILE.format(scripts=str(SCRIPTS), renamed=renamed, command=command)
    (folder / "Snakefile").write_text(text)
    command = [sys.executable, "-m", "snakemake", *(options or ("--cores", "1"))]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, **options_of_run)


def test_with_the_tested_snakemake_all_hooks_are_installed(tmp_path):
    result = run_snakemake(tmp_path)
    assert result.returncode == 0 and NOTICE not in result.stderr
    assert "1/1  done" in result.stderr and (tmp_path / "data/.sha256/a.txt").exists()


def test_what_snakemake_renames_is_lost_and_the_workflow_runs(tmp_path):
    modules = ["snakemake.logging", "snakemake.scheduling.job_scheduler", "snakemake.persistence"]
    result = run_snakemake(tmp_path, renamed=modules)
    assert (tmp_path / "data" / "a.txt").exists(), result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count(NOTICE) == 5  # all but the one about GPUs
    for loss in ("Snakemake's own display is shown", "not learn of signals", "workflow/scripts/unlock.py"):
        assert loss in result.stderr
    assert "Finished jobid: 0" in result.stderr and (tmp_path / "data/.sha256/a.txt").exists()


@pytest.mark.parametrize("error", [ImportError, AttributeError, TypeError, KeyError])
def test_a_hook_that_does_not_fit_leaves_the_next_one_installed(monkeypatch, capsys, error):
    installed = []
    module = SimpleNamespace(first=lambda _: (_ for _ in ()).throw(error("renamed")), second=installed.append)
    monkeypatch.setitem(sys.modules, "hooked", module)
    install("workflow", [("hooked", name, False, f"{name} lost") for name in ("first", "missing", "second")])
    assert installed == ["workflow"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["first lost", "missing lost"]


def test_methods_are_replaced_in_tested_versions_only(monkeypatch, capsys):
    installed = []
    monkeypatch.setitem(sys.modules, "hooked", SimpleNamespace(first=installed.append))
    monkeypatch.setattr(snakemake_hooks, "version", lambda _: "9.28.0")
    for replaces_method in (True, False):
        install(replaces_method, [("hooked", "first", replaces_method, "lost")])
    assert installed == [False] and "9.28.0" in capsys.readouterr().err


def test_what_stops_a_run_on_purpose_does_so(monkeypatch):
    def refuse(_workflow):
        raise WorkflowError("no job can run")

    monkeypatch.setitem(sys.modules, "hooked", SimpleNamespace(refuse=refuse))
    with pytest.raises(WorkflowError, match="no job can run"):
        install(None, [("hooked", "refuse", False, "lost")])


@pytest.mark.parametrize(
    ("owner", "name", "hook"),
    [
        (JobScheduler, "_schedule_reevalutation", scheduler.look_once_at_a_time),
        (PersistenceBase, "locked", unlock.unlock_after_a_kill),
        (PersistenceBase, "lock", unlock.unlock_after_a_kill),
    ],
)
def test_nothing_is_replaced_where_a_name_is_missing(monkeypatch, owner, name, hook):
    monkeypatch.delattr(owner, name)
    before = dict(vars(owner))
    with pytest.raises(AttributeError):
        hook(None)
    assert dict(vars(owner)) == before


def test_a_display_that_cannot_know_the_plan_leaves_the_words_to_snakemake(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    usual = SimpleNamespace(
        stream=sys.stderr, formatter=SimpleNamespace(quiet=None), filter=lambda _: True, is_tty=False,
        format=lambda record: record.msg, decorate=lambda record, text: text,
    )  # fmt: skip
    display = watch.Display(SimpleNamespace(), usual)
    for kind, words in ((LogEvent.RUN_INFO, "2 jobs"), (LogEvent.JOB_INFO, "rule a:"), (LogEvent.JOB_FINISHED, "Done")):
        record = logging.LogRecord("snakemake", logging.INFO, "", 0, words, (), None)
        record.event, record.jobid, record.job_id = kind, 1, 1
        display.emit(record)
    display.close()
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("notice: no progress is shown for this version of Snakemake")
    assert rest == ["2 jobs", "rule a:", "Done"] and not (tmp_path / "logs").exists()


@pytest.mark.parametrize(("cores", "nodes"), [(0, None), (None, 0), (-1, None)])
def test_options_with_which_no_job_can_run_are_refused_before_a_run(cores, nodes):
    workflow = SimpleNamespace(
        exec_mode=ExecMode.DEFAULT,
        output_settings=SimpleNamespace(dryrun=False),
        resource_settings=SimpleNamespace(cores=cores, nodes=nodes),
    )
    with pytest.raises(WorkflowError, match=f"--{'jobs' if nodes == 0 else 'cores'} (0|-1): no job can run"):
        scheduler.refuse_what_cannot_run(workflow)
    workflow.output_settings.dryrun = True
    scheduler.refuse_what_cannot_run(workflow)


def test_snakemake_without_cores_ends_with_a_sentence(tmp_path):
    result = run_snakemake(tmp_path, "--cores", "0", timeout=100)
    assert result.returncode == 1 and "--cores 0: no job can run; expected a number above 0" in result.stderr
    assert "Traceback" not in result.stderr


def kill(folder: Path) -> int:
    """Have a Snakemake in this folder killed while it runs its job; its process id."""
    result = run_snakemake(folder, command="echo $PPID > pid; kill -9 $PPID")
    assert result.returncode == -9 and list((folder / ".snakemake" / "locks").iterdir())
    return int((folder / "pid").read_text())


def test_after_a_kill_the_same_command_resumes(tmp_path):
    kill(tmp_path)
    result = run_snakemake(tmp_path, "--cores", "1", "--rerun-incomplete")
    assert result.returncode == 0, result.stderr
    assert "notice: taking away the lock of a Snakemake that was killed" in result.stderr
    for folder, rest in (("locks", []), ("owners", ["lock"])):
        assert [path.name for path in (tmp_path / ".snakemake" / folder).glob("*")] == rest


def test_a_lock_whose_owner_lives_stays(tmp_path):
    (tmp_path / "go").touch()
    second = f"{sys.executable} -m snakemake --cores 1 2> second.log || true"
    result = run_snakemake(tmp_path, command=second)
    assert result.returncode == 0, result.stderr
    error = (tmp_path / "second.log").read_text()
    assert "Snakemake is running in this directory already (process" in error and "Traceback" not in error
    assert "taking away the lock" not in error


def test_a_lock_of_another_machine_stays_until_it_is_released_there(locked):
    (note,) = unlock.OWNERS.glob("*.json")
    note.write_text(note.read_text().replace(os.uname().nodename, "elsewhere"))
    with pytest.raises(UserError, match=f"locked this directory on elsewhere .* delete {note} and run it here"):
        unlock.main([])
    assert list(unlock.LOCKS.iterdir())
    note.unlink()
    unlock.main([])
    assert not list(unlock.LOCKS.iterdir())


def test_a_later_process_with_the_number_of_a_dead_owner_is_not_taken_for_it(locked):
    (note,) = unlock.OWNERS.glob("*.json")
    owner = json.loads(note.read_text())
    with pytest.raises(UserError, match=f"running in this directory already .process {os.getpid()}."):
        unlock.main([])
    note.write_text(json.dumps(owner | {"began": "1" + owner["began"]}))
    unlock.main([])
    assert not list(unlock.LOCKS.iterdir()) and not note.exists()


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """In a folder that this process has locked by way of a stand-in for Snakemake's lock."""

    class Persistence:
        locked = False

        @contextlib.contextmanager
        def lock(self):
            unlock.LOCKS.mkdir()
            (unlock.LOCKS / "0.output.lock").touch()
            yield

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(snakemake.persistence, "PersistenceBase", Persistence)
    unlock.unlock_after_a_kill(None)
    with Persistence().lock():
        yield
