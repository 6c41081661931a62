"""Clear up after a Snakemake that was killed in this directory: its lock, and the Slurm jobs that it left behind.

Snakemake cannot tell a lock that was left behind from that of a living one, and asks the user to. Here the process that
takes the lock notes who it is (`unlock_after_a_kill`, which the Snakefile installs), so that the next one knows whether
it is dead: the same command then resumes the work. What a process of another machine holds stays locked.

Nothing takes up jobs that an earlier Snakemake has sent; they are cancelled, and their trainings resume from their last
checkpoints. Other jobs that were left behind are ended by whoever needs their files (fairseq_command.exclusive).

As a program it does the same where nothing is to be run, and also cancels jobs that were left behind without a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from common import UserError, progress, run_main
from fairseq_command import grace_seconds

LOCKS = Path(".snakemake") / "locks"  # Snakemake's own; it makes the folder
OWNERS = Path(".snakemake") / "owners"  # a note for each process that holds such a lock
BOOT = "/proc/sys/kernel/random/boot_id"


def main(argv: list[str]) -> None:
    if argv:
        raise UserError(f"no arguments are taken; given: {' '.join(argv)}")
    jobs = jobs_left()
    if jobs or list(LOCKS.glob("*.lock")):
        with _one_at_a_time():
            clear_up(jobs)


def unlock_after_a_kill(_workflow) -> None:
    """Have Snakemake take away the lock of one that is dead, before it takes its own.

    Raises:
        AttributeError: it does not take its lock as in the tested versions.
    """
    from snakemake.exceptions import WorkflowError
    from snakemake.persistence import PersistenceBase

    lock_directory = PersistenceBase.lock
    _ = PersistenceBase.locked

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        note = OWNERS / f"{socket.gethostname()}-{os.getpid()}.json"
        with contextlib.ExitStack() as stack:
            with _one_at_a_time():
                if self.locked:
                    try:
                        clear_up(jobs_left())
                    except UserError as error:
                        raise WorkflowError(str(error)) from None
                stack.enter_context(lock_directory(self))
                stack.callback(note.unlink, missing_ok=True)
                owner = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
                note.write_text(json.dumps(owner), encoding="utf-8")
            yield

    PersistenceBase.lock = lock


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Of several processes that start at once, one after the other looks for owners and takes the lock."""
    OWNERS.mkdir(parents=True, exist_ok=True)
    with open(OWNERS / "lock", "w") as file:
        with contextlib.suppress(OSError):  # a file system that has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_up(jobs: list[str]) -> None:
    """Take away the locks and cancel the jobs.

    Raises:
        UserError: whoever left them may be living.
    """
    refuse_if_living()
    if jobs:
        cancel(jobs)
    if locks := list(LOCKS.glob("*.lock")):
        print("notice: taking away the lock of a Snakemake that was killed", file=sys.stderr)
    for path in [*locks, *OWNERS.glob("*.json")]:
        path.unlink(missing_ok=True)


def refuse_if_living() -> None:
    """Judge by the notes of the owners; where there are none, by the processes of this machine.

    Raises:
        UserError: an owner lives, or ran on another machine.
    """
    living, notes = [], list(OWNERS.glob("*.json"))
    for note in notes:
        try:
            owner = json.loads(note.read_text(encoding="utf-8"))
            host, pid, began = owner["host"], int(owner["pid"]), owner["began"]
        except (OSError, ValueError, LookupError, TypeError):  # of one that was killed as it wrote it
            continue
        if host != socket.gethostname():
            raise UserError(
                f"Snakemake locked this directory on {host} (process {pid}), which cannot be looked at from here; wait "
                f"for it to end. If it was killed, run the same command there, or delete {note} and run it here"
            )
        living += [pid] if _began(pid) == began else []
    if not notes:
        living = [process.pid for process in psutil.process_iter() if runs_here(process)]
    if living:
        raise UserError(
            f"Snakemake is running in this directory already (process {', '.join(map(str, living))}); "
            "wait for it to end"
        )


def _began(pid: int) -> str | None:
    """When this process began, in a form that no change of the clock touches; None if there is no such process."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else f"{numbers[18]} after boot {Path(BOOT).read_text().strip()}"
    except OSError:
        return None


def jobs_left() -> list[str]:
    """Slurm jobs that a Snakemake has sent from this directory; none on a machine without Slurm."""
    return slurm_jobs() if shutil.which("squeue") else []


def slurm_jobs() -> list[str]:
    """The user's jobs that a Snakemake has sent from this directory, by their working directory and their comment.

    Raises:
        UserError: Slurm does not answer, and jobs have been sent from here.
    """
    result = subprocess.run(["squeue", "--me", "--noheader", "--format=%i|%Z|%k"], capture_output=True, text=True)
    if result.returncode != 0:
        if not Path(".snakemake/slurm_logs").exists():
            return []  # the machine may have Slurm's commands and belong to no cluster
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"squeue failed ({reason}), so jobs may be running; try again when Slurm answers")
    rows = [line.split("|", 2) for line in result.stdout.splitlines()]
    return [job for job, folder, comment in rows if comment.startswith("rule_") and Path(folder) == Path.cwd()]


def cancel(jobs: list[str]) -> None:
    """Cancel these jobs and wait until they have ended: their trainings save what they have.

    Raises:
        UserError: they have not ended after two minutes, or twice the time that they have to save.
    """
    print(f"notice: cancelling Slurm jobs of a Snakemake that was killed: {', '.join(jobs)}", file=sys.stderr)
    subprocess.run(["scancel", *jobs], check=True)
    deadline = time.monotonic() + max(120, 2 * grace_seconds())
    for left in progress(iter(slurm_jobs, []), "waiting for them to end", unit="look"):
        if time.monotonic() > deadline:
            raise UserError(f"jobs {', '.join(left)} were cancelled and do not end; look at them with squeue")
        time.sleep(1)


def runs_here(process: psutil.Process) -> bool:
    """Whether the process is a Snakemake with this working directory: not this one, a job of one, or a dry run."""
    try:
        command = process.cmdline()
        return (
            Path(process.cwd()) == Path.cwd()
            and any(Path(part).name == "snakemake" or part.endswith("/snakemake/__main__.py") for part in command[:4])
            and not {"--mode", "-n", "--dry-run", "--dryrun"}.intersection(command)
            and process.pid not in (os.getpid(), *(parent.pid for parent in psutil.Process().parents()))
        )
    except (psutil.Error, OSError):  # ended meanwhile, or another user's, who could not write here
        return False


if __name__ == "__main__":
    run_main(main)
