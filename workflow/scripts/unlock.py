"""Clear up after a Snakemake that was killed in this directory: its lock, and the Slurm jobs that it left behind.

Snakemake cannot tell a lock that was left behind from that of a living one, and asks the user to. Here they are told
apart: the lock is stale unless some other Snakemake of this machine runs in this very directory, so on a cluster this
is to be run on the login node where the workflow ran. Nothing takes up jobs that an earlier Snakemake has sent; they
are cancelled, and their trainings go on from their last checkpoints when the workflow is started again. Other jobs that
were left behind are ended by whoever needs their files (fairseq_command.exclusive). Run by `make demo`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from common import UserError, progress, run_main
from fairseq_command import grace_seconds


def main(argv: list[str]) -> None:
    if argv:
        raise UserError(f"no arguments are taken; given: {' '.join(argv)}")
    locks = list(Path(".snakemake/locks").glob("*.lock"))
    jobs = slurm_jobs() if shutil.which("squeue") else []
    if not locks and not jobs:
        return
    if living := [str(process.pid) for process in psutil.process_iter() if runs_here(process)]:
        raise UserError(
            f"Snakemake is running in this directory already (process {', '.join(living)}); wait for it to end"
        )
    if jobs:
        cancel(jobs)
    if locks:
        print("notice: taking away the lock of a Snakemake that was killed", file=sys.stderr)
    for path in locks:
        path.unlink(missing_ok=True)


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
    """Whether the process is a Snakemake with this working directory, other than one inside of a batch job."""
    try:
        command = process.cmdline()
        return (
            Path(process.cwd()) == Path.cwd()
            and any(Path(part).name == "snakemake" or part.endswith("/snakemake/__main__.py") for part in command[:4])
            and ["--mode", "remote"] not in [command[at : at + 2] for at in range(len(command))]
        )
    except (psutil.Error, OSError):  # ended meanwhile, or another user's, who could not write here
        return False


if __name__ == "__main__":
    run_main(main)
