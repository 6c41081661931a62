"""The flags that fairseq's commands know with this plugin, as workflow/schemas/flags.yaml lists them.

`python tests/fairseq_flags.py > workflow/schemas/flags.yaml` makes the file anew; a test compares the two.
"""

import argparse
import contextlib
import io
import textwrap

from fairseq import options
from fairseq.registry import REGISTRIES

import fairseq_prefix  # noqa: F401  (registration)

TASKS = ("conditional_generation", "conditional_lm", "language_modeling", "translation")
# The architectures that together have all options of bases and methods (those of BART have GPT-2's, but for one). What
# else depends on a choice is asked for, choice by choice.
ARCHITECTURES = ("prefix_gpt2_tiny", "prompt_bart_tiny", "adapter_bart_tiny", "top_bart_tiny")
COMMANDS = {
    "train": (options.get_training_parser, ["--criterion", "prefix_cross_entropy", "--arch", "prefix_bart_tiny"]),
    "generate": (options.get_generation_parser, ["--path", "checkpoint.pt"]),
}
CHOICES = {"train": ("optimizer", "lr_scheduler", "bpe", "tokenizer"), "generate": ("bpe", "tokenizer")}


def actions(command: str, *extra: str) -> list[argparse.Action]:
    """The options that one command line makes its parser accept."""
    make_parser, always = COMMANDS[command]
    parser = make_parser()
    with contextlib.redirect_stderr(io.StringIO()):
        options.parse_args_and_arch(parser, ["data", *always, *extra], parse_known=True)
    return [action for action in parser._actions if action.option_strings]


def collect(command: str) -> dict[str, bool]:
    """Flag without dashes -> whether it takes a value; of all tasks, optimizers, schedulers and subword encoders."""
    lines = [("--task", task) for task in TASKS]
    if command == "train":
        lines += [("--task", "conditional_lm", "--arch", architecture) for architecture in ARCHITECTURES]
    for choice in CHOICES[command]:
        names = sorted(REGISTRIES[choice]["registry"])
        lines += [("--task", TASKS[0], f"--{choice.replace('_', '-')}", name) for name in names]
    flags = {}
    for line in lines:
        with contextlib.suppress(SystemExit):  # an encoder with a required option of its own: cannot be asked for bare
            for action in actions(command, *line):
                for name in action.option_strings:
                    if name.startswith("--") and name not in ("--help", "--version"):
                        flags[name.removeprefix("--")] = action.nargs != 0
    return flags


def text() -> str:
    """What flags.yaml should hold."""
    parts = ["# Flags of fairseq's commands with this plugin. Made by tests/fairseq_flags.py, which a test compares.\n"]
    for command in COMMANDS:
        flags = collect(command)
        parts.append(f"{command}:\n")
        for kind, takes_value in (("value", True), ("switch", False)):
            names = " ".join(sorted(name for name, takes in flags.items() if takes is takes_value))
            parts.append(f"  {kind}: >-\n")
            parts += [f"    {line}\n" for line in textwrap.wrap(names, 110, break_on_hyphens=False)]
    return "".join(parts)


if __name__ == "__main__":
    print(text(), end="")
