"""Run one of fairseq's commands as a child: its log to a file, its lines to a progress bar, and nothing left over.

What ends this process ends the child; what the child says on failure becomes one sentence.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
from common import UserError
from trained import HALF_PRECISION
from warm import ENDING, Fork, start, start_anew

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what flock says on a file system that has none
GRACE_SECONDS = 60  # for what is told to end; a training saves what it has


class Interrupted(SystemExit):
    """This process was told to end, and its child has ended; the exit status is the shell's for the signal."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """(own arguments, those after `--`, which are fairseq's)."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def fit_machine(arguments: list[str]) -> list[str]:
    """Without the flags for half precision where there is no GPU; says so on stderr."""
    half = [argument for argument in arguments if argument in HALF_PRECISION]
    if half:
        import torch  # takes seconds; only asked for when it matters

        if not torch.cuda.is_available():
            print(f"notice: no GPU here, {' '.join(half)} is left out: full precision on the CPU", file=sys.stderr)
            return [argument for argument in arguments if argument not in HALF_PRECISION]
    return arguments


def run(
    module: str,
    arguments: list[str],
    log: Path,
    on_line: Callable[[str], bool] = lambda line: True,
    lock: IO[str] | None = None,
    launcher: list[str] | None = None,
) -> float:
    """Run `python -m {module}` to its end; every line that it prints goes to `on_line`, and to the log if that says so.

    Returns the most memory that it had at a time, in MB.

    Args:
        lock: from `exclusive`; the child holds it as well, should this process be killed alone.
        launcher: a command that starts the module in several processes, with the arguments after its own.

    Raises:
        UserError: the command failed; with the reason it gave, and where its log is.
        Interrupted: this process was told to end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as log_file:
        log_file.write(f"{module} {' '.join(arguments)}\n")
        log_file.flush()
        # Errors go to the file: a pipe, of its own or shared, would let a warning fall into the middle of a line.
        held = [lock.fileno()] if lock else []
        if launcher:
            process = start_anew([*launcher, *arguments], log_file, held)
        else:
            process = start(module, arguments, log_file, held)
        if lock:
            note_holder(lock, os.getpid(), process.pid)
        with _ended_with_us(process, launcher):
            for line in process.stdout:
                if on_line(line):
                    log_file.write(line)
                    log_file.flush()
            status = process.wait()
    if status != 0:
        raise UserError(f"{module} failed: {_reason(log, status)} (its log: {log})")
    own = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of a fork, which is nobody's child, it tells
    return (process.peak_kb if isinstance(process, Fork) else own) / 1024


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen | Fork, launcher: list[str] | None) -> Iterator[None]:
    """While the block runs, signals that would end this process are the child's: a training saves what it has first.

    The block goes on until the child has ended, and is followed by `Interrupted`. After a minute the child is killed.
    """
    told: list[int] = []

    def tell(number: int, _frame) -> None:
        if not told:
            signal.alarm(GRACE_SECONDS)
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                _tell_to_end(process.pid, launcher)
        told.append(number)

    def kill(_number: int, _frame) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    handlers = {**dict.fromkeys(ENDING, tell), signal.SIGALRM: kill}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        _end_group(process)
        signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        if told:
            raise Interrupted(told[0])


def _tell_to_end(pid: int, launcher: list[str] | None) -> None:
    """With a signal that reaches the trainings, whoever has started them."""
    if launcher and launcher[0] == "srun":  # at SIGTERM it would kill them; this one it hands on
        os.kill(pid, signal.SIGUSR1)
    elif launcher and (started := psutil.Process(pid).children()):
        # By torchrun, which hands one signal on, and would kill them at a second, such as Slurm's.
        for training in started:
            training.terminate()
    else:
        os.kill(pid, signal.SIGTERM)


def _end_group(process: subprocess.Popen | Fork) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)


def _reason(log: Path, status: int) -> str:
    """The last error that the log tells of, or its end."""
    if status < 0:
        return f"it was ended by signal {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for line in reversed(lines):
        if match := re.match(r"(?:[\w.-]+: )?error: (.+)|(?:[\w]+\.)*\w*(?:Error|Exception): (.+)", line):
            return (match[1] or line if match[1] else match[2]).rstrip(".")
    return " / ".join(lines[-3:]) or f"exit status {status}"


# One at a time --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[IO[str]]:
    """Hold the lock file `path`; a process left behind by a workflow that was killed is ended first.

    Snakemake itself sees to it that two workflows do not write the same file; but when it is killed outright, its jobs
    live on, and would write into the files of the next attempt. A child that inherits the file holds the lock as well.
    On a file system without locks nothing is held, and a notice says so.

    Raises:
        UserError: the lock is held on another machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _end_holder(file, path)
            file.close()
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"{path}: cannot be locked ({error.strerror})") from None
            print(
                f"notice: {path}: this file system has no locks ({error.strerror}); see to it yourself that nothing "
                "else trains here at the same time",
                file=sys.stderr,
            )
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()  # the holder before us has removed it: this is no longer the file others look at
    with file:
        note_holder(file, os.getpid())
        try:
            yield file
        finally:
            path.unlink(missing_ok=True)


def note_holder(file: IO[str], *pids: int) -> None:
    """Write down who holds the lock, for whoever finds it held."""
    file.seek(0)
    file.truncate()
    json.dump({"host": socket.gethostname(), "pids": pids, "slurm_job": os.environ.get("SLURM_JOB_ID")}, file)
    file.flush()


def _end_holder(file: IO[str], path: Path) -> None:
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:
        time.sleep(0.1)  # about to be written
        return
    if holder["host"] != socket.gethostname():
        print(f"notice: waiting for the same training to end on {holder['host']}", file=sys.stderr)
        if _comes_free(file, 2 * GRACE_SECONDS):  # it was told to end, when this one is its next attempt
            return
        job = holder.get("slurm_job")
        end = f"scancel {job}" if job else "end it there"
        raise UserError(f"{path}: the same training is under way on {holder['host']}; wait for it, or {end}")
    print(f"notice: ending a process that an earlier attempt left behind ({holder['pids']})", file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in holder["pids"]:
            # Of a process that is gone the number may be another's by now; who holds the lock has the file open.
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if str(path.resolve()) in (opened.path for opened in process.open_files()):
                    process.send_signal(number)
        if _comes_free(file, GRACE_SECONDS):
            return
    raise UserError(f"{path}: still held by {holder['pids']} after they were told to end; end them by hand")


def _comes_free(file: IO[str], seconds: float) -> bool:
    """Whether the lock is ours before so many seconds have gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.1)
    return False
