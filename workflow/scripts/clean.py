"""Delete all that the workflow made in this folder, trained models included, after a question; `make clean-trained`.

Fetched files (resources/) stay.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path

from common import UserError, read_json, run_main
from trained import KEPT
from unlock import refuse_if_living

FOLDERS = tuple(map(Path, ("data", "bases", "runs", "results", "logs", ".snakemake")))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    args = parser.parse_args(argv)
    folders = [folder for folder in FOLDERS if os.path.lexists(folder)]
    if not folders:
        print("there is nothing to delete")
        return
    refuse_if_living()
    print(described(folders))
    if not args.yes:
        confirm()
    for folder in folders:
        if folder.is_symlink():
            folder.unlink()  # what it leads to is shared with others
        else:
            shutil.rmtree(folder)


def described(folders: list[Path]) -> str:
    """What these folders hold, in two lines; what is behind a link stays and does not count."""
    files = [path for folder in folders if not folder.is_symlink() for path in folder.rglob("*") if path.is_file()]
    records = [path for path in files if path.name == "run.json" and path.parent.name != KEPT]
    runs = [path for path in records if path.parts[0] == "runs"]
    bases = [path for path in files if path.parts[0] == "bases" and path.name == "model.pt" and path.parts[-2] != KEPT]
    states = [path.lstat() for path in files]
    size = sum({(state.st_dev, state.st_ino): state.st_size for state in states}.values()) / 1e9  # some have two names
    return (
        f"to be deleted: {', '.join(map(str, folders))}\n"
        f"they hold {len(runs)} runs, {len(bases)} bases, {sum(map(hours, records)):.1f} hours of training; "
        f"{size:.2f} GB in all"
    )


def hours(record: Path) -> float:
    """How long a training took, as its run.json says; 0 if it does not."""
    with contextlib.suppress(UserError, LookupError, TypeError, ValueError):
        return float(read_json(record)["seconds"]) / 3600
    return 0.0


def confirm() -> None:
    """Ask.

    Raises:
        UserError: nobody can answer, or the answer is not yes.
    """
    if not sys.stdin.isatty():
        raise UserError("nothing was deleted: there is no terminal to ask on; to delete anyway, add CLEAN=--yes")
    if input('Delete all of it? Type "yes": ').strip() != "yes":
        raise UserError("nothing was deleted")


if __name__ == "__main__":
    run_main(main)
