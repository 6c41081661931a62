"""Refuse options of fairseq-train that cannot work, with the plugin or at all, before anything is loaded."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from ..errors import UsageError
from ..families.model import FromBase
from .task import PairTask


def check_first(call: Callable) -> Callable:
    """Return fairseq's `call_main` with `check` before trainings."""

    @functools.wraps(call)
    def call_main(cfg, main, **arguments):
        if _trains(main):
            check(cfg)
        return call(cfg, main, **arguments)

    return call_main


def _trains(main) -> bool:
    """Return whether fairseq-train or fairseq-hydra-train runs. The options do not show it: all name a criterion."""
    module = sys.modules.get(getattr(main, "__module__", ""))
    path = Path(getattr(module, "__file__", None) or "")
    return getattr(main, "__name__", None) == "main" and path.parts[-2:] == ("fairseq_cli", "train.py")


def concerns_the_plugin(cfg) -> bool:
    """Return whether the task or the model of these options is the plugin's; fairseq's own may support more."""
    model, task = (getattr(cfg, name, None) for name in ("model", "task"))
    names = [name for key in ("arch", "_name") if isinstance(name := getattr(model, key, None), str)]
    classes = [registry.get(name) for name in names for registry in (ARCH_MODEL_REGISTRY, MODEL_REGISTRY)]
    classes.append(TASK_REGISTRY.get(getattr(task, "_name", None)))
    return any(isinstance(one, type) and issubclass(one, FromBase | PairTask) for one in classes)


def check(cfg) -> None:
    """Refuse the first option that cannot work.

    Raises:
        UsageError: names the option and says what to do.
    """
    common, distributed = cfg.common, cfg.distributed_training
    for option, value, least in (
        ("update-freq", min(cfg.optimization.update_freq), 1),
        ("seed", common.seed, 0),
        ("num-workers", cfg.dataset.num_workers, 0),
    ):
        if value < least:
            raise UsageError(f"--{option} is {value}; expected {least} or more")
    try:
        with contextlib.suppress(OSError):  # the task names a missing folder
            data_utils.raise_if_valid_subsets_unintentionally_ignored(cfg)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if (common.bf16 or common.tpu) and utils.xm is None:
        option = "--bf16" if common.bf16 else "--tpu"
        raise UsageError(f"{option} requires torch_xla and a TPU in fairseq; leave it out, or use --fp16 on a GPU")
    if common.fp16 and common.amp:
        raise UsageError("--fp16 and --amp exclude each other; leave one of them out")
    # fairseq's memory-efficient optimizer works on a CPU, and so does --amp, which has no effect there.
    if common.fp16 and not common.memory_efficient_fp16 and (common.cpu or not torch.cuda.is_available()):
        why = "--cpu is given" if common.cpu else "this machine has none that torch can use"
        raise UsageError(
            f"--fp16 requires a CUDA GPU, but {why}; leave --fp16 out to train in full precision "
            "(the workflow does so itself, with a notice)"
        )
    if not concerns_the_plugin(cfg):
        return
    for option, given in (
        ("--ddp-backend fully_sharded", distributed.ddp_backend == "fully_sharded"),
        ("--cpu-offload", distributed.cpu_offload),
        (f"--zero-sharding {distributed.zero_sharding}", distributed.zero_sharding != "none"),
        (f"--model-parallel-size {common.model_parallel_size}", common.model_parallel_size != 1),
        ("--pipeline-model-parallel", distributed.pipeline_model_parallel),
    ):
        if given:
            raise UsageError(
                f"{option} is not supported by this plugin, which keeps a whole model on each device; leave it out"
            )
