"""The parts of the benchmark: training steps, searches, peak memory and file sizes, and ratios between contestants.

A result is plain data: {"samples": {measure: [one number per round]}} of each contestant, and "error" if it could not
run, or not to the end. Times are seconds of the wall clock, since threads are part of what is compared; the contestants
take turns in every round, and ratios are taken within rounds, so that a machine that gets slower slows all alike.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import torch
from contestants import CONTESTANTS, Contestant, Settings

TRAINING, DECODING, MEMORY, SIZES = "training", "decoding", "memory", "sizes"
FORWARD_BACKWARD, STEP, SEARCH = "forward+backward", "with update", "search"
PEAK, BUILDING, FILES, TRAINED = "peak", "while building", "files", "trained"
ENTRANTS = {
    TRAINING: ("stock fairseq", "ours", "ours, decoder only", "PEFT", "adapters"),
    DECODING: ("stock fairseq", "ours, stock search", "ours", "ours, 8 tasks", "PEFT", "adapters", "adapters, ejected"),
    MEMORY: ("stock fairseq", "ours", "ours, recomputing", "ours, decoder only", "PEFT", "adapters"),
    SIZES: ("stock fairseq", "ours", "ours, decoder only", "PEFT", "adapters", "adapters, ejected"),
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What this plugin is to reach: a measure of its own over another's, of one part and batch, is at most `limit`."""

    part: str
    batch: int
    ours: tuple[str, str]  # contestant, measure
    other: tuple[str, str]
    limit: float


LIMITS = (
    Limit(TRAINING, 4, ("ours", STEP), ("stock fairseq", FORWARD_BACKWARD), 0.80),
    Limit(TRAINING, 4, ("ours, decoder only", STEP), ("PEFT", STEP), 0.88),
    Limit(TRAINING, 4, ("ours", STEP), ("adapters", STEP), 0.80),
    Limit(TRAINING, 16, ("ours", STEP), ("stock fairseq", FORWARD_BACKWARD), 0.74),
    Limit(TRAINING, 16, ("ours, decoder only", STEP), ("PEFT", STEP), 0.88),
    Limit(TRAINING, 16, ("ours", STEP), ("adapters", STEP), 0.80),
    Limit(DECODING, 4, ("ours", SEARCH), ("stock fairseq", SEARCH), 0.75),
    Limit(DECODING, 4, ("ours", SEARCH), ("PEFT", SEARCH), 0.45),
    Limit(DECODING, 4, ("ours", SEARCH), ("adapters", SEARCH), 0.08),
    Limit(DECODING, 16, ("ours", SEARCH), ("stock fairseq", SEARCH), 0.88),
    Limit(DECODING, 16, ("ours", SEARCH), ("PEFT", SEARCH), 0.20),
    Limit(DECODING, 16, ("ours, 8 tasks", SEARCH), ("ours", SEARCH), 1 / 0.9),
    Limit(MEMORY, 4, ("ours", PEAK), ("stock fairseq", PEAK), 0.45),
)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    """Of an error's message, with the error's type."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


# Times ----------------------------------------------------------------------------------------------------------------


def build(names, settings: Settings, prepare: Callable[[Contestant], None]) -> tuple[dict, dict[str, str]]:
    """name -> contestant, checked and prepared, and name -> error of those for which that did not work."""
    ready, errors = {}, {}
    for name in names:
        say(f"building {name}")
        try:
            contestant = CONTESTANTS[name](settings)
            contestant.check()
            prepare(contestant)
            ready[name] = contestant
        except Exception as error:
            errors[name] = first_line(error)
            say(f"{name}: {errors[name]}")
    return ready, errors


def take_turns(ready: dict, errors: dict[str, str], rounds: int, run: Callable[..., dict], title: str) -> dict:
    """name -> result of every contestant: one unmeasured round, then `rounds` in which each runs once.

    Args:
        run: contestant -> {measure: seconds}.
        errors: of those that are not ready; whoever fails now is left out of the rounds that follow.
    """
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in ready}
    errors = dict(errors)
    for number in range(rounds + 1):
        for name, contestant in ready.items():
            if name in errors:
                continue
            gc.collect()
            try:
                sample = run(contestant)
            except Exception as error:
                errors[name] = first_line(error)
                say(f"{title}: {name}: {errors[name]}")
                continue
            turn = f"round {number} of {rounds}" if number else "warming up"
            say(f"{title}, {turn}: {name} {', '.join(f'{key} {value:.3g} s' for key, value in sample.items())}")
            for measure, value in sample.items() if number else ():
                samples[name].setdefault(measure, []).append(value)
    results = {name: {"samples": values} for name, values in samples.items()}
    for name, error in errors.items():
        results.setdefault(name, {"samples": {}})["error"] = error
    return results


def training(names, settings: Settings, batches: list[int], rounds: int) -> dict:
    """batch -> results of training steps; gradients are neither clipped nor accumulated."""
    ready, errors = build(names, settings, lambda contestant: contestant.prepare_training())
    results = {}
    for rows in batches:
        run = partial(step, batch=settings.make_batch(rows))
        results[rows] = take_turns(ready, errors, rounds, run, f"{TRAINING}, batch {rows}")
    return results


def step(contestant: Contestant, batch: tuple) -> dict[str, float]:
    """Seconds of one training step, up to the update and with it."""
    contestant.model.train()
    started = _now(contestant)
    contestant.loss(*batch).backward()
    between = _now(contestant)
    contestant.optimizer.step()
    contestant.optimizer.zero_grad(set_to_none=True)
    return {FORWARD_BACKWARD: between - started, STEP: _now(contestant) - started}


def decoding(names, settings: Settings, batches: list[int], rounds: int) -> dict:
    """batch -> results of searches."""
    ready, errors = build(names, settings, lambda contestant: contestant.prepare_search())
    results = {}
    for rows in batches:
        run = partial(search, source=settings.make_batch(rows)[0])
        results[rows] = take_turns(ready, errors, rounds, run, f"{DECODING}, batch {rows}")
    return results


def search(contestant: Contestant, source: torch.Tensor) -> dict[str, float]:
    """Seconds of one search.

    Raises:
        RuntimeError: the hypotheses are not of the length that all were to have.
    """
    started = _now(contestant)
    written = contestant.search(source)
    seconds = _now(contestant) - started
    expected = (len(source), contestant.settings.forced)
    if tuple(written.shape) != expected:
        raise RuntimeError(f"it wrote {tuple(written.shape)} tokens where {expected} were forced")
    return {SEARCH: seconds}


def _now(contestant: Contestant) -> float:
    if contestant.settings.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


# Memory and files -----------------------------------------------------------------------------------------------------


def memory(names, settings: Settings, batches: list[int], rounds: int) -> dict:
    """batch -> results of two training steps of the smallest batch, each contestant in a process of its own."""
    rows, results = min(batches), {}
    for name in names:
        say(f"{MEMORY}, batch {rows}: {name}")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            try:
                peaks = process.submit(peaks_of_training, name, settings, rows).result()
                results[name] = {"samples": {measure: [peak] for measure, peak in peaks.items()}}
            except Exception as error:
                results[name] = {"samples": {}, "error": first_line(error)}
    return {rows: results}


def peaks_of_training(name: str, settings: Settings, rows: int) -> dict[str, int]:
    """Bytes: the most that was in memory at once while the model was built and loaded, and then up to the end of two
    training steps (the optimizer's state appears in the first), both less what the process had when the libraries were
    imported. On a GPU: the most that was allocated there.
    """
    torch.set_num_threads(settings.threads)
    CONTESTANTS[name].import_packages()
    on_cpu = settings.device == "cpu"
    before = psutil.Process().memory_info().rss if on_cpu else 0
    peak = _peak_resident if on_cpu else torch.cuda.max_memory_allocated
    contestant = CONTESTANTS[name](settings)
    contestant.prepare_training()
    building = peak()
    for _ in range(2):
        step(contestant, settings.make_batch(rows))
    return {BUILDING: building - before, PEAK: peak() - before}


def _peak_resident() -> int:
    """Of this process, in bytes. (`ru_maxrss` would begin with the peak of the process that started this one.)"""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        raise RuntimeError("peak memory is measured on Linux only") from None
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def sizes(names, settings: Settings, batches: list[int], rounds: int) -> dict:
    """0 -> results: bytes of the files that a deployed task needs beside the base, and parameters trained for it."""
    results = {}
    for name in names:
        say(f"{SIZES}: {name}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                contestant = CONTESTANTS[name](settings)
                contestant.store(Path(folder))
                written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                trained = sum(parameter.numel() for parameter in contestant.trained())
                results[name] = {"samples": {FILES: [written], TRAINED: [trained]}}
            except Exception as error:
                results[name] = {"samples": {}, "error": first_line(error)}
    return {0: results}


PARTS = {TRAINING: training, DECODING: decoding, MEMORY: memory, SIZES: sizes}


# Ratios ---------------------------------------------------------------------------------------------------------------


def compare(limit: Limit, results: dict) -> dict:
    """A limit beside what was reached, as plain data: "ratios", one per round, and "kept" (None: not measured, and
    "reason" says why).
    """
    of_batch, samples, reason = results.get(limit.part, {}).get(limit.batch, {}), [], None
    for name, measure in (limit.ours, limit.other):
        result = of_batch.get(name, {"error": "not run"})
        if "error" in result:
            reason = reason or f"{name}: {result['error']}"
        else:
            samples.append(result["samples"][measure])
    record = {**dataclasses.asdict(limit), "ratios": [], "kept": None}
    if reason:
        return {**record, "reason": reason}
    ratios = [ours / other for ours, other in zip(*samples, strict=True)]
    return {**record, "ratios": ratios, "kept": statistics.median(ratios) <= limit.limit}
