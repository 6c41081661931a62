"""What a file records of the tensors that were trained over a base, and the one place that verifies it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..interfaces.family import SITES, family_of
from ..interfaces.method import METHODS, Method

FORMAT = 1
METADATA_KEY = "prefix.metadata"  # of a checkpoint, whatever the method


def method_of(metadata: dict) -> Method:
    """Return the method that a file's metadata names.

    Raises:
        UsageError: this version does not know it.
    """
    method = METHODS.get(metadata.get("method", "prefix"))
    if method is None or not method.stored:
        raise UsageError(
            f"the file is of the method {metadata['method']!r}, which this version does not know; update the plugin"
        )
    return method


@dataclass(frozen=True)
class TunedFile:
    """The content of a checkpoint or an export.

    Attributes:
        metadata: what it records of base, dictionary, geometry and conventions.
        model_args: options of the model.
        task: options of the task.
        state: name in a checkpoint -> tensor.
        folded: name in an export -> tensor.
    """

    metadata: dict
    model_args: dict
    task: dict
    state: dict[str, Tensor]
    folded: dict[str, Tensor]

    @property
    def method(self) -> Method:
        return method_of(self.metadata)


def pack(metadata: dict) -> Tensor:
    """Return metadata as a tensor: a checkpoint's model part may hold only tensors.

    The bytes of the JSON are inverted, so that averaging checkpoints overflows and garbles them: an average of MLP
    weights is not an average of prefixes and must not pass for one.
    """
    return 255 - torch.frombuffer(bytearray(json.dumps(metadata, sort_keys=True).encode("ascii")), dtype=torch.uint8)


def unpack(state: dict[str, Tensor]) -> dict:
    """Return the metadata in a checkpoint's model part.

    Raises:
        UsageError: it is missing, damaged, or of a later format or method.
    """
    if METADATA_KEY not in state:
        kind = (
            "is a whole model: pass it as --base-model, or to api.load" if family_of(state) else "holds something else"
        )
        raise UsageError(f"expected the checkpoint of a prefix, prompt, adapters or top layers, but this one {kind}")
    try:
        return checked(json.loads(bytes((255 - state[METADATA_KEY]).tolist()).decode("ascii")))
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        raise UsageError(
            "the checkpoint's metadata is damaged (checkpoints of a prefix and the like cannot be averaged)"
        ) from None


def checked(metadata: dict) -> dict:
    """Return metadata that this version can read.

    Raises:
        UsageError: it is of a later format or of an unknown method.
        KeyError, TypeError, ValueError, AttributeError: it is not metadata.
    """
    if metadata["format"] != FORMAT:
        raise UsageError(f"the file is of format {metadata['format']}, this version reads {FORMAT}; update the plugin")
    method_of(metadata)
    shapes, conventions = metadata["geometry"].items(), metadata["conventions"]
    numbers = [metadata.get("base_parameters", 0), *(number for _, shape in shapes for number in shape.values())]
    texts = [metadata[key] for key in ("arch", "base_fingerprint", "dictionary_fingerprint")]
    sound = (
        all(site in SITES for site, _ in shapes)
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(text, str) and text.isprintable() for text in texts)
        and isinstance(conventions["bos"], bool)
        and type(limit := conventions.get("max_source_tokens", 0)) is int
        and limit >= 0
    )
    if not sound:
        raise ValueError("not the metadata of this plugin")
    return metadata


def verify(theirs: dict, model, where: str, dictionary: str = "that of the data", adopted: bool = False) -> None:
    """Refuse what was trained for another base, dictionary, geometry or convention than the model's.

    Args:
        theirs: metadata of a file.
        model: a tuned model.
        where: the file, for the message.
        dictionary: the model's dictionary, for the message.
        adopted: whether the model adopts the file's lengths, parametrisation and limits, as the API does for each
            prefix.

    Raises:
        UsageError: in one sentence.
    """
    method, noun = model.method, model.method.noun
    if (other := method_of(theirs)) is not method:
        expected = f"only a {noun} can be added" if adopted else f"--arch {model.args.arch} expects a {noun}"
        raise UsageError(f"{where} holds a {other.noun}, but {expected}")
    if not adopted:
        _verify_geometry(theirs, model.metadata(), method, where)
    if theirs["dictionary_fingerprint"] != model.dictionary_fingerprint:
        raise UsageError(f"the {noun} in {where} was trained with another dictionary than {dictionary}")
    if theirs["base_fingerprint"] != model.base_fingerprint:
        raise UsageError(
            f"the {noun} in {where} was trained over another base (fingerprint {theirs['base_fingerprint'][:12]}) than "
            f"{model.args.base_model} ({model.base_fingerprint[:12]}); a {noun} works only with its own base"
        )
    if theirs["geometry"]:  # an untouched base depends on no convention
        _verify_conventions(theirs["conventions"], model.conventions, f"the {noun} in {where}", adopted)
    if adopted:
        shapes = {site: shape for site, shape in theirs["geometry"].items() if site in model.family.sites}
        ours = {site: model.site_geometry(site, shape.get("length")).metadata() for site, shape in shapes.items()}
        _verify_geometry({"geometry": theirs["geometry"]}, {"geometry": ours}, method, where)


def _verify_geometry(theirs: dict, ours: dict, method: Method, where: str) -> None:
    if theirs["geometry"] != ours["geometry"]:
        raise UsageError(
            f"the {method.noun} in {where} has the geometry {describe_geometry(theirs['geometry'], method)}, "
            f"the model {describe_geometry(ours['geometry'], method)}"
        )
    for key in ("reparam", "mid_dim"):
        if theirs.get(key) != ours.get(key):
            option = f"--{method.name}-" + key.replace("_", "-")
            raise UsageError(f"the {method.noun} in {where} has {option} {theirs[key]}, the model {ours[key]}")


def _verify_conventions(theirs: dict, ours: dict, what: str, adopted: bool) -> None:
    separator = theirs.get("separator", None if adopted else ours.get("separator"))  # the first files lack it
    if theirs["bos"] != ours["bos"] or separator != ours.get("separator"):
        with_bos = "with" if theirs["bos"] else "without"
        task = "conditional_generation" if theirs["bos"] else "translation"
        raise UsageError(f"{what} was trained {with_bos} <s> around the text and requires --task {task}")
    if adopted:
        for key in sorted(ours.keys() - theirs.keys()):
            raise UsageError(f"{what} does not record {key}; export it again from its checkpoint")
        return
    for key in sorted((theirs.keys() | ours.keys()) - {"bos", "separator", "max_source_tokens"}):
        if theirs.get(key) != ours.get(key):
            raise UsageError(f"{what} was trained with --{key.replace('_', '-')} {theirs.get(key)}; pass that")
    if theirs.get("max_source_tokens") != (given := ours.get("max_source_tokens")):
        limit = theirs["max_source_tokens"]
        raise UsageError(
            f"{what} was trained with --max-source-tokens {limit}, not {given}; pass --max-source-tokens {limit} "
            "(without the option, a search takes it from the checkpoint)"
        )


def describe_geometry(geometry: dict[str, dict], method: Method) -> str:
    """Return a geometry for people, such as "encoder 200 x 12 layers x 16*64, ..."."""
    if not geometry:
        return f"of no {method.name}"
    return ", ".join(f"{site} {method.describe_site(geometry[site])}" for site in SITES if site in geometry)
