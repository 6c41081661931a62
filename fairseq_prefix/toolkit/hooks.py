"""Every change of fairseq's behaviour, each with its reason, in one table: `changes()`.

Besides, `install` has processes that load data ignore signals, and preemption.py wraps two methods of each trainer.

fairseq's commands install them through `--user-dir` (the folder tasks). Importing the package installs none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.models.ema import EMA
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from ..errors import UsageError, ending_with_a_sentence
from ..files import loading
from . import preemption, training_options
from .task import PairTask

Change = tuple[Any, str, Callable]  # an object, the name of one of its functions, what wraps that function


def changes() -> list[Change]:
    """Return all changes in their order: of two that concern one function, the later wraps the earlier."""
    all_commands: list[Change] = [
        # A checkpoint is untrusted, but fairseq leaves it to torch and to the environment whether code is unpickled.
        (checkpoint_utils, "load_checkpoint_to_cpu", _load_tensors_only),
        # fairseq evaluates some options of a checkpoint as Python.
        (checkpoint_utils, "_upgrade_state_dict", _check_contents_first),
        # fairseq looks for shards, which checkpoints of the plugin never have, and then fails with a traceback.
        (checkpoint_utils, "load_model_ensemble_and_task", _name_the_missing_file),
        # fairseq copies checkpoints in place: a run killed meanwhile would leave half a checkpoint_last.pt.
        (PathManager, "copy", _copy_atomically),
        # fairseq multiplies a whole state by the decay of an average, which torch refuses for integers (the metadata).
        (EMA, "__init__", _average_floats_only),
        # fairseq's average lacks `decoder.version`, without which a decoder loses its last layer norm.
        (EMA, "restore", _restore_all_names),
        # fairseq announces that an average starts from the checkpoint's weights, but has deleted them by then.
        (checkpoint_utils, "load_checkpoint", _start_average_from_model),
        # A training saves when it receives SIGTERM or SIGUSR1; trainings in several processes can resume.
        (checkpoint_utils, "load_checkpoint", preemption.watch_training),
        # A training that received such a signal ends as soon as it has saved.
        (checkpoint_utils, "save_checkpoint", preemption.end_after_saving),
        # fairseq draws batches by the epoch in which a process starts: a resumed training had other batches.
        (FairseqTask, "get_batch_iterator", _same_batches_after_resuming),
        # fairseq's commands ask the task for the encoder of texts, but its hub interface does not.
        (GeneratorHubInterface, "__init__", _ask_the_task_for_the_bpe),
        # fairseq writes a crash.pt after any error of a training step, also if the step refuses an option.
        (Trainer, "save_checkpoint", _no_crash_checkpoint),
        # Options that cannot work end with a sentence before anything is loaded, not later with a traceback.
        (distributed_utils, "call_main", training_options.check_first),
        # A process that waits for those it started, one per GPU, forwards signals to them.
        (distributed_utils, "call_main", preemption.forward_signals),
        # A `UsageError` ends fairseq's commands with its sentence and status 1, without a traceback.
        (distributed_utils, "call_main", ending_with_a_sentence()),
    ]
    # fairseq-generate does not use `call_main`.
    generate: list[Change] = [(module, "main", ending_with_a_sentence()) for module in _running("generate")]
    # fairseq-hydra-train has called `call_main` before it imports the plugin; Hydra raises the error again here.
    hydra: list[Change] = [(JobReturn, "return_value", _end_with_a_sentence_in_hydra)]
    return all_commands + generate + (hydra if any(_running("hydra_train")) else [])


_installed = False


def install() -> None:
    """Install all changes in this process, once."""
    global _installed
    if not _installed:
        _installed = True
        for owner, name, wrap in changes():
            setattr(owner, name, wrap(getattr(owner, name)))
        os.register_at_fork(after_in_child=preemption.ignore_signals_in_data_workers)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def _load_tensors_only(load: Callable) -> Callable:
    """Refuse what `loading.load_tensors` refuses."""

    @functools.wraps(load)
    def load_checked(path: str, *args, **options) -> dict:
        with loading.refusing(path), loading.only_tensors():
            local = PathManager.get_local_path(path)  # differs from `path` if that is not on this machine
            if local != path and PathManager.path_requires_pathmanager(path):
                return _load_fetched(load, path, local, *args, **options)
            loading.check_archive(path)
            return load(path, *args, **options)

    return load_checked


def _load_fetched(load: Callable, path: str, local: str, arg_overrides=None, load_on_all_ranks=False) -> dict:
    """Load a checkpoint from elsewhere. Like fairseq, fetch it again if it was fetched before, but check it afterwards:
    the file that is checked must be the one that is loaded.
    """
    with contextlib.suppress(FileNotFoundError):
        os.remove(local)
    if load_on_all_ranks:
        torch.distributed.barrier()
    local = PathManager.get_local_path(path)
    loading.check_archive(local)
    return load(local, arg_overrides, load_on_all_ranks)


def _check_contents_first(upgrade: Callable) -> Callable:
    @functools.wraps(upgrade)
    def upgrade_checked(state: dict) -> dict:
        config = state.get("cfg")
        if config is None and state.get("args") is None:
            raise loading.Refused("it holds no options, as the checkpoint of a training does; is it a base?")
        config = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
        loading.check_contents({**state, "cfg": config})
        return upgrade(state)

    return upgrade_checked


def _name_the_missing_file(load_models: Callable) -> Callable:
    @functools.wraps(load_models)
    def load_models_checked(
        filenames, arg_overrides=None, task=None, strict=True, suffix="", num_shards=1, state=None
    ) -> tuple:
        if num_shards != 1 and (task is None or _is_own(task)):
            raise UsageError(
                f"--checkpoint-shard-count {num_shards} is not supported: a checkpoint here is one file; leave it out"
            )
        try:
            return load_models(filenames, arg_overrides, task, strict, suffix, num_shards, state)
        except OSError as error:  # fairseq has looked for shards too, and wherever its PathManager looks
            missing = re.fullmatch("Model file not found: (.+)", str(error), re.DOTALL)
            if missing is None or not (task is None or _is_own(task)):
                raise
            raise UsageError(f"{missing[1]}: no such file; expected a checkpoint") from None

    return load_models_checked


def _is_own(task) -> bool:
    """Return whether a task is the plugin's."""
    return any(one.__module__.startswith(__name__.partition(".")[0] + ".") for one in type(task).__mro__)


def _copy_atomically(copy: Callable) -> Any:
    if PathManager.path_requires_pathmanager(""):
        return staticmethod(copy)

    @functools.wraps(copy)
    def copy_atomically(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if not overwrite and PathManager.exists(dst_path):
            return False
        loading.atomically(dst_path, lambda temporary: shutil.copyfile(src_path, temporary))
        return True

    return staticmethod(copy_atomically)


# Averages (`--store-ema`) ---------------------------------------------------------------------------------------------


def _average_floats_only(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_with_copies(self, model, config, device=None, skip_keys=None):
        copied = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
        init(self, model, config, device, copied | set(skip_keys or ()))

    return init_with_copies


def _restore_all_names(restore: Callable) -> Callable:
    @functools.wraps(restore)
    def restore_complete(self, state_dict, build_fp32_params=False):
        restore(self, {**self.model.state_dict(), **state_dict}, build_fp32_params)

    return restore_complete


def _start_average_from_model(load: Callable) -> Callable:
    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **arguments):
        if not trainer.cfg.ema.store_ema:
            return load(cfg, trainer, **arguments)
        read = checkpoint_utils.load_checkpoint_to_cpu

        def read_with_average(*args, **options) -> dict:
            state = read(*args, **options)
            state["extra_state"].setdefault("ema", state["model"])
            return state

        checkpoint_utils.load_checkpoint_to_cpu = read_with_average
        try:
            return load(cfg, trainer, **arguments)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = read

    return load_checkpoint


# Batches and texts ----------------------------------------------------------------------------------------------------


def _same_batches_after_resuming(get: Callable) -> Callable:
    """Draw the order of equally long examples, and so the batches, by the first epoch in every process."""

    @functools.wraps(get)
    def get_batch_iterator(self, dataset, *args, epoch=1, **options):
        # Batches that are drawn again in each epoch are the same after a restart.
        redrawn = options.get("disable_iterator_cache") or options.get("update_epoch_batch_itr")
        redrawn = redrawn or not self.can_reuse_epoch_itr(dataset)
        iterator = get(self, dataset, *args, epoch=epoch if redrawn else 1, **options)
        if iterator.next_epoch_idx == 1:  # a cached iterator knows its epoch
            iterator.epoch = max(epoch, 1)
        return iterator

    return get_batch_iterator


def _ask_the_task_for_the_bpe(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_with_bpe(self, cfg, task, models):
        init(self, cfg, task, models)
        if isinstance(task, PairTask):
            self.bpe = task.build_bpe(cfg.bpe)

    return init_with_bpe


# How commands end -----------------------------------------------------------------------------------------------------


def _running(command: str) -> Iterator[ModuleType]:
    """Yield the module of one of fairseq's commands, where it is loaded as the program itself or by its script."""
    for module in map(sys.modules.get, ("__main__", f"fairseq_cli.{command}")):
        path = Path(getattr(module, "__file__", None) or "")
        if module is not None and path.parts[-2:] == ("fairseq_cli", f"{command}.py"):
            yield module


def _no_crash_checkpoint(save_checkpoint: Callable) -> Callable:
    @functools.wraps(save_checkpoint)
    def save(self, filename, *args, **options):
        if not (isinstance(sys.exc_info()[1], UsageError) and str(filename).endswith("crash.pt")):
            return save_checkpoint(self, filename, *args, **options)

    return save


def _end_with_a_sentence_in_hydra(return_value: Any) -> property:
    return return_value.getter(ending_with_a_sentence()(return_value.fget))
