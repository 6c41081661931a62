"""Which GPUs a local job takes: several jobs on one machine get different ones, as from a batch system.

fairseq takes the first GPU that it sees. So each job reserves as many GPUs as it needs and shows its child these alone,
by CUDA_VISIBLE_DEVICES. A reservation is a lock on a file, so it ends with the processes that hold it, however they
end. Where all GPUs are reserved, a job shares those that the fewest jobs use.

In a job that a batch system has started, and where no GPU is known, nothing is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

VISIBLE = "CUDA_VISIBLE_DEVICES"
BATCH_JOB = "PREFIX_BATCH_JOB"  # the environment variable that Snakemake sets inside of a batch job
LISTED = re.compile(r"(?P<gpu>GPU) (?P<index>\d+): |\s+MIG .*\(UUID: (?P<mig>MIG-[^)\s]+)\)")  # by nvidia-smi -L


def leave_to_batch_system(workflow) -> None:
    """Note for the jobs of this Snakemake, if it runs inside of a batch job, that their GPUs were chosen for them."""
    if workflow.remote_exec:
        os.environ[BATCH_JOB] = "1"


@contextlib.contextmanager
def own_gpus(count: int) -> Iterator[list[int]]:
    """Reserve this many GPUs and show them alone to what the block starts; yields file descriptors.

    A child that inherits them keeps the reservation, should this process be killed alone.
    """
    gpus = visible_gpus() if count and not os.environ.get(BATCH_JOB) else []
    folder = _folder() if gpus else None
    if folder is None:
        yield []
        return
    before = os.environ.get(VISIBLE)
    with contextlib.ExitStack() as stack:
        reserved = reserve(folder, gpus, count)
        for file in reserved.values():
            stack.enter_context(file)
        os.environ[VISIBLE] = ",".join(gpu for gpu in gpus if gpu in reserved)
        try:
            yield [file.fileno() for file in reserved.values()]
        finally:
            os.environ.pop(VISIBLE)
            os.environ |= {} if before is None else {VISIBLE: before}


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by number or by the names that the user has given to CUDA_VISIBLE_DEVICES."""
    if VISIBLE in os.environ:
        names = (name.strip() for name in os.environ[VISIBLE].split(","))
        return list(dict.fromkeys(itertools.takewhile(lambda name: name and name != "-1", names)))  # as CUDA reads it
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [match for match in map(LISTED.match, listed.splitlines()) if match]
    return [
        match["index"] or match["mig"]
        for match, after in itertools.zip_longest(found, found[1:])
        if match["mig"] or not (after and after["mig"])  # a GPU that is split is used by its parts alone
    ]


def reserve(folder: Path, gpus: list[str], count: int) -> dict[str, IO[str]]:
    """GPU -> lock, for `count` of these GPUs, or all of them; of each, the number of jobs that have it is the least."""
    taken: dict[str, IO[str]] = {}
    for others in itertools.count():
        for gpu in gpus:
            if len(taken) == min(count, len(gpus)):
                return taken
            if gpu not in taken and (lock := _lock(folder / f"{re.sub('[^A-Za-z0-9-]', '_', gpu)}.{others}")):
                taken[gpu] = lock


def _lock(path: Path) -> IO[str] | None:
    file = open(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _folder() -> Path | None:
    """Where this user's reservations on this machine are; None, with a notice, if it cannot be used."""
    folder = Path(tempfile.gettempdir()) / f"fairseq-prefix-gpus-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(0, "it belongs to another user")
        with open(folder / "test", "a") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        reason = f"{folder}: {error.strerror}; the GPUs are not shared out, and jobs side by side may use the same one"
        print(f"notice: {reason}", file=sys.stderr)
        return None
    return folder
