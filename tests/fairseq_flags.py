"""The flags that fairseq's commands accept with this plugin, as workflow/schemas/flags.yaml lists them.

All names, kinds, choices and defaults come from fairseq's own parsers and dataclasses. After a change of fairseq or of
the plugin, `python tests/fairseq_flags.py > workflow/schemas/flags.yaml` writes the file; a test compares the two.
"""

import argparse
import contextlib
import functools
import io
import textwrap
import typing
from collections.abc import Iterable, Iterator

from fairseq import options
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import interpret_dc_type
from fairseq.registry import REGISTRIES

import fairseq_prefix  # noqa: F401  (registration)

METHODS = ("adapter", "full", "prefix", "prompt", "top")
# Flags that decide which others there are, and the values whose flags are listed (None: all that are registered). A
# preset may choose no other task or criterion: those are for data that the workflow does not make.
CHOICES = {
    "train": {
        "task": ("conditional_generation", "conditional_lm", "language_modeling", "translation"),
        "arch": tuple(f"{method}_{family}" for method in METHODS for family in ("bart", "gpt2", "mbart")),
        "criterion": ("cross_entropy", "label_smoothed_cross_entropy", "prefix_cross_entropy"),
        "optimizer": None,
        "lr-scheduler": None,
        "bpe": None,
        "tokenizer": None,
    },
    "generate": {
        "task": ("conditional_generation", "conditional_lm", "language_modeling", "translation"),
        "bpe": None,
        "tokenizer": None,
    },
}
BASE = {  # the choices that a command line makes where another one is varied
    "train": {"task": "conditional_generation", "arch": "prefix_bart", "criterion": "prefix_cross_entropy"},
    "generate": {"task": "conditional_generation"},
}
KINDS = ("switch", "integer", "integers", "number", "numbers", "text")


def actions(command: str, **choices: str) -> list[argparse.Action]:
    """The options that the command's parser accepts with these choices."""
    make_parser = {"train": options.get_training_parser, "generate": options.get_generation_parser}[command]
    line = ["data"] if command == "train" else ["data", "--path", "checkpoint.pt"]
    for name, choice in (BASE[command] | choices).items():
        line += [f"--{name.replace('_', '-')}", f"{choice}_tiny" if name == "arch" else choice]
    parser = make_parser()
    with contextlib.redirect_stderr(io.StringIO()):
        options.parse_args_and_arch(parser, line, parse_known=True)
    return [action for action in parser._actions if typing.get_origin(action.type) is not dict and names(action)]


def names(action: argparse.Action) -> list[str]:
    """The long names of an option that a preset can write, the principal one first."""
    long = [name.removeprefix("--") for name in action.option_strings if name.startswith("--") and "_" not in name]
    return [name for name in long if name not in ("help", "version")]


def asked(command: str) -> Iterator[tuple[str, str | None, list[argparse.Action]]]:
    """(choice, its value, the options accepted with it) for all values of all choices; None for a choice not made."""
    for name, values in CHOICES[command].items():
        if values is None:
            yield name, None, actions(command)
            values = sorted(REGISTRIES[name.replace("-", "_")]["registry"])
        for value in values:
            with contextlib.suppress(SystemExit):  # an encoder that requires an option of its own
                yield name, value, actions(command, **{name: value})


@functools.cache
def dataclass_types() -> dict[str, type]:
    """Field -> type, for the fields that inherit their default: fairseq's parsers take any text for them."""
    classes = [field.type for field in FairseqConfig.__dataclass_fields__.values()]
    classes += [cls for registry in REGISTRIES.values() for cls in (registry["dataclass_registry"] or {}).values()]
    fields = [field for cls in classes for field in getattr(cls, "__dataclass_fields__", {}).values()]
    return {field.name: interpret_dc_type(field.type) for field in reversed(fields)}


def kind(action: argparse.Action) -> str:
    """One of KINDS, or the choices."""
    if action.nargs == 0:
        return "switch"
    if action.choices:
        return " ".join(map(str, CHOICES["train"].get(names(action)[0]) or action.choices))
    convert = action.type or dataclass_types().get(action.dest)
    if convert in (int, float):
        return {int: "integer", float: "number"}[convert]
    if convert in (None, str, bool) or not callable(convert):
        return "text"
    (value,) = convert("1")  # a list
    return {int: "integers", float: "numbers"}[type(value)]


def collect() -> dict[str, dict]:
    """What flags.yaml holds, with sets of names where it has lines of them."""
    accepted, kinds, aliases, negative = {}, {}, {}, set()
    for command in CHOICES:
        found: dict[str, dict[str | None, set[str]]] = {}
        for choice, value, options_of_choice in asked(command):
            found.setdefault(choice, {})[value] = {names(action)[0] for action in options_of_choice}
            for action in options_of_choice:
                name, *others = names(action)
                kinds[name] = kind(action)
                aliases |= dict.fromkeys(others, name)
                if isinstance(action.default, int | float) and action.default < 0:
                    negative.add(name)
        always = set.intersection(*(flags for values in found.values() for flags in values.values()))
        accepted[command] = {"always": always}
        for choice, values in found.items():
            common = set.intersection(*values.values())
            accepted[command][choice] = {value: flags - common for value, flags in values.items() if value}
    choices = {name: found for name, found in kinds.items() if found not in KINDS}
    return {
        "kinds": {each: {name for name, found in kinds.items() if found == each} for each in KINDS},
        "choices": {name: set(found.split()) for name, found in choices.items()},
        "negative": negative,
        "aliases": aliases,
        **accepted,
    }


COMMENTS = {
    "kinds": "What a flag takes: `integers` and `numbers` are one or a list in text form, such as [1, 2].",
    "choices": "Flags that take one of these.",
    "negative": "Flags whose default is below 0, which for most turns them off.",
    "aliases": "Second names of flags.",
    "train": "Flags of fairseq-train: always, and with a choice.",
    "generate": "Flags of fairseq-generate: always, and with a choice.",
}


def text() -> str:
    """flags.yaml."""
    lines = [
        f"# {__doc__.splitlines()[0]}",
        "# Made by tests/fairseq_flags.py, which says how; a test compares the two.",
    ]
    for key, value in collect().items():
        lines += [f"# {COMMENTS[key]}", *written(key, value, "")]
    return "\n".join(lines) + "\n"


def written(key: str, value: dict | Iterable[str] | str, indent: str) -> Iterator[str]:
    """A key and its value as lines of YAML."""
    if isinstance(value, dict):
        yield f"{indent}{key}:"
        for inner, part in sorted(value.items()) if indent or key in ("choices", "aliases") else value.items():
            yield from written(inner, part, indent + "  ")
        return
    line = value if isinstance(value, str) else " ".join(sorted(value)) or '""'
    if len(f"{indent}{key}: {line}") <= 120:
        yield f"{indent}{key}: {line}"
    else:
        yield f"{indent}{key}: >-"
        yield from (f"{indent}  {part}" for part in textwrap.wrap(line, 118 - len(indent), break_on_hyphens=False))


if __name__ == "__main__":
    print(text(), end="")
