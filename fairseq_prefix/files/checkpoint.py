"""Read what was trained over a base, from a checkpoint or an export; write checkpoints; describe files."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor

from ..errors import UsageError, first_line
from ..interfaces.family import family_of
from ..interfaces.method import Method
from . import export, metadata
from .base import BOOKKEEPING, check_weights, plain_options, recorded_options
from .dictionary import ABSENT_SYMBOLS
from .loading import atomically, check_contents, load_tensors, refusing


def read_tuned(path: str) -> metadata.TunedFile:
    """Read a training checkpoint (.pt) or an export (.safetensors) of what was trained over a base.

    Raises:
        UsageError: the file is neither, or damaged.
    """
    check_file(path)
    if str(path).endswith(".safetensors"):
        recorded, model_args, task, state = export.read(path)
    else:
        recorded, model_args, task, state = _read_checkpoint(path)
    method = metadata.method_of(recorded)
    _check_options(path, method, model_args, task)
    try:
        return metadata.TunedFile(recorded, model_args, task, state, method.fold(recorded, state))
    except Exception as error:  # metadata and names of a damaged file may be anything
        raise UsageError(f"{path}: the {method.noun} does not fit its metadata ({first_line(error)})") from None


def _read_checkpoint(path: str) -> tuple[dict, dict, dict, dict[str, Tensor]]:
    """Return metadata, options of model and task, and tensors."""
    loaded = load_tensors(Path(path))
    if not isinstance(loaded.get("model"), dict):
        raise UsageError(f"{path} is not a fairseq checkpoint")
    try:
        recorded = metadata.unpack(loaded["model"])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(loaded.get("cfg"), dict):
        raise UsageError(f"{path} is not a fairseq checkpoint: it holds no options")
    state = {name: tensor for name, tensor in loaded["model"].items() if name != metadata.METADATA_KEY}
    model_args, task = (plain_options(loaded["cfg"].get(part) or {}) for part in ("model", "task"))
    if task.get("max_source_tokens", 0) is None:  # the training ran with the default
        task["max_source_tokens"] = recorded["conventions"].get("max_source_tokens", 0)
    return recorded, model_args, task, state


def check_file(path: str) -> None:
    """Raise a `UsageError` unless the path is an existing file."""
    if Path(path).is_dir():
        raise UsageError(f"{path} is a folder; expected a file in it, such as checkpoint_best.pt or prefix.safetensors")
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")


def _check_options(path: str, method: Method, model_args: Any, task: Any) -> None:
    """Check that a file's options belong to a model of this method and to a task, and hold no code.

    Raises:
        UsageError: they do not.
    """
    with refusing(path):
        check_contents([model_args, task])
    sound = all(isinstance(part, dict) and all(isinstance(key, str) for key in part) for part in (model_args, task))
    arch, name = (model_args.get("arch"), task.get("_name")) if sound else (None, None)
    known = getattr(ARCH_MODEL_REGISTRY.get(arch), "method", None) if isinstance(arch, str) else None
    if known is not method:
        raise UsageError(f"{path}: expected the options of a {method.noun}'s architecture, got {arch!r}")
    numbers = [task.get(key, 0) for key in export.TASK_ARGS_KEPT if key.startswith("max_")]
    if not all(type(number) is int for number in numbers):
        raise UsageError(f"{path}: expected numbers among the task's options, got {numbers}")
    if name is not None and not (isinstance(name, str) and name in TASK_REGISTRY):
        raise UsageError(f"{path}: expected the options of a known task, got {name!r}")


def describe(path: str) -> dict:
    """Describe a checkpoint or an export, for people and for tables.

    Returns:
        kind, arch, trained_parameters, stored_parameters, base_parameters, base_fingerprint, dictionary_fingerprint,
        geometry, conventions, updates, bytes and what else a method records; for a whole model those that it has.
    """
    check_file(path)
    size, updates = Path(path).stat().st_size, {}
    exported = str(path).endswith(".safetensors")
    if not exported and size:
        loaded = load_tensors(Path(path))
        history = loaded.get("optimizer_history")
        last = history[-1] if isinstance(history, list) and history else None
        if isinstance(last, dict) and isinstance(last.get("num_updates"), int):
            updates = {"updates": last["num_updates"]}
        state: Any = loaded.get("model")
        if family_of(state) and metadata.METADATA_KEY not in state:
            return {**_describe_whole(path, loaded), **updates, "bytes": size}
    file = read_tuned(path)
    name = file.method.label
    return {
        "kind": f"exported {name}" if exported else f"{name} checkpoint",
        **{key: value for key, value in file.metadata.items() if key not in ("format", "tensors")},
        "trained_parameters": sum(tensor.numel() for tensor in file.state.values()),
        "stored_parameters": sum(tensor.numel() for tensor in file.folded.values()),
        "task": file.task.get("_name"),
        **updates,
        "bytes": size,
    }


def _describe_whole(path: str, loaded: dict) -> dict:
    check_weights(path, loaded["model"])
    family = family_of(loaded["model"])
    left_out = (*(family.tied if family else ()), ABSENT_SYMBOLS)
    state = {name: tensor for name, tensor in loaded["model"].items() if not name.endswith(BOOKKEEPING)}
    count = sum(tensor.numel() for name, tensor in state.items() if name not in left_out)
    model_args = {key: value for key, value in recorded_options(loaded).items() if isinstance(value, str)}
    return {
        "kind": "whole model",
        "arch": model_args.get("arch"),
        "trained_parameters": count,
        "stored_parameters": count,
        "base_parameters": count,
        "base_fingerprint": model_args.get("base_fingerprint"),
        "finetuned_from": model_args.get("finetuned_from"),
    }


def import_export(file: metadata.TunedFile, path: str, base_model: str) -> None:
    """Write what an export holds as a checkpoint that `fairseq-generate` and `fairseq-interactive` read."""
    method = file.method
    state = method.unfold(file.folded)
    state[metadata.METADATA_KEY] = metadata.pack(export.folded_metadata(file.metadata))
    model_args = {**file.model_args, **method.model_args(file.metadata)}
    try:
        cfg = configuration(model_args, file.task, base_model)
    except Exception as error:  # options of the right names may have any value
        raise UsageError(f"the options of the {method.noun} are not those of a model ({first_line(error)})") from None
    write_checkpoint(path, cfg, state)


def write_checkpoint(path: str, cfg, model_state: dict[str, Tensor]) -> None:
    """Write a checkpoint that `fairseq-generate` and `fairseq-interactive` read, of a model that was not trained.

    Raises:
        UsageError: the file cannot be written, or its name is that of an export.
    """
    if str(path).endswith(".safetensors"):
        raise UsageError(f"{path}: expected a name that does not end in .safetensors, such as prefix.pt")
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model_state,
        "criterion": None,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 0, "iterations_in_epoch": 0}},
    }
    atomically(path, lambda temporary: torch.save(state, temporary))


def configuration(model_args: dict, task: dict, base_model: str):
    """Return the configuration that fairseq-train would record for this model."""
    task_name = task.get("_name") or ARCH_MODEL_REGISTRY[model_args["arch"]].family.default_task
    command = [".", "--task", task_name, "--arch", model_args["arch"], "--base-model", base_model]
    args: argparse.Namespace = options.parse_args_and_arch(options.get_training_parser(), command)
    vars(args).update(model_args)
    vars(args).update({key: value for key, value in task.items() if key != "_name"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Hydra's, about fairseq's use of it
        return convert_namespace_to_omegaconf(args)
