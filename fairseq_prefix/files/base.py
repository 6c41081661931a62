"""Read a base: a fairseq archive or a Hugging Face folder, of any registered family."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UsageError, first_line
from ..interfaces.family import FAMILIES, Base, Family, family_of, known_families
from .dictionary import ABSENT_SYMBOLS, check_dictionary, place_rows, read_symbols, without_mask
from .loading import load_tensors
from .metadata import METADATA_KEY, method_of, unpack

MOST_LAYERS = 500  # of a base; the largest GPT-2 has 48
BOOKKEEPING = (".version", "._float_tensor")  # ends of names of fairseq's entries that are not weights


def read_base(path: str, family: Family | None = None) -> Base:
    """Read a base: a folder with model.pt and dict.txt, a .pt file, or a Hugging Face folder.

    Args:
        family: the family it must be of; None accepts any.

    Raises:
        UsageError: nothing is there, or no base of this family.
    """
    base = Path(path)
    if base.is_dir():
        if (base / "config.json").exists():
            return _read_hugging_face(base, family)
        if not (base / "model.pt").exists():
            raise UsageError(f"{path}: the folder holds neither model.pt nor config.json")
        base = base / "model.pt"
    elif not base.exists():
        raise UsageError(f"{path}: no such file or folder; expected a base")
    state = load_tensors(base)
    weights: Any = state.get("model")
    if isinstance(weights, dict) and METADATA_KEY in weights:
        raise UsageError(
            f"{base} holds only a {method_of(unpack(weights)).noun}; pass the base that it was trained over"
        )
    settings = recorded_options(state)
    if family is None:
        family = family_of(weights, settings)
        if family is None:
            raise UsageError(f"{base} is not a fairseq checkpoint of a {known_families()}")
    elif not (isinstance(weights, dict) and family.recognises(weights, settings)):
        raise UsageError(f"{base} is not a fairseq {family.name} checkpoint (it has no {family.embedding})")
    check_weights(base, weights)
    return Base(base, dict(weights), read_symbols(base.parent, family), settings, family=family)


def _read_hugging_face(folder: Path, family: Family | None) -> Base:
    config = read_json(folder / "config.json", "a model's configuration")
    raw = _read_weights(folder)
    if family is None:
        kinds: dict[Any, Family] = {known.config["model_type"]: known for known in FAMILIES}
        kind = config.get("model_type")
        if kind not in kinds:
            raise UsageError(f"{folder}/config.json: model_type is {kind!r}; expected {' or '.join(sorted(kinds))}")
        family = kinds[kind]
    for key, value in family.config.items():
        if config.get(key, value) != value:
            raise UsageError(f"{folder}/config.json: {key} is {config[key]!r}, but only {value!r} is supported")
    with _as_family(folder, family):
        return replace(family.convert(family, folder, config, raw), family=family)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a Hugging Face folder."""
    if (folder / "model.safetensors").exists():
        try:
            return load_file(folder / "model.safetensors")
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{folder}/model.safetensors cannot be loaded: {error}") from None
    if (folder / "pytorch_model.bin").exists():
        weights = load_tensors(folder / "pytorch_model.bin")
        check_weights(folder / "pytorch_model.bin", weights)
        return weights
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).exists():
            raise UsageError(
                f"{folder}/{index}: weights in several files are not supported; save them in one, with "
                'save_pretrained(FOLDER, max_shard_size="100GB") of transformers'
            )
    raise UsageError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


def read_json(path: Path, what: str) -> dict:
    """Return the object in a JSON file.

    Raises:
        UsageError: the file is not `what`.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise UsageError(f"{path} is not {what} ({error})") from None


@contextlib.contextmanager
def _as_family(path: Path, family: Family) -> Iterator[None]:
    """Turn errors of code that reads weights of any shape as this family's into one sentence."""
    try:
        yield
    except UsageError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: the weights are not those of a {family.name} ({first_line(error)})") from None


def require_tied(path: Path, embeddings: list[Tensor]) -> None:
    """Raise a `UsageError` unless all embeddings are equal: one is used for all."""
    if not all(torch.equal(tensor, embeddings[0]) for tensor in embeddings[1:]):
        raise UsageError(f"{path}: the embeddings of its parts differ; only tied embeddings are supported")


def check_weights(path: str | os.PathLike, state: dict) -> None:
    """Raise a `UsageError` unless these are tensors by name."""
    for name, tensor in state.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise UsageError(f"{path} cannot be loaded: {name!r} in it is not a tensor")


def recorded_options(loaded: dict) -> dict:
    """Return the model's options in the checkpoint of a whole model."""
    cfg = loaded.get("cfg")
    return plain_options(cfg["model"] if isinstance(cfg, dict) and "model" in cfg else loaded.get("args"))


def plain_options(namespace: object) -> dict:
    """Return those options of a checkpoint that are plain values."""
    items = vars(namespace) if isinstance(namespace, argparse.Namespace) else namespace
    if not isinstance(items, dict):
        return {}
    return {k: v for k, v in items.items() if v is None or isinstance(v, str | int | float | bool | list | dict)}


def sizes(base: Base) -> dict[str, int]:
    """Return those options of an architecture that the shapes of a base's weights show.

    Raises:
        UsageError: weights are missing, or claim more than the file holds.
    """
    family = base.family
    if family is None:
        raise UsageError(f"{base.path} is not a {known_families()}")
    found: dict[str, int] = {}
    least = 0
    try:
        width = base.state[family.embedding].size(1)
        for part, side in zip(family.parts, ("source", "target")[-len(family.parts) :], strict=True):
            layers = len({name.split(".")[2] for name in base.state if name.startswith(f"{part}.layers.")})
            inner = base.state[f"{part}.layers.0.fc1.weight"].size(0)
            positions = base.state[f"{part}.embed_positions.weight"].size(0) - 2
            found |= {f"{part}_layers": layers, f"{part}_embed_dim": width}
            found |= {f"{part}_ffn_embed_dim": inner, f"max_{side}_positions": positions}
            least += layers * (4 * width**2 + 2 * width * inner) + positions * width
    except KeyError as error:
        raise UsageError(f"{base.path} lacks {error}; it is not a complete {family.name}") from None
    except IndexError:
        raise UsageError(f"{base.path}: its weights do not have the shapes of a {family.name}") from None
    # Building a model allocates what its base claims; a layer that is only a name costs a file nothing.
    deepest = max(found[f"{part}_layers"] for part in family.parts)
    if min(found.values()) < 1 or deepest > MOST_LAYERS or least > _stored(base.state):
        raise UsageError(f"{base.path} does not hold what its names and shapes claim; it is not a {family.name}")
    return found


def _stored(state: dict[str, Tensor]) -> int:
    """Return how many numbers the tensors hold, some of which may share a storage."""
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in state.values()}
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in storages.values())


def load_into(model: Any, base: Base, dictionary: Dictionary, arch: str) -> None:
    """Load a base's weights into those parts of a model that its family names.

    Raises:
        UsageError: the dictionary or the architecture is not the base's.
    """
    family = model.family
    check_dictionary(base, dictionary)
    _check_settings(base, model, arch)
    parts = tuple(f"{part}." for part in family.parts)
    state = {name: t for name, t in base.state.items() if name.startswith(parts) and name not in family.tied}
    wanted = {
        name: tensor
        for part in family.parts
        for name, tensor in getattr(model, part).state_dict(prefix=f"{part}.").items()
    }
    with _as_family(base.path, family):
        place_rows(state, base, family, dictionary)
        state |= dict.fromkeys((name for name in family.tied if name in wanted), state[family.embedding])
        model.upgrade_state_dict_named(state, "")
    require_tied(base.path, [base.state[name] for name in (family.embedding, *family.tied) if name in base.state])
    state = {name: tensor for name, tensor in state.items() if not name.endswith(BOOKKEEPING)}
    missing = [name for name in wanted if name not in state and not name.endswith(BOOKKEEPING)]
    surplus = [name for name in state if name not in wanted]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"holds {surplus[0]}, which --arch {arch} has no place for"
        raise UsageError(f"{base.path} {what}; choose the architecture of this base")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (tensor.shape, wanted[name].shape))
            raise UsageError(
                f"{base.path}: {name} is {theirs}, but --arch {arch} expects {ours}; "
                "choose the architecture of this base"
            )
    for part in family.parts:
        own = {name.removeprefix(f"{part}."): t.float() for name, t in state.items() if name.startswith(f"{part}.")}
        getattr(model, part).load_state_dict(own, strict=False)  # completeness was checked above


def _check_settings(base: Base, model: Any, arch: str) -> None:
    """Compare the options that change what a model computes but no shape of its weights, such as attention heads."""
    for option in model.family.settings:
        theirs, ours = base.settings.get(option), getattr(model.args, option)
        if theirs is not None and theirs != ours:
            raise UsageError(
                f"{base.path} was trained with --{option.replace('_', '-')} {theirs}, but --arch {arch} has {ours}; "
                "choose the architecture of this base"
            )


@torch.no_grad()
def fingerprint(model: Any, dictionary: Dictionary) -> str:
    """Return the hex SHA-256 of a base's weights (names, shapes, fp32 values), independent of its file format.

    The row of `<mask>` is left out: whether it is loaded depends on the task's dictionary.
    """
    digest, family = hashlib.sha256(), model.family
    rows = len(without_mask(dictionary.symbols))
    for part in family.parts:
        for name, tensor in sorted(getattr(model, part).state_dict(prefix=f"{part}.").items()):
            if name in family.tied or name.endswith(BOOKKEEPING):
                continue
            tensor = tensor[:rows] if name in (family.embedding, ABSENT_SYMBOLS) else tensor
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
