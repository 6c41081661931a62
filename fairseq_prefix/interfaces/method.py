"""Define `Method`, its options and its registry.

A method is one file: its `Method`, its typed options and a model class that is mixed into every family's model.
`methods/adapter.py` is the simplest complete example; docs/architecture.md lists what a method must provide.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor

from ..errors import UsageError
from .family import Family

T = TypeVar("T", bound="Options")


def option(
    default: Any, text: str, metavar: str | None = None, only_for: Callable[[Family], bool] | None = None
) -> Any:
    """Declare an option of a method as a dataclass field.

    Args:
        default: its value where neither a command nor a family sets one.
        text: its help.
        only_for: says for which families the option exists.
    """
    return field(default=default, metadata={"help": text, "metavar": metavar, "only_for": only_for})


@dataclass
class Options:
    """The options of a method: one field per option, from which the command line is made."""

    base_model: str | None = option(None, "", "PATH")  # the family writes the help

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser, method: str, family: Family) -> None:
        """Add the options that this family has to a command line, with their defaults in the help."""
        defaults = cls.defaults(method, family)
        hints = get_type_hints(cls)
        for one in fields(cls):
            if one.name not in defaults:
                continue
            text, default = one.metadata["help"], defaults[one.name]
            if one.name == "base_model":
                text = f"the pretrained {family.name}: folder with model.pt and dict.txt, a model.pt, or a Hugging Face"
                text += " folder"
            elif default is not None:
                text = f"{text} (default: {default})"
            parser.add_argument(
                f"--{one.name.replace('_', '-')}",
                metavar=one.metadata["metavar"],
                help=text.replace("%", "%%"),
                **_type_of(hints[one.name]),
            )

    @classmethod
    def defaults(cls, method: str, family: Family) -> dict[str, Any]:
        """Return option -> default for the options that this family has."""
        own = family.defaults.get(method, {})
        return {
            one.name: own.get(one.name, one.default)
            for one in fields(cls)
            if one.metadata["only_for"] is None or one.metadata["only_for"](family)
        }

    @classmethod
    def read(cls: type[T], args: argparse.Namespace) -> T:
        """Return the options in fairseq's namespace; those that are not there have their default."""
        values: dict[str, Any] = {one.name: getattr(args, one.name, one.default) for one in fields(cls)}
        return cls(**values)

    def require(self, name: str, least: int) -> None:
        """Raise a `UsageError` where the number `name` is below `least`."""
        if (value := getattr(self, name)) < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected {least} or more")


@dataclass
class FrozenOptions(Options):
    """Options of every method over a frozen base."""

    base_dropout: Literal["on", "off"] = option(
        "on", "keep the base's own dropout in training; the default follows the original code for this family"
    )


def _type_of(hint: Any) -> dict[str, Any]:
    """Return argparse's `type` or `choices` for the annotation of an option."""
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) in (typing.Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    return {"type": hint}


def several_sites(family: Family) -> bool:
    """Return whether a prefix of this family feeds more than one attention site."""
    return len(family.sites) > 1


class Method:
    """A tuning method; its file registers one instance (`register_method`).

    Attributes:
        name: in metadata, in names of architectures and options.
        noun: in messages, after "the".
        label: in descriptions of files; by default the name.
        options: its options.
        model: a class that is mixed into every family's model class.
        untouched: options with which nothing is trained and the model is the base, bit for bit.
        stored: whether its files hold only what was trained; if False, the methods below are never called.
    """

    name: str
    noun: str
    options: type[Options]
    model: type
    untouched: Mapping[str, Any]
    stored = True

    @property
    def label(self) -> str:
        return self.name

    def describe_site(self, shape: dict[str, int]) -> str:
        """Return one site of a geometry for people, such as "200 x 12 layers x 16*64"."""
        raise NotImplementedError

    def fold(self, metadata: dict, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of an export, from the metadata and tensors of a checkpoint.

        Raises:
            Exception: of any kind, where the tensors do not fit the metadata.
        """
        compare_shapes(metadata.get("tensors", shapes := tensor_shapes(state)), shapes)  # first files lack "tensors"
        return state

    def unfold(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return an export's tensors under the names of a checkpoint."""
        return dict(tensors)

    def model_args(self, metadata: dict) -> dict[str, Any]:
        """Return the options with which a model has the geometry of an export."""
        raise NotImplementedError


METHODS: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Register a method; families registered later get a model class for it."""
    METHODS[method.name] = method
    return method


def tensor_shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return name -> shape, sorted by name."""
    return {name: list(tensors[name].shape) for name in sorted(tensors)}


def compare_shapes(expected: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    """Raise a `ValueError` for the first tensor that is missing, surplus or of another shape."""
    if differing := sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"it {'lacks' if differing[0] in expected else 'holds'} {differing[0]}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"{name} has the shape {found[name]} instead of {shape}")
