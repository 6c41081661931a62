"""Run fairseq-train: one progress bar, resumable after a kill, clean after a change; `run.json` says what was done.

Checkpoints go to a folder beside the output whose name carries a digest of flags, data, base and versions. A training
that was killed finds its own last checkpoint there and goes on; one where any of these changed finds nothing, instead
of resuming from weights that were trained otherwise. The best checkpoint becomes the output, and the folder is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import UserError, atomic_path, progress, run_main, sha256_file, write_json
from fairseq_command import exclusive, fit_machine, run, split_arguments
from plugin import plugin
from warm import PLUGIN

PACKAGES = ("fairseq-fixed", "fairseq-prefix", "numpy", "torch")
LOGGED = re.compile(r"\| INFO \| (train_inner|train|valid) \| (\{.*\})$")
GPU = re.compile(r"\| rank +\d+: .* total memory = ([\d.]+) GB ; name = (.*\S)")


def main(argv: list[str]) -> None:
    own, flags = split_arguments(argv)
    args = parse_args(own)
    begin = time.monotonic()
    base = args.base_model
    inputs = digests([*([args.data] if args.data else []), *([base] if base else [])])
    memory = {"peak_mb": 0}
    if args.untuned:
        description = write_untuned(args.arch, base, args.output)
    else:
        flags = fit_machine(flags)
        memory = train(args, flags, inputs)
        description = inspect(args.output)
    write_record(args, description, flags, inputs, {"seconds": round(time.monotonic() - begin, 1), **memory})
    for stale in args.output.parent.glob("work-*"):  # last: a kill before this can go on from it
        shutil.rmtree(stale, ignore_errors=True)


def write_record(
    args: argparse.Namespace, description: dict, flags: list[str], inputs: dict[str, str], measured: dict[str, object]
) -> None:
    """Write run.json: what was trained, with what, on what."""
    record = {
        **{key: description[key] for key in ("base_fingerprint", "base_parameters")},
        **{key: description[key] for key in ("trained_parameters", "stored_parameters")},
        "arch": args.arch,
        "flags": flags,
        "seed": args.seed,
        "versions": versions(),
        "data_sha256": inputs,
        **measured,
    }
    write_json(args.run_json, record)


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What follows -- is given to fairseq-train as it is.",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="what fairseq-preprocess wrote")
    parser.add_argument("--arch", required=True, help="the plugin's architecture, such as prefix_bart_large")
    parser.add_argument("--base-model", type=Path, metavar="DIR", help="the pretrained base; without one, from scratch")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and dropout [%(default)s]")
    parser.add_argument("--untuned", action="store_true", help="no training: the base itself, as a checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="CHECKPOINT", help="gets the best checkpoint")
    parser.add_argument("--run-json", type=Path, required=True, metavar="FILE", help="gets what was run, and on what")
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets fairseq's own log")
    args = parser.parse_args(argv)
    if args.untuned and (args.data or args.log or not args.base_model):
        parser.error("--untuned needs --base-model, and neither --data nor --log")
    if not args.untuned and not (args.data and args.log):
        parser.error("a training needs --data and --log")
    return args


def train(args: argparse.Namespace, flags: list[str], inputs: dict[str, str]) -> dict[str, object]:
    """Train in the folder of exactly these flags and inputs, and move the best checkpoint to the output.

    Returns the memory that it took: peak_mb of the process (0 if there was nothing left to train), and where there is
    a GPU, its name and gpu_peak_gb, of the tensors on it.
    """
    memory: dict[str, object] = {"peak_mb": 0}
    arguments = [str(args.data), "--arch", args.arch, "--seed", str(args.seed), *flags]
    if args.base_model:
        arguments += ["--base-model", str(args.base_model)]
    digest = hashlib.sha256(json.dumps([arguments, sorted(inputs.items()), versions()]).encode()).hexdigest()[:16]
    folder = args.output.parent
    work = folder / f"work-{digest}"
    arguments += ["--user-dir", str(PLUGIN), "--save-dir", str(work), "--log-format", "json"]
    with exclusive(folder / "training.lock") as lock:
        last = work / "checkpoint_last.pt"
        if resumed := last.exists():
            print(f"notice: going on from {last}", file=sys.stderr)
        # fairseq makes one more update before it sees that it was at the end.
        if not resumed or inspect(last)["updates"] != max_update(flags):
            with contextlib.closing(Progress(f"training {folder}", flags, resumed)) as bar:
                memory["peak_mb"] = round(run("fairseq_cli.train", arguments, args.log, bar.follow, lock))
                memory |= bar.gpu
        checkpoints = [work / "checkpoint_best.pt", last]  # no best where nothing was validated
        best = next(filter(Path.exists, checkpoints), None)
        if best is None:
            raise UserError(f"fairseq-train ended without a checkpoint in {work}; its log: {args.log}")
        with atomic_path(args.output) as temporary:
            shutil.copyfile(best, temporary)
    return memory


def max_update(flags: list[str]) -> int | None:
    """The number of updates to make, if the flags say it."""
    return int(flags[flags.index("--max-update") + 1]) if "--max-update" in flags else None


class Progress:
    """One bar over all updates, from the JSON that fairseq logs; `gpu` has what it says of the GPU and its memory."""

    def __init__(self, description: str, flags: list[str], resumed: bool) -> None:
        self._bar = progress(None, description, total=max_update(flags), unit="update")
        self._resumed = resumed
        self._losses: dict[str, str] = {}
        self.gpu: dict[str, object] = {}
        self._gpu_gb = 0.0

    def close(self) -> None:
        self._bar.close()

    def follow(self, line: str) -> bool:
        """Take what a line of the log says; every line is worth keeping, also one that another has fallen into."""
        with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            self._follow(line)
        return True

    def _follow(self, line: str) -> None:
        if match := GPU.search(line):
            self._gpu_gb, self.gpu["gpu"] = float(match[1]), match[2]
        if match := LOGGED.search(line):
            kind, values = match[1], json.loads(match[2])
            loss = values.get("loss" if kind == "train_inner" else f"{kind}_loss")
            if loss is not None:
                self._losses["valid" if kind == "valid" else "loss"] = loss
                self._bar.set_postfix(self._losses, refresh=False)
            if self._gpu_gb and "gb_free" in values:  # the least that was free in an update
                used = round(self._gpu_gb - float(values["gb_free"]), 1)
                self.gpu["gpu_peak_gb"] = max(used, self.gpu.get("gpu_peak_gb", 0.0))
            updates = int(float(values.get("num_updates" if kind == "train_inner" else f"{kind}_num_updates", 0)))
            if self._resumed and updates:
                self._bar.initial = self._bar.n = updates  # what was done before says nothing about the speed now
                self._resumed = False
            self._bar.update(max(0, updates - self._bar.n))


def write_untuned(arch: str, base: Path, output: Path) -> dict:
    """The base without any prefix, as a checkpoint that fairseq-generate reads; returns the plugin's description."""
    with atomic_path(output) as temporary:
        target = temporary.with_suffix(".pt")  # the command decides by the name
        try:
            description = plugin("base", str(target), "--arch", arch, "--base-model", str(base))
            os.replace(target, temporary)
        finally:
            target.unlink(missing_ok=True)
    return description


def inspect(checkpoint: Path) -> dict:
    """What the plugin says of a checkpoint."""
    return plugin("inspect", str(checkpoint))


def digests(folders: list[Path]) -> dict[str, str]:
    """SHA-256 of every file directly in the folders that a training reads: binarised data, dictionaries, weights."""
    files = [
        path
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix not in (".log", ".lock") and not path.name.startswith(".")
    ]
    return {path.as_posix(): sha256_file(path) for path in progress(files, "checksums", leave=False)}


def versions() -> dict[str, str]:
    """What the outcome may depend on, besides flags and data."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # the plugin may be used from a clone
            found[package] = version(package)
    return found


if __name__ == "__main__":
    run_main(main)
