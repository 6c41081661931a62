"""Every stage of the workflow under every kind of failure: does it go on to the same results, or say what to do?

Run by `make test-failures`: progress on stderr, a table on stdout and in a file. Each case copies a finished tree,
takes away what a stage makes, has the stage make it again under a fault (faults.py), and compares bytes. Times differ
from run to run, so that the moments of faults do too; everything else follows from the seed. Without the rights for a
fault (mounts, immutable folders) its cases are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))

import faults  # noqa: E402
import playground  # noqa: E402


def main(argv: list[str]) -> int:
    """Run the cases that are not yet done, print the table; 1 if anything is wrong."""
    args = parse_args(argv)
    if "PREFIX_WARM" not in os.environ:
        warm = [sys.executable, str(playground.SCRIPTS / "warm.py"), sys.executable, str(Path(__file__).parent), *argv]
        os.execv(sys.executable, warm)
    folder = args.resume or Path(tempfile.mkdtemp(prefix="failures-"))
    print(f"working in {folder}; to go on after an interruption: --resume {folder}", file=sys.stderr)
    template = folder.resolve() / "finished"
    if not (folder / "finished.done").exists():
        playground.build(template)
        (folder / "finished.done").touch()
    chosen = [
        case
        for case in faults.cases()
        if (not args.only or case[0] in args.only) and (not args.stage or case[1] in args.stage)
    ]
    results = read_results(folder / "results.jsonl")
    done = {tuple(result["case"]) for result in results}
    with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
        for case in tqdm([case for case in chosen if case not in done], unit="case"):
            results.append(run(case, template, args.seed))
            file.write(json.dumps(results[-1]) + "\n")
            file.flush()
    text = table([result for result in results if tuple(result["case"]) in set(chosen)])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text)
    print(text, end="")
    return int(any(result["outcome"] == "wrong" for result in results))


def read_results(path: Path) -> list[dict]:
    """What an interrupted harness has found so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(case: tuple[str, str, str], template: Path, seed: int) -> dict:
    """One case: its outcome, why, and how long it took."""
    fault, name, detail = case
    begin = time.monotonic()
    folder = template.parent / "tree"
    playground.copy(template, folder, playground.STAGES[name])
    rng = random.Random(f"{seed} {fault} {name} {detail}")
    reason = ""
    try:
        seconds = duration(template.parent, name)
        outcome = faults.FAULTS[fault](faults.Case(template, folder, name, detail, rng, seconds))
    except faults.Skipped as skipped:
        outcome, reason = "skipped", str(skipped)
    except faults.Wrong as wrong:
        outcome, reason = "wrong", str(wrong)
        tqdm.write(f"{fault}, {name} {detail}: {wrong}", file=sys.stderr)
    return {"case": case, "outcome": outcome, "reason": reason, "seconds": round(time.monotonic() - begin, 1)}


def duration(folder: Path, name: str) -> float:
    """How long the stage's command took in the finished tree, as Snakemake noted it, loading included."""
    path = folder / "durations.json"
    if not path.exists():
        found = {}
        for stage, values in playground.STAGES.items():
            found[stage] = playground.seconds(folder / "finished", values.outputs[0])
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())[name]


def table(results: list[dict]) -> str:
    """Counts of outcomes by fault and stage, and what is wrong."""
    letters = {outcome: outcome[0].upper() for outcome in faults.OUTCOMES}
    names = [fault for fault in faults.FAULTS if any(result["case"][0] == fault for result in results)]
    rows = [["stage", *(name.replace("_", " ") for name in names)]]
    for stage in dict.fromkeys(result["case"][1] for result in results):
        row = [stage]
        for fault in names:
            counts = Counter(r["outcome"] for r in results if r["case"][:2] in ([fault, stage], (fault, stage)))
            row.append(" ".join(f"{counts[o]} {letters[o]}" for o in faults.OUTCOMES if counts[o]) or "-")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = Counter(result["outcome"] for result in results)
    lines.append("")
    lines += [f"{letters[o]}  {o}: {total[o]:,} ({meaning})" for o, meaning in faults.OUTCOMES.items()]
    seconds = sum(result["seconds"] for result in results)
    lines += ["", f"{len(results)} cases in {seconds / 60:.0f} minutes"]
    for result in results:
        if result["outcome"] == "wrong":
            lines.append(f"wrong: {' '.join(filter(None, result['case']))}: {result['reason']}")
    return "\n".join(lines) + "\n"


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/failures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="extend", nargs="+", choices=faults.FAULTS, metavar="FAULT", help=", ".join(faults.FAULTS)
    )
    parser.add_argument(
        "--stage",
        action="extend",
        nargs="+",
        choices=playground.STAGES,
        metavar="STAGE",
        help=", ".join(playground.STAGES),
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of what is random [%(default)s]")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="the folder of a harness that was interrupted")
    parser.add_argument(
        "--output", type=Path, default=Path("results/failures.txt"), metavar="FILE", help="the table [%(default)s]"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
