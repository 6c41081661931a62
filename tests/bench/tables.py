"""What `make bench` prints: a table per part and batch, and the limits beside what was reached."""

from __future__ import annotations

import math
import statistics

import measure
from table import aligned

TITLES = {
    measure.TRAINING: "Training step, seconds",
    measure.DECODING: "Decoding, seconds",
    measure.MEMORY: "Peak memory of training with Adam, MB",
    measure.SIZES: "Files of a task beside the base, MB, and parameters trained for it, millions",
}
IN_MILLIONS = (measure.MEMORY, measure.SIZES)
NOTES = """\
stock fairseq trains all parameters, and decodes without a prefix; ours and adapters have a prefix in encoder, decoder
and cross-attention, PEFT in the decoder only; stock search: fairseq's SequenceGenerator; 8 tasks: rows of a batch
have prefixes of their own; ejected: without its MLP."""


def report(record: dict) -> list[str]:
    """The lines to print: what ran, a table per part and batch, and the limits."""
    settings, place = record["settings"], record["machine"]
    lines = [
        ", ".join(f"{name} {version or 'not installed'}" for name, version in record["versions"].items()),
        f"{place['gpu'] or place['cpu']}, {place['cores']} cores, {place['threads']} threads; load at the start "
        f"{place['load']}",
        f"bart_{settings['size']} (memory: bart_{settings['memory_size']}), {settings['vocabulary']} symbols, fp32, "
        f"source {settings['source']}, target {settings['target']}, prefix {settings['prefix_length']}, mid "
        f"{settings['mid_dim']}; decoding: beam {settings['beam']}, {settings['forced']} forced tokens",
        f"median (least-most) of {settings['rounds']} rounds; ratios are taken within rounds",
        *NOTES.splitlines(),
    ]
    for part, batches in record["results"].items():
        for rows, results in batches.items():
            title = f"{TITLES[part]}, batch {rows}" if rows else TITLES[part]
            lines += ["", title, "", *part_table(results, 1e-6 if part in IN_MILLIONS else 1.0)]
    return [*lines, "", "Limits, which are meant for the default settings", "", *limits_table(record["limits"])]


def part_table(results: dict[str, dict], unit: float) -> list[str]:
    """Contestants by measures; below it the errors of those that failed."""
    measures = list(dict.fromkeys(name for result in results.values() for name in result["samples"]))
    body = [
        [name, *("failed" if "error" in result else cell(result["samples"][key], unit) for key in measures or [""])]
        for name, result in results.items()
    ]
    errors = [f"{name} failed: {result['error']}" for name, result in results.items() if "error" in result]
    return [*aligned([["", *(measures or [""])], *body], left=1), *errors]


def cell(samples: list[float], unit: float = 1.0) -> str:
    """median (least-most), to three significant digits of the median"""
    middle, least, most = (number * unit for number in (statistics.median(samples), min(samples), max(samples)))
    digits = max(0, 2 - math.floor(math.log10(middle)))
    return f"{middle:.{digits}f}" + (f" ({least:.{digits}f}-{most:.{digits}f})" if len(samples) > 1 else "")


def limits_table(limits: list[dict]) -> list[str]:
    """What was reached, beside what is to be reached."""
    table = [["part", "batch", "ratio", "reached", "limit", ""]]
    reasons = []
    for limit in limits:
        reached = cell(limit["ratios"]) if limit["ratios"] else "-"
        verdict = {True: "kept", False: "MISSED", None: "not measured"}[limit["kept"]]
        table.append(
            [
                *(limit["part"], str(limit["batch"]), f"{' '.join(limit['ours'])} / {' '.join(limit['other'])}"),
                *(reached, f"{limit['limit']:.2f}", verdict),
            ]
        )
        if limit.get("reason"):
            reasons.append(limit["reason"])
    return [*aligned(table, left=3), *dict.fromkeys(reasons)]
