"""Checkpoints on a disk of this machine, for where the shared one is slow: PREFIX_SCRATCH names a folder on it.

A training saves there; after each time the last and the best checkpoint are copied to where they would be otherwise, so
that a job that is sent again goes on from them on any machine. Without PREFIX_SCRATCH nothing of this happens, nor for
a training across several nodes, each of which has to find the last checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from common import UserError, atomic_path

VARIABLE = "PREFIX_SCRATCH"
KEPT = ("checkpoint_last.pt", "checkpoint_best.pt")
SAVED = "Saved checkpoint "  # in fairseq's log, when a checkpoint and its copies are complete


class Scratch:
    """Where a training saves (`folder`), and the folder `shared` that has its checkpoints whenever it ends."""

    def __init__(self, shared: Path, folder: Path) -> None:
        self.folder = folder
        self._shared = shared
        self._copied: dict[str, int] = {}

    def follow(self, line: str) -> None:
        """Copy what is new after a line of fairseq's log that says so."""
        if SAVED in line:
            self.copy()

    def copy(self) -> None:
        """Bring the shared folder up to date."""
        for name in KEPT:
            path = self.folder / name
            with contextlib.suppress(FileNotFoundError):
                if self.folder != self._shared and (saved := path.stat().st_mtime_ns) != self._copied.get(name):
                    with atomic_path(self._shared / name) as temporary:
                        shutil.copyfile(path, temporary)
                    self._copied[name] = saved


@contextlib.contextmanager
def scratch(shared: Path, nodes: int = 1) -> Iterator[Scratch]:
    """A folder for a training to save in, which begins with what the shared folder has and is removed at the end.

    Raises:
        UserError: PREFIX_SCRATCH is no folder that can be written.
    """
    root = os.path.expanduser(os.environ.get(VARIABLE, ""))
    if root and nodes > 1:
        print(f"notice: {VARIABLE} is for trainings on one node; this one saves in {shared}", file=sys.stderr)
    if not root or nodes > 1:
        yield Scratch(shared, shared)
        return
    folder = Path(root) / f"prefix-{hashlib.sha256(str(shared.resolve()).encode()).hexdigest()[:16]}"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a job that was killed here
        folder.mkdir()
        for name in KEPT:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(shared / name, folder / name)
    except OSError as error:
        raise UserError(f"{VARIABLE}={root}: checkpoints cannot be written there ({error.strerror})") from None
    place = Scratch(shared, folder)
    try:
        yield place
    finally:
        place.copy()
        shutil.rmtree(folder, ignore_errors=True)
