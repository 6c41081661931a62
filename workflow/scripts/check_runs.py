"""Stop where trained runs, or their hypotheses, were made from other data or another base than there is now.

A rerun of a data stage trains nothing again: as a rule it writes the same bytes. Where the bytes differ, the runs that
were made from the earlier ones are named here, and the user decides.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from common import UserError, run_main, sha256_file, write_json
from trained import KEPT, changed_files, read_in_training, read_record, refusal, replacing


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    changed = {str(run): files for run in args.run if (files := changed_since(run))}
    if changed and not replacing():
        raise UserError(refusal(changed))
    write_json(args.output, {"runs": [str(run) for run in args.run]})


def changed_since(run: Path) -> list[str]:
    """Files that the training or a decoding of a run has read and that have other bytes now."""
    record = read_record(run / "run.json") or read_record(run / KEPT / "run.json") or {}
    changed = changed_files(record, digest, read_in_training)
    for folder in (run, run / "valid"):
        if (folder / "generate.txt").exists():
            changed += changed_files(read_record(folder / "generate.json") or {}, digest, bool)
    return sorted(set(changed))


@functools.cache
def digest(path: str) -> str | None:
    """The SHA-256 of a file; None if it is not there."""
    return sha256_file(path) if Path(path).is_file() else None


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, action="extend", nargs="*", default=[], metavar="DIR", help="a folder with a run.json"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="gets the names of the runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
