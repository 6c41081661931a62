"""The journal of the workflow's last run, `logs/workflow.jsonl`: what was planned, and what began and ended when.

The process of Snakemake writes it (watch.py); it and `make status` read it. A line is an event, a JSON object; the
first is the plan. Durations of earlier runs go along in it, so that the time remaining can be told from the beginning.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import os
import re
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common import UserError, printable
from state import PROGRESS_LINE, clock, describe, read_state, seconds_left, state_path

JOURNAL = Path("logs") / "workflow.jsonl"
# What durations are recorded by besides the rule, the most telling first: by all of these, by the last two, ...
ALIKE = ("task", "method", "model")
TAIL_BYTES = 1 << 16
BAR_WIDTH = 24
LIGHT_SECONDS = 5.0  # that a light job is taken to need, as long as none like it has ended
IDLE_SECONDS = 60  # without a running job, after which a run is said to be idle
ERROR = re.compile(r"(?:[\w.-]+: )?(?:error|ERROR): (.+)|((?:\w+\.)*\w*(?:Error|Exception)(?:: .+)?)$")


@dataclass
class Job:
    """A job of the plan, and what has become of it: `to do`, `running`, `done`, `failed` or `interrupted`."""

    id: int
    rule: str
    what: str
    wildcards: dict[str, str]
    logs: list[str]
    outputs: list[str]
    needs: list[int]
    cores: int  # how much it takes of what the run has
    gpus: int
    needed: bool  # or up to date before the run began
    light: bool = False  # such as a plot: it takes some seconds
    state: str = "to do"
    begin: float = 0.0
    end: float = 0.0
    reason: str = ""

    def report(self) -> dict:
        """What the job itself says of this attempt, see state.py."""
        if self.state == "to do" or not self.logs:
            return {}
        return read_state(self.logs[0]) if is_of_attempt(state_path(self.logs[0]), self.begin) else {}

    def progress(self) -> str:
        """How far it is, in words; empty if it does not say."""
        if report := self.report():
            return printable(describe(report))
        if not self.logs or not is_of_attempt(self.logs[0], self.begin):
            return ""
        lines = (line for line in reversed(tail(self.logs[0])) if line.startswith(PROGRESS_LINE))
        return printable(next(lines, "").removeprefix(PROGRESS_LINE))


@dataclass
class Run:
    """A run of the workflow as its journal tells it."""

    plan: dict
    jobs: dict[int, Job]
    durations: Durations = field(default_factory=lambda: Durations())
    end: float = 0.0
    last: float = 0.0  # when something last happened

    @classmethod
    def planned(cls, plan: dict) -> Run:
        """Of the plan alone."""
        run = cls(plan, {job["id"]: Job(**job) for job in plan["jobs"]}, last=plan["time"])
        for rule, wildcards, seconds in plan["history"]:
            run.durations.add_history(rule, wildcards, seconds)
        return run

    def apply(self, event: dict) -> Job | None:
        """Take in what has happened; returns the job that it has happened to, if there is one."""
        self.last = event["time"]
        if event["event"] == "end":
            self.end = event["time"]
        job = self.jobs.get(event.get("id"))
        if job is None:
            return None
        if event["event"] == "start":
            job.state, job.begin, job.end, job.reason = "running", event["time"], 0.0, ""
        else:
            job.state, job.end, job.reason = event["event"], event["time"], event.get("reason", "")
        if job.state == "done" and not self.plan.get("touched") and not job.report().get("resumed_from"):
            self.durations.add(job.rule, job.wildcards, job.end - job.begin)  # else it says little of the next one
        return job

    def of_state(self, state: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.needed and job.state == state]

    def is_alive(self) -> bool | None:
        """Whether its Snakemake is still there; None if that was another machine's, which cannot be asked."""
        if self.end:
            return False
        return process_is_alive(self.plan["host"], self.plan["pid"], "snakemake")

    def is_complete(self) -> bool:
        """Whether nothing more is to come: all is done, or there was a failure and what ran beside it has ended."""
        return not self.of_state("running") and bool(self.of_state("failed") or not self.of_state("to do"))

    def seconds_left(self, now: float) -> tuple[float, str]:
        """(seconds until all is done, how to take them).

        `about`: every job's duration is known. `at least`: a job takes longer than others like it did. `unknown`: there
        is a job that nothing can be compared with.
        """
        expected = self._expected(now)
        blocked = self.blocked()
        waiting = [job for job in self.jobs.values() if job.id in expected and job.id not in blocked]
        cores, gpus = self.plan["cores"] or math.inf, self.plan["gpus"] or math.inf
        left = finish_time(waiting, {job.id: max(0.0, expected[job.id] or 0.0) for job in waiting}, cores, gpus)
        if any(expected[job.id] is None for job in waiting):
            return left, "unknown"
        return left, "at least" if any(expected[job.id] <= 0 for job in waiting) else "about"

    def idle_seconds(self, now: float) -> float:
        """How long no job has been running although one could; 0 if one is running, or there is none to do."""
        could_run = {job.id for job in self.of_state("to do")} - self.blocked()
        return now - self.last if could_run and not self.of_state("running") else 0.0

    def blocked(self) -> set[int]:
        """The jobs that failed, and those that need them."""
        found = {job.id for job in self.jobs.values() if job.state == "failed"}
        for job in self.jobs.values():  # the plan has what is needed before who needs it
            if found.intersection(job.needs):
                found.add(job.id)
        return found

    def _expected(self, now: float) -> dict[int, float | None]:
        """Job -> seconds that it will still take: by its own account, else as long as others like it took.

        None if there was none like it. Zero or less if it takes longer than that already.
        """
        left: dict[int, float | None] = {}
        projected = Durations()
        for job in self.of_state("running"):
            report = job.report()
            own = seconds_left(report)
            if own is not None:
                left[job.id] = own - (now - report["updated"])
                projected.add(job.rule, job.wildcards, now - job.begin + own)
            else:
                usual = self._usual(job)
                left[job.id] = None if usual is None else usual - (now - job.begin)
        for job in [*self.of_state("to do"), *self.of_state("interrupted")]:
            usual = self._usual(job)
            left[job.id] = projected.of(job.rule, job.wildcards) if usual is None else usual
        return left

    def _usual(self, job: Job) -> float | None:
        usual = self.durations.of(job.rule, job.wildcards)
        return LIGHT_SECONDS if usual is None and job.light else usual


class Durations:
    """How long jobs took: of those that are most alike, of this run before earlier ones."""

    def __init__(self) -> None:
        self._own: dict[tuple, list[float]] = {}
        self._history: dict[tuple, list[float]] = {}

    def add(self, rule: str, wildcards: dict[str, str], seconds: float) -> None:
        for key in _keys(rule, wildcards):
            self._own.setdefault(key, []).append(seconds)

    def add_history(self, rule: str, wildcards: dict[str, str], seconds: float) -> None:
        for key in _keys(rule, wildcards):
            self._history.setdefault(key, []).append(seconds)

    def of(self, rule: str, wildcards: dict[str, str]) -> float | None:
        """The mean over the jobs of the rule that are most like this one; None if there was none of the rule."""
        for key in _keys(rule, wildcards):
            for table in (self._own, self._history):
                if key in table:
                    return sum(table[key]) / len(table[key])
        return None

    def summary(self) -> list[list]:
        """[rule, wildcards, seconds], one for jobs that are alike in all respects: what the next run is told."""
        found = {key: values for table in (self._history, self._own) for key, values in table.items()}
        whole = [(key, values) for key, values in found.items() if len(key) == 1 + len(ALIKE)]
        return [
            [
                key[0],
                {name: value for name, value in zip(ALIKE, key[1:], strict=True) if value},
                sum(values) / len(values),
            ]
            for key, values in whole
        ]


def _keys(rule: str, wildcards: dict[str, str]) -> Iterator[tuple]:
    """From `alike in everything` to the rule alone."""
    values = [wildcards.get(name, "") for name in ALIKE]
    for start in range(len(values) + 1):
        yield (rule, *values[start:])


def finish_time(jobs: list[Job], seconds: dict[int, float], cores: float, gpus: float) -> float:
    """When the last one ends, if each starts as soon as what it needs is there and cores and GPUs are free."""
    missing = {job.id: sum(need in seconds for need in job.needs) for job in jobs}
    users: dict[int, list[Job]] = {}
    for job in jobs:
        for need in job.needs:
            users.setdefault(need, []).append(job)
    running: list[tuple[float, int]] = []
    by_id = {job.id: job for job in jobs}
    ready = {True: deque(), False: deque()}  # with a GPU and without
    now = 0.0

    def start(job: Job) -> None:
        nonlocal cores, gpus
        cores, gpus = cores - job.cores, gpus - job.gpus
        heapq.heappush(running, (now + seconds[job.id], job.id))

    for job in jobs:
        if job.state == "running":
            start(job)
        elif not missing[job.id]:
            ready[job.gpus > 0].append(job)
    while True:
        for queue in ready.values():
            while queue and ((queue[0].cores <= cores and queue[0].gpus <= gpus) or not running):
                start(queue.popleft())
        if not running:
            return now
        now, ended = heapq.heappop(running)
        cores, gpus = cores + by_id[ended].cores, gpus + by_id[ended].gpus
        for job in users.get(ended, []):
            missing[job.id] -= 1
            if not missing[job.id] and job.state != "running":
                ready[job.gpus > 0].append(job)


def summary(run: Run, bar: bool = False, over: bool = False) -> str:
    """How many jobs are done, the time that it took, and if the run is not over, the time that it will take."""
    now = run.last if over else time.time()
    jobs = sum(job.needed for job in run.jobs.values())
    counts = {state: len(run.of_state(state)) for state in ("done", "running", "failed")}
    parts = [f"{counts['done']} of {jobs} jobs done", f"{counts['running']} running"]
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    if run.plan["time"] is not None:  # of targets where nothing has begun
        parts.append(f"{clock(now - run.plan['time'])} elapsed")
    if not over:
        left, kind = run.seconds_left(now)
        parts.append("time left unknown" if kind == "unknown" else f"{kind} {clock(left)} left")
        if (idle := run.idle_seconds(now)) > IDLE_SECONDS:
            parts[-1] = f"no job has run for {clock(idle)}; do --cores and --resources allow one?"
    filled = round(BAR_WIDTH * counts["done"] / max(1, jobs))
    return (f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] " if bar else "") + ", ".join(parts)


class Journal:
    """Writes the journal; that it cannot be written is no reason to fail."""

    def __init__(self, plan: dict) -> None:
        with contextlib.suppress(OSError):
            JOURNAL.parent.mkdir(parents=True, exist_ok=True)
            JOURNAL.unlink(missing_ok=True)  # who reads the previous one goes on reading that
        self.write(plan)

    def write(self, event: dict) -> None:
        with contextlib.suppress(OSError), open(JOURNAL, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def read_run() -> Run | None:
    """The last run in this folder; None if there was none.

    Raises:
        UserError: the journal cannot be read.
        Exception: of many kinds, here and as the run is looked at: it is damaged, or of another version.
    """
    try:
        lines = JOURNAL.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{JOURNAL}: cannot be read ({error.strerror})") from None
    if not lines:
        return None
    events = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # of a process that was killed as it wrote it
            events.append(json.loads(line))
    run = Run.planned(events[0])
    for event in events[1:]:
        run.apply(event)
    return run


def durations_so_far() -> list[list]:
    """What the last run knew of durations; nothing of a journal that is damaged, which is no reason to fail."""
    with contextlib.suppress(Exception):
        if run := read_run():
            return run.durations.summary()
    return []


def reason_of_failure(logs: list[str], begin: float) -> str:
    """The last error that these logs tell of since then; what the job itself said goes before."""
    logs = [log for log in logs if is_of_attempt(log, begin)]
    for log in logs:
        if error := read_state(log).get("error"):
            return printable(error)
    ends = []
    for log in logs:
        lines = tail(log)
        for line in reversed(lines):
            if match := ERROR.match(line):
                return printable(match[1] or match[2])
        ends += lines[-1:]
    return printable(ends[-1]) if ends else "nothing in its log; it was killed perhaps, for want of memory or time"


def is_of_attempt(path: str, begin: float) -> bool:
    """Whether a file was written since then; clocks of machines differ a little."""
    try:
        return os.stat(path).st_mtime >= begin - 5
    except OSError:
        return False


def tail(log: str) -> list[str]:
    """The last lines of a log that are not empty; of a bar that was redrawn, the last state."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = (line.rstrip("\r").rpartition("\r")[2].strip() for line in text.split("\n"))
    return [line for line in lines if line]


def process_is_alive(host: str, pid: int, name: str = "") -> bool | None:
    """Whether there is this process, and its command holds the name; None if it would be another machine's."""
    if host != socket.gethostname():
        return None
    try:
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and not _is_zombie(pid)
    except OSError:
        return False


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def event(kind: str, **values: object) -> dict:
    """An event of now."""
    return {"event": kind, "time": time.time(), **values}
