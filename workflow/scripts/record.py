"""What is recorded of a training besides its measures: command, time, machine, versions, checksums of what it read."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import UserError, progress, sha256_file
from warm import PLUGIN

PACKAGES = ("fairseq-fixed", "fairseq-prefix", "numpy", "torch")


def begin_record(argv: list[str]) -> dict[str, object]:
    """Where, when, how and by which version of the project this is run."""
    threads = os.environ.get("OMP_NUM_THREADS")
    command = ["python", sys.argv[0], *argv]
    return {
        "command": (f"OMP_NUM_THREADS={shlex.quote(threads)} " if threads else "") + shlex.join(command),
        "begin": now(),
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": int(threads) if threads and threads.isdecimal() else None,
        "commit": commit(),
    }


def now() -> str:
    """The time, UTC, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def cpu_name() -> str:
    """The processor, as Linux calls it."""
    with contextlib.suppress(OSError):
        if match := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return match[1].strip()
    return platform.machine()


def commit() -> str | None:
    """The commit of the project, with `+changes` where files differ from it; None if it is not a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PLUGIN.parent), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != PLUGIN.parent:  # unpacked inside of another repository
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def digests(folders: list[Path], wanted: Callable[[str], bool] = lambda path: True) -> dict[str, str]:
    """Return the SHA-256 of every wanted file directly in these folders: binarised data, dictionaries, weights.

    Raises:
        UserError: there is no such folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    files = [
        path
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.suffix not in (".log", ".lock")
        and not path.name.startswith(".")
        and wanted(path.name)
    ]
    return {path.as_posix(): sha256_file(path) for path in progress(files, "checksums", leave=False)}


def versions() -> dict[str, str]:
    """What the outcome may depend on, besides flags and data."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # the plugin may be used from a clone
            found[package] = version(package)
    return found
