"""Exports: what was trained, folded, in one .safetensors file with its metadata as JSON in the header.

The file of a prefix or a prompt holds one tensor per site, P x (L*2*H*d) or P x D; that of other methods the tensors
that were trained.
"""

from __future__ import annotations

import json

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UsageError
from ..interfaces.family import FAMILIES
from . import metadata
from .loading import EXPORT_KEY, atomically

MODEL_ARGS_KEPT = ("arch", "activation_fn", "max_source_positions", "max_target_positions", "prefix_position")
TASK_ARGS_KEPT = ("_name", "source_lang", "target_lang", "max_source_tokens", "max_target_tokens")


def write(file: metadata.TunedFile, path: str) -> None:
    """Write an export.

    Raises:
        UsageError: the file cannot be written, or its name does not end in .safetensors.
    """
    if not str(path).endswith(".safetensors"):
        raise UsageError(f"{path}: expected a name that ends in .safetensors, which marks an export")
    kept = (*MODEL_ARGS_KEPT, *(name for family in FAMILIES for name in family.recorded))
    sizes = {k: v for k, v in file.model_args.items() if k.startswith(("encoder_", "decoder_"))}
    model_args = {**sizes, **{k: file.model_args[k] for k in kept if k in file.model_args}}
    task = {k: file.task[k] for k in TASK_ARGS_KEPT if k in file.task}
    # One key: safetensors writes several in an order that changes from run to run, and equal prefixes are equal files.
    header = {file.method.name: folded_metadata(file.metadata), "model_args": model_args, "task": task}
    tensors = {name: tensor.contiguous() for name, tensor in file.folded.items()}
    packed = {EXPORT_KEY: json.dumps(header, sort_keys=True)}
    atomically(path, lambda temporary: save_file(tensors, temporary, packed))


def folded_metadata(recorded: dict) -> dict:
    """Return the metadata of the same virtual tokens without an MLP."""
    return {**recorded, "reparam": "flat", "mid_dim": None} if "reparam" in recorded else recorded


def read(path: str) -> tuple[dict, dict, dict, dict[str, Tensor]]:
    """Return metadata, options of model and task, and tensors under the names of a checkpoint.

    Raises:
        UsageError: the file is not an export, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(header[EXPORT_KEY])
        model_args, task = header.pop("model_args"), header.pop("task")
        (recorded,) = header.values()  # under the name of the method
        return metadata.checked(recorded), model_args, task, metadata.method_of(recorded).unfold(tensors)
    except UsageError:
        raise
    except Exception as error:  # the header may be anything
        raise UsageError(
            f"{path} is not an export of a prefix, prompt, adapters or top layers, or is damaged ({error})"
        ) from None
