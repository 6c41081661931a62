"""The display of a run, with a workflow of a few lines: in a log file, in a terminal, and with Snakemake's options."""

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


@pytest.fixture
def screen(monkeypatch):
    """A Screen on a terminal of 50 columns, and a function that closes it and returns all that was written."""
    monkeypatch.setenv("COLUMNS", "100")  # of another terminal
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 50))
    usual = os.dup(2)
    os.dup2(slave, 2)
    made = Screen(sys.stderr)

    def written(**options: bool) -> str:
        made.close(**options)
        os.write(slave, b"END")
        data = b""
        while not data.endswith(b"END"):
            data += os.read(master, 1 << 16)
        return data.decode()

    yield made, written
    made.close()
    os.dup2(usual, 2)
    for descriptor in (master, slave, usual):
        os.close(descriptor)


def test_the_bars_are_as_wide_as_the_terminal_that_they_are_in(screen):
    screen, written = screen
    job = Job(1, "train", "x" * 90, {}, [], [], [], 1, 0, True, begin=time.time())
    lines = [*screen.each([job]), "y" * 90]
    assert [len(line) for line in lines] == [49, 90]
    screen.show(lines)
    screen.show(lines)
    assert "\x1b[2F" in (text := written()) and max(map(len, re.findall(r"[xy0:. ]+", text))) == 49


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
        *["TIME 1/2 done 0:02 Making a", "TIME start Making b", "TIME 2/2 done 0:00 Making b"],
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
    assert "] 0 of 2 jobs done, 1 running, 0:01 elapsed, time left unknown" in written
    assert re.search(r"^  Making a: half of it x+\r$", written, re.MULTILINE)
    assert max(len(line) for line in re.findall(r"^  Making a: .*", written, re.MULTILINE)) <= 100  # of a terminal
    assert "jobs done" not in screen and "half of it" not in screen
    assert len(re.findall(r"start +Making [ab]", screen)) == len(re.findall(r"done +\d:\d\d +Making [ab]", screen)) == 2
    assert "notice: worth seeing" in screen and "common noise" not in screen
    assert (
        "0 of 2 jobs done, 1 running, 0:01 elapsed, about 0:0" in in_a_terminal(folder, "--forceall")[0]
    )  # from the journal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failure_is_one_line_with_its_reason_and_snakemakes_own_words(folder, terminal):
    write_snakefile(folder, "echo error: the disk is full; false")
    if terminal:
        _, screen, status = in_a_terminal(folder)
    else:
        result = in_a_file(folder)
        screen, status = result.stderr, result.returncode
    assert status == 1
    assert re.search(r"failed +\d:\d\d +Making a: the disk is full$", screen, re.MULTILINE)
    assert "Error in rule first:" in screen and "command exited with non-zero exit code" in screen
    assert "common noise" in screen
    (failure,) = (entry for entry in journal(folder) if entry["event"] == "failed")
    assert failure["reason"] == "the disk is full"


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
