"""Hooks into parts of Snakemake that it may rename: its log handler, scheduler and lock, and its rules' functions.

Each hook is installed by itself. One that does not fit the Snakemake that is installed is left out with a notice; the
workflow runs without any of them. Hooks that replace a method are installed in tested versions only: in a later one a
method of the same name may do something else.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

from packaging.version import Version

FIRST_UNTESTED = "9.28"
# (module, function that takes the workflow, whether it replaces a method, what is lost without it)
AT_START = (
    ("watch", "attach", False, "Snakemake's own display is shown, and `make status` does not see this run"),
    ("gpus", "leave_to_batch_system", False, "jobs of a batch system choose among the GPUs that they were given"),
    ("scheduler", "refuse_what_cannot_run", False, "options with which no job can run are not refused"),
    ("scheduler", "look_once_at_a_time", True, "Snakemake takes a core for itself after some hundred jobs"),
    ("scheduler", "handle_signals", True, "trainings in batch jobs may not learn of signals"),
    (
        "unlock",
        "unlock_after_a_kill",
        True,
        "after a kill, run workflow/scripts/unlock.py before the same command",
    ),
)
OF_RULES = (("checksums", "check_files", False, "checksums of files are neither written nor compared"),)


def is_tested() -> bool:
    """Whether methods of the Snakemake that is installed may be replaced."""
    return Version(version("snakemake")) < Version(FIRST_UNTESTED)


def install(workflow, hooks: tuple[tuple[str, str, bool, str], ...]) -> None:
    """Install these hooks, as far as they fit."""
    for module, function, replaces_method, loss in hooks:
        try:
            if replaces_method and not is_tested():
                raise LookupError(f"versions from {FIRST_UNTESTED} on are untested")
            getattr(importlib.import_module(module), function)(workflow)
        except (ImportError, AttributeError, LookupError, TypeError) as error:
            reason = f"Snakemake {version('snakemake')} differs from the one that requirements.lock names ({error})"
            print(f"notice: {reason}: {loss}", file=sys.stderr)
