"""Run fairseq-train: one progress bar, resumable after a kill, clean after a change; `run.json` says what was done.

What fairseq logs becomes `curve.tsv` beside run.json, whole however often it was interrupted, and with TensorBoard
installed a `tensorboard` folder beside the log.

Checkpoints go to a folder beside the output whose name carries a digest of flags, data, base and versions. A training
that was killed finds its own last checkpoint there and goes on; one where any of these changed finds nothing, instead
of resuming from weights that were trained otherwise. The best checkpoint becomes the output, and the folder is removed.
The results keep a second name in `.trained`: a training that has ended is not repeated, and nothing takes its place
unless the user asks for it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import IO

from common import UserError, atomic_path, positive, progress, run_main, sha256_file, write_json
from curve import Metrics, draw, read_curve
from fairseq_command import Interrupted, exclusive, fit_machine, run, split_arguments
from plugin import plugin
from rank import launcher
from record import begin_record, digests, now, versions
from scratch import Scratch, scratch
from state import State
from trained import (
    changed_files,
    changed_settings,
    earlier_training,
    kept,
    link,
    read_in_training,
    refusal,
    replacing,
)
from warm import PLUGIN

LOGGED = re.compile(r"\| INFO \| (train_inner|train|valid) \| (\{.*\})$")
SAVED = re.compile(r"interrupted by \w+ after (\d+) updates; they are saved")  # the plugin's preemption.py
GPU = re.compile(r"\| rank +\d+: .* total memory = ([\d.]+) GB ; name = (.*\S)")


def main(argv: list[str]) -> None:
    own, flags = split_arguments(argv)
    args = parse_args(own)
    nothing = contextlib.nullcontext()
    with (
        State(args.log) if args.log else nothing as state,
        nothing if args.untuned else exclusive(args.output.parent / "training.lock") as lock,
    ):
        make(args, flags, state, lock, begin_record(argv))
        # Last: a kill before this can go on from it. With the lock: the folder may be that of who comes next.
        for stale in args.output.parent.glob("work-*"):
            shutil.rmtree(stale, ignore_errors=True)


def make(
    args: argparse.Namespace, flags: list[str], state: State | None, lock: IO[str] | None, record: dict[str, object]
) -> None:
    """Write the checkpoint and its record, unless they are there and were made from the same."""
    begin = time.monotonic()
    base = args.base_model
    inputs = digests([*([args.data] if args.data else []), *([base] if base else [])])
    if not args.untuned and is_trained(args, flags, inputs):
        return
    measured: dict[str, object] = {"peak_mb": 0}
    if args.untuned:
        description = write_untuned(args.arch, base, flags, args.output)
    else:
        flags = fit_machine(flags)
        measured = train(args, flags, inputs, state, lock)
        description = inspect(args.output)
    record |= {"seconds": round(time.monotonic() - begin, 1), "end": now(), **measured}
    write_record(args, description, flags, inputs, record)
    if not args.untuned:
        for path in results(args):
            link(path, kept(args.run_json, path))


def is_trained(args: argparse.Namespace, flags: list[str], inputs: dict[str, str]) -> bool:
    """Whether a training with these settings on these bytes has ended here; its results then get their names back.

    Raises:
        UserError: one with other settings, or on other bytes, has ended here, and may not be replaced.
    """
    earlier = earlier_training(args.run_json, args.output)
    if earlier is None:
        return False
    record, checkpoint = earlier
    changed = changed_settings(record, args.arch, flags, args.seed, args.gpus * args.nodes)
    changed += changed_files(record, inputs.get, read_in_training)
    if changed and not replacing():
        raise UserError(refusal({str(args.run_json.parent): changed}))
    digest = sha256_file(checkpoint)
    if changed or record.get("checkpoint_sha256", digest) != digest:  # an earlier version recorded none
        return False
    print(f"notice: {args.output} is kept: already trained with the same settings and input files", file=sys.stderr)
    for path in results(args):
        if kept(args.run_json, path).exists():
            link(kept(args.run_json, path), path)
        if path.exists():
            path.touch()
    return True


def results(args: argparse.Namespace) -> list[Path]:
    """What a training writes, the record last."""
    return [args.output, args.run_json.parent / "curve.tsv", args.run_json]


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
        "processes": args.gpus * args.nodes,
        "versions": versions(),
        "data_sha256": inputs,
        "checkpoint_sha256": sha256_file(args.output),
        **measured,
    }
    write_json(args.run_json, record)


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What follows -- is given to fairseq-train as it is (with --untuned to python -m fairseq_prefix base).",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="what fairseq-preprocess wrote")
    parser.add_argument("--arch", required=True, help="the plugin's architecture, such as prefix_bart_large")
    parser.add_argument("--base-model", type=Path, metavar="DIR", help="the pretrained base; without one, from scratch")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and dropout [%(default)s]")
    parser.add_argument(
        "--gpus", type=positive, default=1, metavar="N", help="a process on each of N GPUs [%(default)s]"
    )
    parser.add_argument(
        "--nodes", type=positive, default=1, metavar="N", help="... of each of a Slurm job's N nodes [1]"
    )
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


def train(
    args: argparse.Namespace, flags: list[str], inputs: dict[str, str], state: State, lock: IO[str]
) -> dict[str, object]:
    """Train in the folder of exactly these flags and inputs, and move the best checkpoint to the output.

    Returns what it took: peak_mb of the process (0 if there was nothing left to train), the updates after which it was
    resumed, the lowest validation loss, and where there are GPUs, their name and number and gpu_peak_gb, of the tensors
    on one.
    """
    measured: dict[str, object] = {"peak_mb": 0}
    arguments = [str(args.data), "--arch", args.arch, "--seed", str(args.seed), *flags]
    if args.base_model:
        arguments += ["--base-model", str(args.base_model)]
    processes = args.gpus * args.nodes
    read = sorted((path, digest) for path, digest in inputs.items() if read_in_training(path))
    what = [arguments, processes, read, versions()]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    folder = args.output.parent
    work = folder / f"work-{digest}"
    arguments += ["--user-dir", str(PLUGIN), "--log-format", "json"]
    if processes == 1:
        arguments += ["--distributed-world-size", "1"]  # or fairseq takes every GPU that it sees, each a whole batch
    metrics = Metrics(work)
    with scratch(work, args.nodes) as place:
        arguments += ["--save-dir", str(place.folder)]
        last = work / "checkpoint_last.pt"
        updates = updates_of(last) if last.exists() else None
        if updates is not None:
            print(f"notice: going on from {last}", file=sys.stderr)
            state.update(resumed_from=updates)
        # fairseq makes one more update before it sees that it was at the end.
        if updates is None or updates != max_update(flags):
            metrics.resumed(updates or 0)
            arguments += tensorboard(args.log.parent / "tensorboard", updates)
            with contextlib.closing(Progress(f"training {folder}", flags, updates is not None, state, metrics)) as bar:
                measured["peak_mb"] = round(run_or_save(args, arguments, bar, place, lock, max_update(flags)))
                measured |= bar.gpu
        place.copy()
        checkpoints = [work / "checkpoint_best.pt", last]  # no best where nothing was validated
        best = next(filter(Path.exists, checkpoints), None)
        if best is None:
            raise UserError(f"fairseq-train ended without a checkpoint in {work}; its log: {args.log}")
        metrics.write(args.run_json.parent / "curve.tsv")
        draw_curve(args.run_json.parent)
        with atomic_path(args.output) as temporary:
            shutil.copyfile(best, temporary)
    return measured | {"resumed_from": metrics.resumptions(), "valid_loss": metrics.valid_loss()}


def draw_curve(folder: Path) -> None:
    """Draw curve.tsv as curve.svg; a plot that fails is reported and costs nothing else."""
    try:
        with atomic_path(folder / "curve.svg") as svg:
            draw(folder.as_posix(), read_curve(folder / "curve.tsv"), svg)
    except Exception as error:
        print(f"notice: {folder}/curve.svg: not drawn ({error})", file=sys.stderr)


def tensorboard(folder: Path, updates: int | None) -> list[str]:
    """Arguments to write to TensorBoard what is logged, if that is installed; a training that starts anew clears it."""
    if importlib.util.find_spec("tensorboard") is None:
        return []
    if updates is None:
        shutil.rmtree(folder, ignore_errors=True)
    return ["--tensorboard-logdir", str(folder)]


def updates_of(last: Path) -> int | None:
    """How many updates an interrupted training had made, in one piece: fairseq would go on from flipped bits."""
    try:
        return inspect(last)["updates"]
    except UserError as error:
        raise UserError(f"{error}. Delete {last.parent}: the training begins anew") from None


def run_or_save(
    args: argparse.Namespace, arguments: list[str], bar: Progress, place: Scratch, lock: IO[str], total: int | None
) -> float:
    """Run fairseq-train; where it was told to end, say what becomes of it, and end as well."""
    saved: list[str] = []

    def watch(line: str) -> bool:
        saved.extend(SAVED.findall(line))
        place.follow(line)
        bar.follow(line)
        return True

    try:
        gpus = args.gpus if args.nodes == 1 else 0
        return run("fairseq_cli.train", arguments, args.log, watch, lock, launcher(args.gpus, args.nodes), gpus)
    except Interrupted as interrupted:
        bar.close()
        name, of_total = interrupted.signal.name, f" of {total}" if total else ""
        done = f" after {saved[-1]}{of_total} updates; what was trained is saved, and" if saved else ";"
        where = "there" if saved else "the last checkpoint, if there is one"
        print(f"{name}: interrupted{done} the same command goes on from {where}", file=sys.stderr)
        raise


def max_update(flags: list[str]) -> int | None:
    """Return the number of updates to make, or None where the flags limit it to none (0, as fairseq reads it)."""
    return int(_value(flags, "--max-update")) or None if "--max-update" in flags else None


def _value(flags: list[str], name: str) -> str:
    return flags[flags.index(name) + 1]


class Progress:
    """One bar over all updates, from the JSON that fairseq logs; `gpu` has what it says of GPUs and their memory."""

    def __init__(self, description: str, flags: list[str], resumed: bool, state: State, metrics: Metrics) -> None:
        self._bar = progress(None, description, total=max_update(flags), state=state, unit="update")
        self._epochs = int(_value(flags, "--max-epoch")) if "--max-epoch" in flags else None
        self._max_update = max_update(flags)
        self._metrics = metrics
        self._resumed = resumed
        self._losses: dict[str, str] = {}
        self.gpu: dict[str, object] = {}
        self._gpu_gb = 0.0

    def close(self) -> None:
        self._bar.close()

    def follow(self, line: str) -> None:
        """Take what a line of the log says, also one that another has fallen into."""
        with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            self._follow(line)

    def _follow(self, line: str) -> None:
        if match := GPU.search(line):
            self._gpu_gb, self.gpu["gpu"] = float(match[1]), match[2]
            self.gpu["gpus"] = self.gpu.get("gpus", 0) + 1
        if match := LOGGED.search(line):
            kind, values = match[1], json.loads(match[2])
            self._metrics.take(kind, values)
            loss = values.get("loss" if kind == "train_inner" else f"{kind}_loss")
            if loss is not None:
                self._losses["valid" if kind == "valid" else "loss"] = loss
                self._bar.scores = self._losses
                self._bar.set_postfix(self._losses, refresh=False)
            if self._gpu_gb and "gb_free" in values:  # the least that was free in an update
                used = round(self._gpu_gb - float(values["gb_free"]), 1)
                self.gpu["gpu_peak_gb"] = max(used, self.gpu.get("gpu_peak_gb", 0.0))
            updates = int(float(values.get("num_updates" if kind == "train_inner" else f"{kind}_num_updates", 0)))
            self._expect(updates, values.get("update"))
            if self._resumed and updates:
                self._bar.initial = self._bar.n = updates  # what was done before says nothing about the speed now
                self._resumed = False
            self._bar.update(max(0, updates - self._bar.n))

    def _expect(self, updates: int, epochs: float | None) -> None:
        """How many updates it will be, where only the number of epochs is known; `epochs`: how many these are."""
        if self._epochs and epochs:
            total = round(self._epochs * updates / epochs)
            self._bar.total = min(total, self._max_update or total)


def write_untuned(arch: str, base: Path, flags: list[str], output: Path) -> dict:
    """Write the base without any prefix as a checkpoint for fairseq-generate; return the plugin's description."""
    with atomic_path(output) as temporary:
        target = temporary.with_suffix(".pt")  # the command decides by the name
        try:
            description = plugin("base", str(target), "--arch", arch, "--base-model", str(base), *flags)
            os.replace(target, temporary)
        finally:
            target.unlink(missing_ok=True)
    return description


def inspect(checkpoint: Path) -> dict:
    """What the plugin says of a checkpoint."""
    return plugin("inspect", str(checkpoint))


if __name__ == "__main__":
    run_main(main)
