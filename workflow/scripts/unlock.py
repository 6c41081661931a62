"""Take away the lock that a Snakemake which was killed has left in this directory; that of a living one stays.

Snakemake cannot tell the two apart and asks the user to. Here they are: the lock is stale unless some other Snakemake
runs in this very directory. Run by `make demo`; jobs that the killed one left behind are ended by whoever needs their
files (see fairseq_command.exclusive).
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
from common import UserError, run_main


def main(argv: list[str]) -> None:
    if argv:
        raise UserError(f"no arguments are taken; given: {' '.join(argv)}")
    locks = list(Path(".snakemake/locks").glob("*.lock"))
    if not locks:
        return
    if living := [str(process.pid) for process in psutil.process_iter() if runs_here(process)]:
        raise UserError(
            f"Snakemake is running in this directory already (process {', '.join(living)}); wait for it to end"
        )
    print("notice: taking away the lock of a Snakemake that was killed", file=sys.stderr)
    for path in locks:
        path.unlink(missing_ok=True)


def runs_here(process: psutil.Process) -> bool:
    """Whether the process is a Snakemake with this working directory."""
    try:
        return Path(process.cwd()) == Path.cwd() and any(
            Path(part).name == "snakemake" or part.endswith("/snakemake/__main__.py") for part in process.cmdline()[:4]
        )
    except (psutil.Error, OSError):  # ended meanwhile, or another user's, who could not write here
        return False


if __name__ == "__main__":
    run_main(main)
