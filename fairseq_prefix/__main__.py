"""`python -m fairseq_prefix`: fold and export what was trained over a base, bring it back as a checkpoint, describe a
file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from . import checkpoint as files
from .errors import UsageError


def export(args: argparse.Namespace) -> None:
    """Checkpoint -> prefix.safetensors, or what the method's is called."""
    file = files.read_tuned(args.checkpoint)
    files.write_export(file, args.output)
    stored = sum(tensor.numel() for tensor in file.folded.values())
    print(f"{args.output}: {stored:,} parameters, {Path(args.output).stat().st_size:,} bytes")


def import_(args: argparse.Namespace) -> None:
    """An export -> a checkpoint that fairseq-generate and fairseq-interactive read."""
    files.import_export(files.read_tuned(args.export), args.output, args.base_model)


def base(args: argparse.Namespace) -> None:
    """The untouched base as a checkpoint: a prefix of length 0 (or no adapters ...), to compare with."""
    dictionary = files.read_dictionary(Path(args.base_model) / "dict.txt")
    model_class = ARCH_MODEL_REGISTRY.get(args.arch)
    if not hasattr(model_class, "untouched"):
        raise UsageError(
            f"--arch {args.arch} has no frozen base; choose an architecture of a prefix, prompt, adapters or top "
            "layers, such as prefix_bart_large"
        )
    model_args = {"arch": args.arch, **model_class.untouched}
    cfg = files.configuration(model_args, {}, args.base_model)
    cfg.task.max_source_tokens = min(cfg.task.max_source_tokens, model_class.source_room(cfg.model))
    task = TASK_REGISTRY[model_class.default_task](cfg.task, dictionary, dictionary)
    files.write_checkpoint(args.output, cfg, model_class.build_model(cfg.model, task).state_dict())
    _print(files.describe(args.output), args.json)


def inspect(args: argparse.Namespace) -> None:
    """Describe a checkpoint of any method, an export, or a whole model's checkpoint."""
    _print(files.describe(args.file), args.json)


def _print(description: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(description, indent=2, sort_keys=True))
        return
    for key, value in description.items():
        if key == "geometry":
            value = files.describe_geometry(value, files.method_of(description))
        print(f"{key.replace('_', ' '):<24}{f'{value:,}' if isinstance(value, int) else value}")


def main(argv: list[str] | None = None) -> None:
    """Entry point; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_prefix", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "export",
        help="fold what a checkpoint holds (prefix, prompt, adapters, top layers) and write it as .safetensors",
    )
    command.add_argument("checkpoint", help="a checkpoint that fairseq-train wrote")
    command.add_argument("output", help="the .safetensors file to write")
    command.set_defaults(run=export)

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
    command.add_argument("--json", action="store_true", help="describe it for programs")
    command.set_defaults(run=base)

    command = commands.add_parser("inspect", help="describe a checkpoint or an export")
    command.add_argument("file")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=inspect)

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
