"""What a person sees while Snakemake runs: a line as a job begins and ends, and at the bottom what is under way.

Takes the place of Snakemake's handler for the terminal, with the same filter (--quiet, --verbose ...), and words of its
own for the beginning and the end of jobs; all other messages are Snakemake's, and so is its log file. In a terminal
there is one writer: what jobs write to stderr comes here through a pipe and goes above the bars. Elsewhere there are
plain lines, and now and then one that says how far everything is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path

from common import printable
from journal import ALIKE, Job, Journal, Run, durations_so_far, event, reason_of_failure, summary
from snakemake.exceptions import WorkflowError
from snakemake.logging import ColorizingTextHandler, is_quiet_about, logger
from snakemake_interface_executor_plugins.settings import ExecMode
from snakemake_interface_logger_plugins.common import LogEvent
from state import PROGRESS_LINE, clock

PLAN = "PREFIX_PLAN"  # the environment variable that names the file for the plan of a dry run (status.py)
REFRESH_SECONDS = 1.0
# What Snakemake says besides between the jobs; that they begin and end, and how many are done, is shown in other words.
UNSHOWN_EVENTS = (LogEvent.JOB_STARTED, LogEvent.PROGRESS)
REASON = "error: "  # how a job's last words begin; they are shown at the end of the run
UNSHOWN_MESSAGE = "Select jobs to execute..."
# Snakemake's words on the exception that ended a job: of a command, which says itself why, or of a check of ours.
OF_A_JOB = re.compile(r"^CalledProcessError in file |^error: (.+)", re.MULTILINE)


def attach(workflow) -> None:
    """Show the run of this workflow, in the process that plans it; others (jobs, --lint, --summary) are left alone."""
    if workflow.exec_mode != ExecMode.DEFAULT:
        return
    if workflow.output_settings.dryrun:
        if path := os.environ.get(PLAN):
            logger.addHandler(PlanWriter(workflow, Path(path)))
        return
    usual = next((handler for handler in logger.handlers if isinstance(handler, ColorizingTextHandler)), None)
    if usual is not None:  # there is none with --logger
        display = Display(workflow, usual)
        logger.removeHandler(usual)
        logger.addHandler(display)


def plan_of(workflow) -> dict:
    """What the journal begins with; jobs come after those that they need."""
    order = [job for level in workflow.dag.toposorted() for job in sorted(level, key=workflow.dag.jobid)]
    gpus = workflow.global_resources.get("gpu_jobs")
    nodes = workflow.nodes if workflow.nodes and workflow.nodes < sys.maxsize else None
    return event(
        "plan",
        host=socket.gethostname(),
        pid=os.getpid(),
        command=["snakemake", *sys.argv[1:]],
        cores=workflow._cores if workflow.local_exec else nodes,
        gpus=getattr(gpus, "value", gpus),
        touched=workflow.touch,
        history=durations_so_far(),
        jobs=[_planned(workflow, job) for job in order],
    )


def _planned(workflow, job) -> dict:
    dag = workflow.dag
    try:
        what = job.message or f"rule {job.rule.name}"
    except WorkflowError:  # of what is known only when it runs
        what = f"rule {job.rule.name}"
    return {
        "id": dag.jobid(job),
        "rule": job.rule.name,
        "what": what,
        "wildcards": {name: job.wildcards_dict[name] for name in ALIKE if name in job.wildcards_dict},
        "logs": [str(path) for path in job.log],
        "outputs": [str(path) for path in job.output],
        "needs": [dag.jobid(needed) for needed in dag.dependencies[job]],
        "cores": min(job.threads, workflow._cores or job.threads) if workflow.local_exec else 1,
        "gpus": int(job.resources.get("gpu_jobs", 0) or 0),
        "light": job.rule.norun or job.rule.name in workflow._localrules,
        "needed": bool(dag.needrun(job)),
    }


class PlanWriter(logging.Handler):
    """Of a dry run, only the plan, into a file."""

    def __init__(self, workflow, path: Path) -> None:
        super().__init__()
        self._workflow, self._path = workflow, path

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", None) == LogEvent.RUN_INFO or "Nothing to be done" in str(record.msg):
            self._path.write_text(json.dumps(plan_of(self._workflow)), encoding="utf-8")


class Display(logging.Handler):
    """Keeps the journal, writes the lines, and draws the bars if there is a terminal."""

    def __init__(self, workflow, usual: ColorizingTextHandler) -> None:
        super().__init__()
        self._workflow, self._usual = workflow, usual
        self._quiet = usual.formatter.quiet
        self._run: Run | None = None
        self._journal: Journal | None = None
        self._ended = threading.Event()
        self._error = ""  # of the job that Snakemake is about to report
        self._screen = Lines(usual.stream)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self._take(record)
            if text and self._usual.filter(record):
                self._screen.write(self._usual.decorate(record, text))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Called by Snakemake at its end, however that comes."""
        if not self._ended.is_set():
            self._ended.set()
            if self._journal:
                self._journal.write(event("end"))
            self._screen.close(orderly=self._run is None or self._run.is_complete())
            for job in self._run.of_state("failed") if self._run and not is_quiet_about(self._quiet, "all") else []:
                self._screen.write(f"failed: {job.what}: {job.reason}")
        super().close()

    def _take(self, record: logging.LogRecord) -> str:
        """Note what has happened; returns what is to be shown of it."""
        kind = getattr(record, "event", None)
        if kind == LogEvent.RUN_INFO:
            self._begin()
        elif kind == LogEvent.JOB_INFO:
            if not self._run:
                return self._usual.format(record)
            line = self._noted("start", record.jobid)
            return line if not line or is_quiet_about(self._quiet, "reason") else f"{line}\n  Reason: {record.reason}"
        elif kind == LogEvent.JOB_FINISHED:
            return self._noted("done", record.job_id) if self._run else self._usual.format(record)
        elif kind == LogEvent.JOB_ERROR:
            return self._failed(record)
        elif kind == LogEvent.ERROR and (found := OF_A_JOB.search(record.getMessage())):
            self._error = found[1] or ""
            return self._usual.format(record) if logger.level <= logging.DEBUG else ""
        elif self._run and (kind in UNSHOWN_EVENTS or record.msg == UNSHOWN_MESSAGE):
            return self._usual.format(record) if logger.level <= logging.DEBUG else ""
        return self._usual.format(record)

    def _begin(self) -> None:
        try:
            plan = plan_of(self._workflow)
            self._run = Run.planned(plan)
        except Exception as error:  # of a Snakemake that keeps its jobs in another way; its own words are shown then
            self._screen.write(f"notice: no progress is shown for this version of Snakemake ({error})")
            return
        self._journal = Journal(plan)
        if not is_quiet_about(self._quiet, "progress"):
            if self._usual.is_tty and os.environ.get("TERM") != "dumb":
                self._screen = Screen(self._usual.stream)
            threading.Thread(target=self._refresh, daemon=True).start()

    def _noted(self, kind: str, job_id: int, **values: str) -> str:
        """Into the journal; returns the line about it."""
        if job_id not in self._run.jobs:
            return ""
        change = event(kind, id=job_id, **values)
        self._journal.write(change)
        job = self._run.apply(change)
        if not job.needed or (kind == "start" and not job.outputs):  # of a rule that only collects others, its end
            return ""
        done, all_jobs = len(self._run.of_state("done")), sum(job.needed for job in self._run.jobs.values())
        place = f"{done}/{all_jobs}" if kind == "done" else ""
        took = "" if kind == "start" else clock(job.end - job.begin)
        width = 2 * len(str(all_jobs)) + 1
        log = f"; its log: {job.logs[0]}" if kind == "failed" and job.logs else ""
        return f"{time.strftime('%H:%M:%S')}  {place:>{width}}  {kind:<6} {took:>7}  {job.what}{log}"

    def _failed(self, record: logging.LogRecord) -> str:
        """A line, and what the job wrote; the reason comes at the end of the run, where it is not overlooked."""
        own = self._usual.format(record)
        job = self._run.jobs.get(record.jobid) if self._run else None
        if job is None or job.state == "failed":
            return own
        reason, self._error = self._error or reason_of_failure(record.log, job.begin), ""
        line = self._noted("failed", job.id, reason=reason)
        own = own if logger.level <= logging.DEBUG else ""
        return "\n".join(filter(None, [line, own, self._screen.said(job.begin, but=f"{REASON}{reason}")]))

    def _refresh(self) -> None:
        while not self._ended.wait(self._screen.seconds()):
            with contextlib.suppress(Exception):  # a display is no reason for anything to fail
                self._screen.show(
                    [*self._screen.each(self._run.of_state("running")), summary(self._run, self._screen.bar)]
                )


class Lines:
    """For a log file: lines as they come, and one about everything, the more seldom the longer it takes."""

    bar = False

    def __init__(self, stream) -> None:
        self._stream = stream
        self._begin = time.monotonic()

    def write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def seconds(self) -> float:
        """Until the next one."""
        return min(600, max(30, (time.monotonic() - self._begin) / 20))

    def each(self, jobs: list[Job]) -> list[str]:
        """None: jobs say on their own stderr how far they are."""
        return []

    def said(self, since: float, but: str = "") -> str:
        """Nothing: all of it was shown."""
        return ""

    def show(self, lines: list[str]) -> None:
        self.write(f"{time.strftime('%H:%M:%S')}  {lines[-1]}")

    def close(self, orderly: bool = True) -> None:
        self._stream.flush()


class Screen:
    """The terminal: lines scroll, the bars stay at the bottom.

    What jobs say when all goes well is in their logs, and is shown here only when one fails. Until `close`, file
    descriptor 2 of this process, and of all that it starts, is a pipe that ends here.
    """

    bar = True
    SHOWN = re.compile(
        r"(error|warning|notice|fatal)\b"
        r"|.* \| (error|warning|critical) \| "  # as fairseq logs
        r"|.+:\d+: \w*warning: ",  # as Python warns
        re.IGNORECASE,
    )

    def __init__(self, stream) -> None:
        stream.flush()
        self._terminal = os.dup(2)
        self._pipe, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        self._lock = threading.RLock()
        self._bars: list[str] = []
        self._rest = b""
        self._unshown: deque[tuple[float, str]] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def write(self, text: str) -> None:
        with self._lock:
            self._put(self._erase() + text.rstrip("\n") + "\n" + self._drawn())

    def seconds(self) -> float:
        return REFRESH_SECONDS

    def each(self, jobs: list[Job]) -> list[str]:
        """A line about each job that is running, as many as a third of the screen holds."""
        size = self._size()
        most = max(1, size.lines // 3)
        lines = []
        for job in jobs[:most]:
            figures = job.progress() or clock(time.time() - job.begin)
            room = max(10, size.columns - 5 - len(figures))
            half = (room - 3) // 2
            what = job.what if len(job.what) <= room else f"{job.what[:half]}...{job.what[-half:]}"
            lines.append(f"  {what}: {figures}")
        return lines + ([f"  and {len(jobs) - most} more"] if len(jobs) > most else [])

    def show(self, lines: list[str]) -> None:
        with self._lock:
            erase = self._erase()
            width = self._size().columns - 1
            self._bars = [line[:width] for line in lines]
            self._put(erase + self._drawn())

    def close(self, orderly: bool = True) -> None:
        """Leave the terminal as it was, with all that was written to it; after a crash, with what was not shown too."""
        with self._lock:
            os.dup2(self._terminal, 2)
            self._put(self._erase())
            self._bars = []
        self._reader.join(1)  # a process that was left behind may keep the pipe open
        with self._lock:
            if self._rest:
                self.write(_harmless(self._rest))
                self._rest = b""
            if not orderly and (said := self.said(0)):
                self.write(said)

    def _read(self) -> None:
        """What others write to stderr, line by line."""
        while data := os.read(self._pipe, 1 << 16):
            with self._lock:
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._sort(line)

    def _sort(self, line: bytes) -> None:
        """Show it, keep it for a failure, or drop it."""
        text = _harmless(line)
        if self.SHOWN.match(text) and not text.startswith(REASON):
            self.write(text)
        elif text and not text.startswith(PROGRESS_LINE) and b"\r" not in line:
            self._unshown.append((time.time(), text))

    def said(self, since: float, but: str = "") -> str:
        """What was written to stderr from then on and not shown, without the line `but`."""
        with self._lock:
            lines = [f"    {line}" for moment, line in self._unshown if moment >= since and line != but]
            self._unshown.clear()
        return "\n".join(["  What was written meanwhile:", *lines]) if lines else ""

    def _size(self) -> os.terminal_size:
        """Of the terminal itself: stdout may be a file or a pipe, and COLUMNS of another terminal."""
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._terminal)
            if all(size):  # some do not know theirs
                return size
        return shutil.get_terminal_size()

    def _drawn(self) -> str:
        return "".join(f"{line}\n" for line in self._bars)

    def _erase(self) -> str:
        """Back to the first line of the bars; a terminal that became narrower has broken them into more lines."""
        width = self._size().columns
        rows = sum(max(1, math.ceil(len(line) / width)) for line in self._bars)
        return f"\x1b[{rows}F\x1b[J" if rows else ""

    def _put(self, text: str) -> None:
        data = text.encode()
        with contextlib.suppress(OSError):  # the terminal is gone
            while data:
                data = data[os.write(self._terminal, data) :]


def _harmless(line: bytes) -> str:
    """As text that leaves the bars where they are."""
    return printable(line.decode("utf-8", "replace").rstrip().expandtabs())
