"""What a stage wrote is what the next one reads: every output's SHA-256 is noted, and compared where it is an input.

A disk, a copy or a hand may change a file after it was made, and most formats do not show it: a flipped bit in a text
is another text. The notes are taken around Snakemake's jobs, so that one place covers every stage and every kind of
file. They lie beside the files (that of data/a/b.txt is data/.sha256/a/b.txt): workflows that share a folder share its
notes. A file without a note, such as one laid in place by hand, is taken as it is.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path

from common import sha256_file
from snakemake.exceptions import WorkflowError

NOTES = ".sha256"


def check_files(workflow) -> None:
    """Have the jobs of the workflow's rules verify their inputs, and note their outputs.

    Raises:
        LookupError: the functions of the rules are not called with the inputs and the outputs first.
    """
    rules = [rule for rule in workflow.rules if rule.run_func is not None]
    for rule in rules:
        first_two = list(inspect.signature(rule.run_func).parameters)[:2]
        if first_two != ["input", "output"]:
            raise LookupError(f"rules are called with {', '.join(first_two)}")
    for rule in rules:
        rule.run_func = _checked(rule.run_func)


def _checked(run: Callable) -> Callable:
    def checked(input, output, *others, **named):
        for file in input:
            verify(file)
        for note in filter(None, map(_note, output)):
            note.unlink(missing_ok=True)
        run(input, output, *others, **named)
        for file in output:
            with contextlib.suppress(OSError):  # a full disk: the file is good, and better kept without a note
                write_note(file)

    return checked


def verify(file: str) -> None:
    """Compare a file with its note, where there is one.

    Raises:
        WorkflowError: it is not what was written.
    """
    note = _note(file)
    try:
        expected = note.read_text() if note else ""
        found = _digest(file) if re.fullmatch("[0-9a-f]{64}", expected) else expected
    except FileNotFoundError:
        return
    except OSError as error:
        raise WorkflowError(f"error: {file}: cannot be read ({error.strerror})") from None
    if found != expected:
        raise WorkflowError(
            f"error: {file} is damaged or was changed: its SHA-256 is not what was noted when it was made. "
            f"Delete it and run again; if the change is meant, delete {note} instead"
        )


def write_note(file: str) -> None:
    """Note the SHA-256 of a file."""
    if note := _note(file):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f".{note.name}.part")
        temporary.write_text(_digest(file))
        os.replace(temporary, note)


def _digest(file: str) -> str:
    """Its SHA-256, read once while the file stays the same: a large base is an input of many jobs."""
    state = os.stat(file)
    return _digest_of_state(file, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.cache
def _digest_of_state(file: str, *_: int) -> str:
    return sha256_file(file)


def _note(file: str) -> Path | None:
    """Where a file's note is; files outside the working directory, or directly in it, have none."""
    top, *rest = Path(file).parts
    return None if Path(file).is_absolute() or ".." in rest or top == ".." or not rest else Path(top, NOTES, *rest)
