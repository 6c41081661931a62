"""Commands: generate text; export, import or inspect what was trained over a base; write the untouched base."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from . import api
from .errors import UsageError, ending_with_a_sentence, printable
from .files import checkpoint, export
from .files.dictionary import read_dictionary
from .files.metadata import TunedFile, describe_geometry, method_of
from .interfaces.family import FAMILIES
from .toolkit.task import MAX_SOURCE_TOKENS

BLOCK = 1 << 16  # bytes that are read at a time
BATCHES = 8  # batches whose texts are sorted by length at a time
DECODING = {  # fairseq's option -> its help
    "beam": "beam size",
    "lenpen": "length penalty: scores are divided by length to this power",
    "max_len_a": "longest output: this times the source's tokens,",
    "max_len_b": "plus this",
    "min_len": "shortest output",
    "no_repeat_ngram_size": "no n-gram of this many tokens twice; 0: any",
    "batch_size": "texts that are searched at a time",
}


def generate(args: argparse.Namespace) -> None:
    """Answer each line of stdin with one line on stdout, in order and as soon as it arrives.

    Raises:
        UsageError: an option or a file is wrong; or, after all lines were read, some lines were wrong.
    """
    model = api.load(args.base_model, args.vocabulary, args.device, args.dtype)
    for prefix in args.prefix:
        name, separator, path = prefix.partition("=")
        if not (name and separator and path):
            raise UsageError(f"--prefix {prefix} is not of the form NAME=FILE")
        model.add(name, path)
    options = {name: getattr(args, name) for name in DECODING}
    model.generate([], [], **options)  # refuses wrong options before a line is read
    count = refused = 0
    try:
        for lines in _arriving(sys.stdin.buffer, BATCHES * args.batch_size):
            for answer in _answers(model, lines, options):
                if isinstance(answer, UsageError):
                    refused += 1
                    print(f"error: {answer}", file=sys.stderr, flush=True)
                    answer = ""
                print(answer, flush=True)
            count += len(lines)
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if refused:
        raise UsageError(f"{refused} of {count} lines could not be answered; their lines of output are empty")


def _arriving(stream: Any, most: int) -> Iterator[list[tuple[int, bytes | bytearray]]]:
    """Yield numbered lines without their ends: those that have arrived, at most `most` at a time."""
    number, rest = 1, bytearray()
    while block := stream.read1(BLOCK):
        rest += block
        if b"\n" in block:
            *lines, rest = rest.split(b"\n")
            for start in range(0, len(lines), most):
                yield list(enumerate(lines[start : start + most], number + start))
            number += len(lines)
    if rest:
        yield [(number, rest)]


def _answers(model: api.Model, lines: list[tuple[int, bytes | bytearray]], options: dict) -> list[str | UsageError]:
    """Return the hypothesis for each line, or its error."""
    rows: dict[int, tuple[str, str]] = {}
    answers: dict[int, str | UsageError] = {}
    for number, raw in lines:
        try:
            rows[number] = _task_and_text(number, raw, model.tasks)
        except UsageError as error:
            answers[number] = error
    answers |= _hypotheses(model, rows, options)
    return [answers[number] for number, _ in lines]


def _hypotheses(model: api.Model, rows: dict[int, tuple[str, str]], options: dict) -> dict[int, str | UsageError]:
    """Return the hypotheses of numbered tasks and texts; if a text is refused, retry the halves to find it."""
    tasks, texts = [task for task, _ in rows.values()], [text for _, text in rows.values()]
    try:
        return dict(zip(rows, model.generate(texts, tasks, progress=True, **options), strict=True))
    except UsageError as error:
        if len(rows) == 1:
            (number,) = rows
            return {number: UsageError(f"line {number}: {error}")}
    items, half = list(rows.items()), len(rows) // 2
    return _hypotheses(model, dict(items[:half]), options) | _hypotheses(model, dict(items[half:]), options)


def _task_and_text(number: int, raw: bytes | bytearray, tasks: list[str]) -> tuple[str, str]:
    """Return task and text of a line: TASK<TAB>text, or only a text if there is one task."""
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError(f"line {number} is not UTF-8") from None
    task, separator, text = line.partition("\t")
    if not separator and len(tasks) == 1:
        task, text = tasks[0], line
    elif not separator:
        raise UsageError(f"line {number} does not name its task; expected TASK<TAB>text")
    if task not in tasks:
        raise UsageError(f"line {number}: unknown task {task!r}; expected one of {', '.join(tasks)}")
    if not text.strip():
        raise UsageError(f"line {number} has no text; remove the line")
    return task, text


def export_(args: argparse.Namespace) -> None:
    """Fold what a checkpoint holds and write it as a .safetensors file."""
    file = checkpoint.read_tuned(args.checkpoint)
    export.write(file, args.output)
    _print_written(args.output, file)


def _print_written(path: str, file: TunedFile) -> None:
    stored = sum(tensor.numel() for tensor in file.folded.values())
    print(f"{path}: {stored:,} parameters, {Path(path).stat().st_size:,} bytes")


def import_(args: argparse.Namespace) -> None:
    """Write an export as a checkpoint that fairseq-generate and fairseq-interactive read."""
    file = checkpoint.read_tuned(args.export)
    checkpoint.import_export(file, args.output, args.base_model)
    _print_written(args.output, file)


def base(args: argparse.Namespace) -> None:
    """Write the untouched base as a checkpoint (a prefix of length 0, no adapters ...), for comparison."""
    dictionary = read_dictionary(Path(args.base_model) / "dict.txt")
    model_class = ARCH_MODEL_REGISTRY.get(args.arch)
    if not (hasattr(model_class, "method") and model_class.method.stored):
        raise UsageError(
            f"--arch {args.arch} has no frozen base; choose an architecture of a prefix, prompt, adapters or top "
            "layers, such as prefix_bart_large"
        )
    given = {name: value for name in _recorded() if (value := getattr(args, name)) is not None}
    if foreign := sorted(given.keys() - set(model_class.family.recorded)):
        raise UsageError(f"--{foreign[0].replace('_', '-')} is not an option of --arch {args.arch}; leave it out")
    model_args = {"arch": args.arch, **model_class.method.untouched, **given}
    cfg = checkpoint.configuration(model_args, {}, args.base_model)
    cfg.task.max_source_tokens = min(MAX_SOURCE_TOKENS, model_class.source_room(cfg.model))
    cfg.model.max_source_tokens = cfg.task.max_source_tokens
    task = TASK_REGISTRY[model_class.family.default_task](cfg.task, dictionary, dictionary)
    model = task.build_model(cfg.model, from_checkpoint=True)  # untouched, there is nothing to train
    checkpoint.write_checkpoint(args.output, cfg, model.state_dict())
    _print(checkpoint.describe(args.output), args.json)


def _recorded() -> list[str]:
    """Return the options that some family records with what is trained."""
    return sorted({name for family in FAMILIES for name in family.recorded})


def inspect(args: argparse.Namespace) -> None:
    """Describe a checkpoint of any method, an export, or a checkpoint of a whole model."""
    _print(checkpoint.describe(args.file), args.json)


def _print(description: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(description, indent=2, sort_keys=True))
        return
    for key, value in description.items():
        if key == "geometry":
            value = describe_geometry(value, method_of(description))
        print(printable(f"{key.replace('_', ' '):<24}{f'{value:,}' if isinstance(value, int) else value}"))


def main(argv: list[str] | None = None) -> None:
    """Run one command; see `--help`.

    Raises:
        UsageError: an option or a file is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m fairseq_prefix", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("generate", help="generate text from text, with one or more prefixes over one base")
    command.add_argument("--base-model", required=True, metavar="PATH", help="the base, as in training")
    command.add_argument(
        "--prefix", action="append", required=True, metavar="NAME=FILE", help="a task and its prefix; repeatable"
    )
    command.add_argument("--vocabulary", metavar="PATH", help="folder of the vocabulary (default: the base's)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    command.add_argument("--dtype", choices=api.DTYPES, default="fp32", help="default: fp32")
    parameters = signature(api.Model.generate).parameters  # where the defaults are
    for name, text in DECODING.items():
        default = parameters[name].default
        option, help_text = f"--{name.replace('_', '-')}", f"{text} (default: {default})"
        command.add_argument(option, type=type(default), default=default, metavar="N", help=help_text)
    command.set_defaults(run=generate)

    command = commands.add_parser(
        "export",
        help="fold what a checkpoint holds (prefix, prompt, adapters, top layers) and write it as .safetensors",
    )
    command.add_argument("checkpoint", help="a checkpoint that fairseq-train wrote")
    command.add_argument("output", help="the .safetensors file to write")
    command.set_defaults(run=export_)

    command = commands.add_parser("import", help="turn an export into a checkpoint for fairseq-generate")
    command.add_argument("export", help="the .safetensors file that export wrote")
    command.add_argument("output", help="the .pt file to write")
    command.add_argument(
        "--base-model", required=True, help="the base, as recorded in the checkpoint (relocatable later)"
    )
    command.set_defaults(run=import_)

    command = commands.add_parser("base", help="write the untouched base as a checkpoint for fairseq-generate")
    command.add_argument("output", help="the .pt file to write")
    command.add_argument("--arch", required=True, help="the base's architecture, such as prefix_bart_large")
    command.add_argument("--base-model", required=True, help="folder of the base, with its dict.txt")
    for name in _recorded():
        command.add_argument(
            f"--{name.replace('_', '-')}", metavar="TAG", help="as in training, for families that have it"
        )
    command.add_argument("--json", action="store_true", help="describe it for programs")
    command.set_defaults(run=base)

    command = commands.add_parser("inspect", help="describe a checkpoint or an export")
    command.add_argument("file")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=inspect)

    args = parser.parse_args(argv)
    args.run(args)


@ending_with_a_sentence()
def cli_main() -> None:
    """Run a command as a program: errors of use end it with one sentence."""
    main()


if __name__ == "__main__":
    cli_main()
