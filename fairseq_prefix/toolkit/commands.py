"""How fairseq's own commands end because of a `UsageError`: with its sentence, status 1, and no traceback.

An application that imports the plugin does not pass through the entry points of these commands.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from hydra.core.utils import JobReturn

from ..errors import UsageError, ending_with_a_sentence


def end_with_a_sentence() -> None:
    """Replace the functions in which the commands do their work, in one process or in many."""
    distributed_utils.call_main = ending_with_a_sentence()(distributed_utils.call_main)
    Trainer.save_checkpoint = _without_crash(Trainer.save_checkpoint)
    for command in _running("generate"):  # the one command that does without `call_main`
        command.main = ending_with_a_sentence()(command.main)
    if any(_running("hydra_train")):  # has called `call_main` already; Hydra raises the error here once more
        JobReturn.return_value = JobReturn.return_value.getter(ending_with_a_sentence()(JobReturn.return_value.fget))


def _running(command: str) -> Iterator[ModuleType]:
    """The module of a command that is loaded, as the program itself or by its script."""
    for module in map(sys.modules.get, ("__main__", f"fairseq_cli.{command}")):
        if Path(getattr(module, "__file__", None) or "").parts[-2:] == ("fairseq_cli", f"{command}.py"):
            yield module


def _without_crash(save_checkpoint):
    """fairseq writes a crash.pt after any error of a training step, also if the step only refuses an option."""

    @functools.wraps(save_checkpoint)
    def save(self, filename, *args, **options):
        if not (isinstance(sys.exc_info()[1], UsageError) and str(filename).endswith("crash.pt")):
            return save_checkpoint(self, filename, *args, **options)

    return save
