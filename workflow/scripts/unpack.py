"""Unpack named members of a tar archive, and nothing else.

The archive is streamed; its own names never become paths. An archive with links, devices or names outside its folder
is refused whole, and every output appears only after the archive was read to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path

from common import UserError, atomic_path, named_path, open_tar, progress, run_main

CHUNK = 1 << 20


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    outputs = dict(args.member)
    if len(outputs) != len(args.member):
        raise UserError("a member stands twice among --member")
    unpack(args.archive, outputs, args.max_bytes)


def unpack(archive: Path, outputs: dict[str, Path], max_bytes: int) -> None:
    """Write each member named in `outputs` (by the last parts of its path) to its path, all of them or none."""
    with contextlib.ExitStack() as stack:
        targets = {name: stack.enter_context(atomic_path(path)) for name, path in outputs.items()}
        found: dict[str, str] = {}
        with open_tar(archive) as members, progress(None, archive.name, unit="B", unit_scale=True) as bar:
            for member_name, member, file in members:
                bar.update(member.size)
                for name in (name for name in targets if f"/{member_name}".endswith(f"/{name}")):
                    if name in found:
                        raise UserError(
                            f"{archive}: {name} fits both {found[name]} and {member_name}; name more of the path"
                        )
                    found[name] = member_name
                    if member.size > max_bytes:
                        raise UserError(
                            f"{archive}: member {member_name} has {member.size} bytes, over {max_bytes} allowed"
                        )
                    with open(targets[name], "wb") as output:
                        shutil.copyfileobj(file, output, CHUNK)
        if missing := [name for name in targets if name not in found]:
            raise UserError(f"{archive}: no member {', '.join(missing)}")


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, type=Path, help="a tar archive, plain or .gz, .bz2, .xz")
    parser.add_argument(
        "--member",
        required=True,
        action="append",
        type=named_path("NAME=OUTPUT"),
        metavar="NAME=OUTPUT",
        help="the member whose path ends in NAME is written to OUTPUT; once per member",
    )
    parser.add_argument(
        "--max-bytes", type=int, default=64 << 30, metavar="N", help="refuse a larger member (default: 64 GiB)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
