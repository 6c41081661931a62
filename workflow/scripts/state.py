"""What a training or a generation says of itself while it runs, in a small file beside its log; and how that reads.

`{log without .log}.state.json` is what the display of the workflow and `make status` look at, from whatever machine
sees the folder. Nothing but them reads it, and a state that cannot be written is no reason to fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

NUMBERS = ("begin", "elapsed", "end", "initial", "n", "pid", "resumed_from", "total", "updated")
PROGRESS_LINE = "progress: "  # how a line on stderr begins that tells how far a job is


def state_path(log: str | os.PathLike) -> Path:
    """Where the state of the job with this log is."""
    return Path(log).with_suffix(".state.json")


class State:
    """A job's state, for the time of a `with`: where and since when it runs, how far it is, and what ended it."""

    def __init__(self, log: Path) -> None:
        self._path = state_path(log)
        self._values: dict[str, object] = {}

    def __enter__(self) -> State:
        self.update(
            host=socket.gethostname(), pid=os.getpid(), slurm_job=os.environ.get("SLURM_JOB_ID"), begin=time.time()
        )
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        self.update(end=time.time(), error=_sentence(error))

    def update(self, **values: object) -> None:
        """Add these, and write the file: a reader finds either the previous values or the new ones."""
        self._values |= values | {"updated": time.time()}
        temporary = self._path.with_name(f".{self._path.name}.part")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._values), encoding="utf-8")
            os.replace(temporary, self._path)


def _sentence(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return (
            f"it was ended by signal {error.code - 128}" if error.code > 128 else f"it ended with status {error.code}"
        )
    return str(error) or type(error).__name__


def read_state(log: str | os.PathLike) -> dict:
    """The state of the job with this log; empty if there is none that can be read, without what is of a wrong type."""
    try:
        state = json.loads(state_path(log).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in state.items() if _is_sound(name, value)} if isinstance(state, dict) else {}


def _is_sound(name: str, value: object) -> bool:
    if name in NUMBERS:
        return isinstance(value, int | float) and abs(value) < 1e15  # nor NaN
    if name == "scores":
        return isinstance(value, dict) and all(isinstance(score, str | int | float) for score in value.values())
    return value is None or isinstance(value, str)


def seconds_left(state: dict) -> float | None:
    """At the mean speed since the job began to count; None as long as that or the total is unknown."""
    done = state.get("n", 0) - state.get("initial", 0)
    if not state.get("total") or done <= 0 or "elapsed" not in state:
        return None
    return max(0.0, state["total"] - state["n"]) * state["elapsed"] / done


def describe(state: dict) -> str:
    """`120 of 300 updates (40 %), loss 2.31, 6.0 updates/s, about 0:30 left`, as much of it as is known."""
    if "n" not in state:
        return "starting"
    n, total, unit = state["n"], state.get("total"), state.get("unit", "")
    parts = [
        f"{_count(n, unit)} of {_count(total, unit)} {_plural(unit)} ({100 * n / total:.0f} %)"
        if total
        else f"{_count(n, unit)} {_plural(unit)}"
    ]
    parts += [f"{name} {value}" for name, value in state.get("scores", {}).items()]
    done = n - state.get("initial", 0)
    if done > 0 and state.get("elapsed"):
        speed = done / state["elapsed"] / (1e6 if unit == "B" else 1)
        parts.append(f"{speed:,.{1 if speed < 100 else 0}f} {_plural(unit)}/s")
    if (left := seconds_left(state)) is not None and n < total:
        parts.append(f"about {clock(left)} left")
    return ", ".join(parts)


def _plural(unit: str) -> str:
    return "MB" if unit == "B" else unit if unit.endswith("s") else f"{unit}s"


def _count(value: float, unit: str) -> str:
    return f"{value / 1e6:,.1f}" if unit == "B" else f"{value:,}"


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`, `2 d 03:04:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
