"""`python -m fairseq_prefix`: fold and export a prefix, bring one back as a checkpoint, describe a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from . import checkpoint as files
from .errors import UsageError


def export(args: argparse.Namespace) -> None:
    """Checkpoint -> prefix.safetensors."""
    prefix = files.read_prefix(args.checkpoint)
    files.write_export(prefix, args.output)
    print(f"{args.output}: {prefix.prefix.folded_size:,} parameters, {Path(args.output).stat().st_size:,} bytes")


def import_(args: argparse.Namespace) -> None:
    """prefix.safetensors -> a checkpoint that fairseq-generate and fairseq-interactive read."""
    file = files.read_prefix(args.prefix)
    lengths = {site: shape["length"] for site, shape in file.metadata["geometry"].items()}
    model_args = {
        **file.model_args,
        "prefix_reparam": "flat",
        "prefix_sites": ",".join(lengths),
        **{f"prefix_{site}_length": length for site, length in lengths.items()},
    }
    state = {f"prefix.sites.{site}.key_value": tensor for site, tensor in file.prefix.folded().items()}
    metadata = {**file.metadata, "reparam": "flat", "mid_dim": None}
    state[files.METADATA_KEY] = files.pack_metadata(metadata)
    files.write_checkpoint(args.output, files.configuration(model_args, file.task, args.base_model), state)


def base(args: argparse.Namespace) -> None:
    """The untouched base as a checkpoint: a prefix of length 0, to compare with."""
    dictionary = files.read_dictionary(Path(args.base_model) / "dict.txt")
    model_class = ARCH_MODEL_REGISTRY.get(args.arch)
    if not args.arch.startswith("prefix_") or model_class is None:
        raise UsageError(f"--arch {args.arch} is no architecture of a prefix, such as prefix_bart_large")
    model_args = {"arch": args.arch, "prefix_length": 0, "prefix_reparam": "flat"}
    cfg = files.configuration(model_args, {}, args.base_model)
    cfg.task.max_source_tokens = min(cfg.task.max_source_tokens, model_class.source_room(cfg.model))
    task = TASK_REGISTRY[model_class.default_task](cfg.task, dictionary, dictionary)
    files.write_checkpoint(args.output, cfg, model_class.build_model(cfg.model, task).state_dict())
    _print(files.describe(args.output), args.json)


def inspect(args: argparse.Namespace) -> None:
    """Describe a prefix checkpoint, an export, or a whole model's checkpoint."""
    _print(files.describe(args.file), args.json)


def _print(description: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(description, indent=2, sort_keys=True))
        return
    for key, value in description.items():
        if key == "geometry":
            value = files.describe_geometry(value)
        print(f"{key.replace('_', ' '):<24}{f'{value:,}' if isinstance(value, int) else value}")


def main(argv: list[str] | None = None) -> None:
    """Entry point; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_prefix", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("export", help="fold a checkpoint's prefix and write prefix.safetensors")
    command.add_argument("checkpoint", help="a checkpoint that fairseq-train wrote")
    command.add_argument("output", help="the .safetensors file to write")
    command.set_defaults(run=export)

    command = commands.add_parser("import", help="turn prefix.safetensors into a checkpoint for fairseq-generate")
    command.add_argument("prefix", help="an exported prefix")
    command.add_argument("output", help="the .pt file to write")
    command.add_argument(
        "--base-model", required=True, help="the base, as recorded in the checkpoint (relocatable later)"
    )
    command.set_defaults(run=import_)

    command = commands.add_parser("base", help="write the base without any prefix as a checkpoint for fairseq-generate")
    command.add_argument("output", help="the .pt file to write")
    command.add_argument("--arch", required=True, help="the base's architecture, such as prefix_bart_large")
    command.add_argument("--base-model", required=True, help="folder of the base, with its dict.txt")
    command.add_argument("--json", action="store_true", help="describe it for programs")
    command.set_defaults(run=base)

    command = commands.add_parser("inspect", help="describe a checkpoint or an exported prefix")
    command.add_argument("file")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=inspect)

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
