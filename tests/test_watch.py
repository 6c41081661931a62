"""The display of a run, with a workflow of a few lines: in a log file, in a terminal, and with Snakemake's options."""

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SCRIPTS
from journal import Job
from watch import Screen

SNAKEFILE = """
import sys
sys.path.append({scripts!r})
from watch import attach
attach(workflow)

rule all:
    input: "b.txt"

rule first:
    output: "a.txt"
    log: "logs/a.log"
    message: "Making a"
    shell:
        "(echo common noise; echo 'notice: worth seeing'; echo 'progress: half of it {long}'; {command}) 2>&1"
        " | tee {{log}} >&2; touch {{output}}"

rule second:
    input: "a.txt"
    output: "b.txt"
    log: "logs/b.log"
    message: "Making b"
    shell: "touch {{output}}"
"""

DAMAGED = '{"event": "plan", "time": 1, "jobs": [], "history": [["first", {}, "long"]]}'


@pytest.fixture
def folder(tmp_path):
    write_snakefile(tmp_path, "sleep 1.5")
    return tmp_path


def write_snakefile(folder: Path, command: str) -> None:
    (folder / "Snakefile").write_text(
        textwrap.dedent(SNAKEFILE.format(scripts=str(SCRIPTS), command=command, long="x" * 90))
    )


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "1", *options]


def in_a_file(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*options), cwd=folder, capture_output=True, text=True)


def in_a_terminal(folder: Path, *options: str) -> tuple[str, str, int]:
    """(all that was written to a terminal, what one sees of it in the end, exit status)."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "50"}
    process = subprocess.Popen(command(*options), cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    while select.select([master], [], [], 60)[0]:
        try:
            data = os.read(master, 1 << 16)
        except OSError:  # all have closed it
            break
        written += data
    os.close(master)
    text = written.decode()
    return text, seen(text), process.wait()


def seen(text: str) -> str:
    """What a terminal shows after these bytes, as far as the display uses it: lines, up and clear, colours."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("F") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            lines[row:] = [""]
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return "\n".join(lines)


@contextlib.contextmanager
def screen() -> Iterator[tuple[Screen, Callable[..., str]]]:
    """A Screen on a terminal of 50 columns, and a function that closes it and returns all that was written."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 50))
    usual = os.dup(2)
    os.dup2(slave, 2)
    made = Screen(sys.__stderr__)

    def written(**options: bool) -> str:
        made.close(**options)
        os.write(slave, b"END")
        data = b""
        while not data.endswith(b"END"):
            data += os.read(master, 1 << 16)
        return data.decode()

    try:
        yield made, written
    finally:
        made.close()
        os.dup2(usual, 2)
        for descriptor in (master, slave, usual):
            os.close(descriptor)


def test_the_bars_are_as_wide_as_the_terminal_that_they_are_in(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # of another terminal
    job = Job(1, "train", "x" * 90, {}, [], [], [], 1, 0, True, begin=time.time())
    with screen() as (made, written):
        lines = [*made.each([job]), "y" * 90]
        made.show(lines)
        made.show(lines)
        text = written()
    assert [len(line) for line in lines] == [49, 90]
    assert "\x1b[2F" in text and max(map(len, re.findall(r"[xy0:. ]+", text))) == 49


def test_warnings_and_notices_of_jobs_are_shown_and_what_ends_a_job_is_kept_for_the_end():
    shown = [
        *["ERROR - no room", "Warning: old", "notice: going on from it", "FATAL: gone", "notice: up \x1b[A and\ton"],
        "/a b/torch/module.py:3: UserWarning: deprecated",
        "2026-01-01 00:00:00 | WARNING | fairseq.tasks | no such symbol",
        "2026-01-01 00:00:00 | ERROR | fairseq.tasks | none",
    ]
    unshown = [
        "2026-01-01 00:00:00 | INFO | fairseq | no error",
        "noise\x1b[2J",
        "module.py:3: a warning",
        "error: bad",
    ]
    with screen() as (_, written):
        os.write(2, "\n".join([*shown, "progress: half", "bar\r", *unshown, "notice: the last"]).encode())
        os.write(2, b" one\n")
        lines = written().split("\r\n")
    assert lines == [*shown[:4], r"notice: up \x1b[A and      on", *shown[5:], "notice: the last one", "END"]


def test_what_was_not_shown_is_kept_and_told_by_one_thread_at_a_time():
    held = []

    class Watched(deque):
        def append(self, item):
            held.append(made._lock._is_owned())
            super().append(item)

        def __iter__(self):
            held.append(made._lock._is_owned())
            return super().__iter__()

    with screen() as (made, written):
        made._unshown = Watched()
        os.write(2, b"noise\n")
        written()
        assert made.said(0) == "  What was written meanwhile:\n    noise" and not made.said(0)
    assert held == [True] * 3


@pytest.mark.parametrize("orderly", [True, False])
def test_after_a_crash_what_was_not_shown_is_shown_in_the_end(orderly):
    with screen() as (_, written):
        os.write(2, b"Exception in thread 3:\nKeyError: \x1b[2J\nno end")
        text = written(orderly=orderly)
    assert ("    Exception in thread 3:\r\n    KeyError: \\x1b[2J\r\n" in text) is not orderly
    assert "no end\r\n" in text


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "logs" / "workflow.jsonl").read_text().splitlines()]


def test_in_a_log_file_each_job_has_a_line_as_it_begins_and_one_as_it_ends(folder):
    (folder / "logs").mkdir()
    (folder / "logs" / "workflow.jsonl").write_text(DAMAGED)  # of an earlier run, which is no reason to fail
    result = in_a_file(folder)
    assert result.returncode == 0, result.stderr
    lines = [re.sub(r"^[\d:]+ ", "TIME ", line) for line in result.stderr.splitlines() if re.match(r"[\d:]+  ", line)]
    assert [" ".join(line.split()) for line in lines] == [
        "TIME start Making a",
        *["TIME 1/3 done 0:02 Making a", "TIME start Making b", "TIME 2/3 done 0:00 Making b"],
        "TIME 3/3 done 0:00 rule all",  # the number of jobs is the one of Snakemake's table
    ]
    assert not re.search(r"[\x1b\r]", result.stderr)
    assert "Finished jobid" not in result.stderr and "common noise" in result.stderr
    (log,) = (folder / ".snakemake" / "log").iterdir()
    assert "Finished jobid: 1" in log.read_text()  # Snakemake's own log is what it always was
    assert [(entry["event"], entry.get("id")) for entry in journal(folder)[1:]] == [
        *[("start", 1 + second) if begin else ("done", 1 + second) for second in (1, 0) for begin in (True, False)],
        *[("start", 0), ("done", 0), ("end", None)],
    ]


def test_in_a_terminal_bars_are_drawn_and_leave_nothing_behind(folder):
    written, screen, status = in_a_terminal(folder)
    assert status == 0
    assert "] 0 of 3 jobs done, 1 running, 0:01 elapsed, time left unknown" in written
    assert re.search(r"^  Making a: half of it x+\r$", written, re.MULTILINE)
    assert max(len(line) for line in re.findall(r"^  Making a: .*", written, re.MULTILINE)) <= 100  # of a terminal
    assert "jobs done" not in screen and "half of it" not in screen
    assert len(re.findall(r"start +Making [ab]", screen)) == len(re.findall(r"done +\d:\d\d +Making [ab]", screen)) == 2
    assert "notice: worth seeing" in screen and "common noise" not in screen
    assert (
        "0 of 3 jobs done, 1 running, 0:01 elapsed, about 0:0" in in_a_terminal(folder, "--forceall")[0]
    )  # from the journal


@pytest.mark.parametrize("terminal", [True, False])
def test_the_reason_of_a_failure_comes_last_and_not_wrapped_in_commands(folder, terminal):
    write_snakefile(folder, "echo error: the disk is full; false")
    if terminal:
        _, screen, status = in_a_terminal(folder)
    else:
        result = in_a_file(folder)
        screen, status = result.stderr, result.returncode
    assert status == 1
    assert re.search(r"failed +\d:\d\d +Making a; its log: logs/a.log$", screen, re.MULTILINE)
    assert screen.rstrip().splitlines()[-1] == "failed: Making a: the disk is full"
    assert screen.count("the disk is full") == (1 if terminal else 2)  # in a file, where the job itself writes, too
    assert "Error in rule first" not in screen and "Command '" not in screen and "common noise" in screen
    (failure,) = (entry for entry in journal(folder) if entry["event"] == "failed")
    assert failure["reason"] == "the disk is full"


def test_the_reason_may_be_a_check_around_the_job_and_verbose_shows_all(folder):
    check = "def damaged(*_): raise WorkflowError('error: a.txt is damaged')"
    with open(folder / "Snakefile", "a") as file:
        file.write(f"\nfrom snakemake.exceptions import WorkflowError\n{check}\nfor each in workflow.rules:\n")
        file.write("    each.run_func = damaged\n")
    assert in_a_file(folder).stderr.rstrip().splitlines()[-1] == "failed: Making a: a.txt is damaged"
    assert "Error in rule first" in in_a_file(folder, "--verbose").stderr


# Until Snakemake has taken notice of the signal.
INTERRUPTED = "kill -INT $PPID; grep -qm1 Terminating < <(tail --pid=$PPID -n +1 -f .snakemake/log/*.log 2> /dev/null)"


def test_after_an_interruption_what_jobs_wrote_is_shown(folder):
    write_snakefile(folder, INTERRUPTED)
    _, screen, status = in_a_terminal(folder)
    assert status != 0 and "    common noise" in screen.splitlines()[-1]


def test_snakemakes_options_for_what_is_shown_still_hold(folder):
    result = in_a_file(folder, "--dry-run")
    assert "Job 2: Making a" in result.stdout and "Making a" not in result.stderr
    assert not (folder / "logs").exists()
    assert in_a_file(folder, "--quiet", "all").stderr.count("\n") == 3  # what the job itself writes
    output = in_a_file(folder, "--printshellcmds", "--forceall", "--quiet", "progress").stderr
    assert "touch b.txt" in output and "start" in output and "done" not in output
    assert re.search(r"start +Making a\n  Reason: Forced execution", in_a_file(folder, "--forceall").stderr)
    assert not journal(folder)[0]["touched"]
    in_a_file(folder, "--touch", "--forceall")
    assert journal(folder)[0]["touched"]
    output = in_a_file(folder, "--verbose", "--forceall").stderr
    assert "Select jobs to execute..." in output and "of 2 steps" not in output.partition("Making a")[0]
