"""Generate with fairseq-generate: progress as one bar; the output is complete or absent.

fairseq mixes its log with the hypotheses; only the lines of the examples (S-, T-, H-, D-, P-) are kept, which are the
same bytes whenever the same checkpoint reads the same data. There must be exactly one hypothesis per encoded line.
`generate.json` beside the output records the settings and the files that were read. A decoding of the same bytes with
the same settings is not repeated: the output has a second, hidden name, which Snakemake does not delete before the job.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from pathlib import Path

from common import EVALUATED, SPLITS, UserError, atomic_open, encoded_lines, progress, run_main, sha256_file, write_json
from fairseq_command import fit_machine, run, split_arguments
from record import digests, versions
from state import State
from trained import link, read_record
from warm import PLUGIN

RESULT = re.compile(r"[STHDP]-\d+\t")


def main(argv: list[str]) -> None:
    own, flags = split_arguments(argv)
    args = parse_args(own)
    with State(args.log) as state:
        generate(args, flags, state)


def generate(args: argparse.Namespace, flags: list[str], state: State) -> None:
    """Write generate.txt from what fairseq-generate prints, or take it from an earlier decoding of the same bytes."""
    record_path, kept = args.output.with_suffix(".json"), args.output.with_name(f".{args.output.name}")
    record = describe(args, flags)
    if kept.exists() and read_record(record_path) == record | {"sha256": sha256_file(kept)}:
        print(f"notice: {args.output} is reused: settings, data, base and checkpoint are unchanged", file=sys.stderr)
    else:
        decode(args, flags, state, kept)
        write_json(record_path, record | {"sha256": sha256_file(kept)})
    link(kept, args.output)


def describe(args: argparse.Namespace, flags: list[str]) -> dict[str, object]:
    """What the hypotheses depend on: flags, versions, and the bytes of the data, the base and the checkpoint."""
    if not args.checkpoint.is_file():
        raise UserError(f"{args.checkpoint}: no such file")
    folders = [args.data, *([args.base_model] if args.base_model else [])]
    unread = tuple(f"{split}." for split in SPLITS if split != args.split)
    read = digests(folders, lambda name: not name.startswith(unread))
    return {
        "flags": flags,
        "versions": versions(),
        "data_sha256": read,
        "checkpoint_sha256": sha256_file(args.checkpoint),
        "examples_sha256": sha256_file(args.examples),
    }


def decode(args: argparse.Namespace, flags: list[str], state: State, target: Path) -> None:
    """Run fairseq-generate; `target` gets the lines of the examples."""
    arguments = [str(args.data), "--path", str(args.checkpoint), "--gen-subset", args.split]
    arguments += fit_machine(flags)
    if args.base_model:
        arguments += ["--model-overrides", repr({"base_model": str(args.base_model)})]
    arguments += ["--user-dir", str(PLUGIN), "--log-format", "none"]
    arguments += ["--distributed-world-size", "1"]  # or fairseq takes the share of one of all GPUs that it sees

    expected = sum(encoded_lines(args.examples, args.split))
    bar = progress(None, f"generating {args.output.parent}", total=expected, state=state, unit=" texts")
    with atomic_open(target) as output, contextlib.closing(bar):

        def keep(line: str) -> bool:
            """Results go to the output, everything else to the log."""
            if not RESULT.match(line):
                return True
            output.write(line)
            if line.startswith("H-"):
                bar.update()
            return False

        run("fairseq_cli.generate", arguments, args.log, keep)
        if bar.n != expected:
            raise UserError(
                f"fairseq-generate wrote {bar.n} hypotheses for {expected} examples; is an example too long "
                f"for the model, or --nbest above 1? Its log: {args.log}"
            )


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What follows -- is given to fairseq-generate as it is.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what fairseq-preprocess wrote")
    parser.add_argument("--examples", type=Path, required=True, metavar="FILE", help="the prepared split: test.jsonl")
    parser.add_argument("--split", choices=EVALUATED, default="test", help="which split it is [%(default)s]")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="the model")
    parser.add_argument(
        "--base-model", type=Path, metavar="DIR", help="the base, if the checkpoint holds a prefix only"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="generate.txt")
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="gets fairseq's own log")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
