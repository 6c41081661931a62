"""Training step, decoding, peak memory and file sizes of this plugin, beside stock fairseq, PEFT and adapters.

Run by `make bench`: a table on stdout, every sample in a JSON file, progress on stderr. All have a BART of the same
shape with random weights and read the same random tokens, none of them padding. PEFT and adapters are optional
(`workflow/setup.sh bench`); whoever cannot run a setting stands in the table with its error.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = Path(sys.prefix) / "bench"  # where workflow/setup.sh puts them: their transformers is not that of the tests
sys.path[:0] = [str(PEERS), *(str(REPOSITORY / folder) for folder in ("", "tests", "workflow/scripts"))]

import measure  # noqa: E402
import torch  # noqa: E402
from contestants import CONTESTANTS, Settings  # noqa: E402
from tables import report  # noqa: E402

LIBRARIES = ("torch", "fairseq-fixed", "fairseq-prefix", "transformers", "peft", "adapters")


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    args = parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    record = {"versions": versions(), "machine": machine(args), "settings": vars(args), "results": {}}
    shapes = {field.name: getattr(args, field.name, "") for field in dataclasses.fields(Settings)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in args.only:
            size = args.memory_size if part == measure.MEMORY else args.size
            settings = Settings(**{**shapes, "size": size, "base": str(Path(folder) / size)})
            if not Path(settings.base).exists():
                settings.save_base()
            names = [name for name in measure.ENTRANTS[part] if name in args.contestants]
            record["results"][part] = measure.PARTS[part](names, settings, args.batch, args.rounds)
            record["limits"] = [measure.compare(limit, record["results"]) for limit in measure.LIMITS]
            args.output.write_text(json.dumps(record, indent=1, default=str) + "\n")
    print("\n".join(report(record)))
    measure.say(f"every sample: {args.output}")


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=measure.PARTS, default=list(measure.PARTS), help="parts to run")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="who takes part")
    add("--rounds", type=int, default=5, help="measured rounds, after one that is not")
    add("--batch", nargs="+", type=int, default=[4, 16], help="sentences; memory takes the smallest")
    add("--size", choices=("large", "base", "tiny"), default="base", help="the BART")
    add("--memory-size", choices=("large", "base", "tiny"), default="large", help="the BART of the memory part")
    add("--vocabulary", type=int, default=50265, help="symbols")
    add("--source", type=int, default=256, help="source tokens, with <s> and </s>")
    add("--target", type=int, default=32, help="target tokens in training, with <s> and </s>")
    add("--forced", type=int, default=24, help="tokens that every hypothesis has, with <s> and </s>")
    add("--beam", type=int, default=6, help="beam size")
    add("--prefix-length", type=int, default=200, help="virtual tokens")
    add("--mid-dim", type=int, default=800, help="hidden width of the MLP")
    add("--threads", type=int, default=2, help="of torch")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    add("--output", type=Path, default=Path("results/bench.json"), help="the JSON file")
    return parser.parse_args(argv)


# What it ran on -------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str | None]:
    """Of Python and the libraries that are compared; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    return found


def machine(args: argparse.Namespace) -> dict:
    """Processors, threads, and how busy others kept it at the start."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": args.threads,
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    """As the system calls it, with the instructions that torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


if __name__ == "__main__":
    main(sys.argv[1:])
