"""Write hashes into the lock files: for each pinned version the SHA-256 of every file that the package index has of it.

With them `pip install --require-hashes`, which workflow/setup.sh calls, takes any of these files, whichever fits the
Python and the processor, and nothing else. Run it after every change of a version. It asks the index by way of uv (pip
install uv), and installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "requirements-cuda.lock"
ENTRY = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
Pins = dict[tuple[str, str], set[str]]  # (package, version) -> hashes


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.resolve_cuda:
        resolve_cuda()
    also = {(wheel_pin(path), f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}") for path in args.also}
    for path in args.files or sorted(ROOT.glob("requirements*.lock")):
        text = path.read_text(encoding="utf-8")
        pins = read_pins(text)
        published = read_pins(uv("--no-deps", "--generate-hashes", str(path)))
        for pin, hashes in pins.items():
            hashes |= published[normal(pin)] | {digest for allowed, digest in also if allowed == normal(pin)}
        path.write_text(lock(text, pins), encoding="utf-8")


def read_pins(text: str) -> Pins:
    """The versions in a lock file and their hashes; in those that uv writes the names are normalised."""
    pins: Pins = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            if not (found := ENTRY.match(line)):
                sys.exit(f"error: not a pinned version: {line}")
            pins[found[1], found[2]] = set(HASH.findall(line))
    return pins


def lock(text: str, pins: Pins) -> str:
    """The comments at the head of a lock file, and its entries by name."""
    lines = [line for line in text.splitlines() if line.startswith("#")]
    for (name, version), hashes in sorted(pins.items(), key=lambda pin: pin[0][0].lower()):
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash={digest}" for digest in sorted(hashes))]))
    return "\n".join(lines) + "\n"


def normal(pin: tuple[str, str]) -> tuple[str, str]:
    """The name as package indexes spell it; the version without what a local build adds (+cpu)."""
    return re.sub(r"[-_.]+", "-", pin[0]).lower(), pin[1].partition("+")[0]


def wheel_pin(path: Path) -> tuple[str, str]:
    name, version, *_ = path.name.split("-")
    return normal((name, version))


def resolve_cuda() -> None:
    """Choose the versions of what the CUDA build of the pinned torch needs besides requirements.lock."""
    base = read_pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    torch = next(f"{name}=={version}" for name, version in base if name == "torch")
    found = read_pins(uv("--universal", "-", stdin=f"{torch}\n"))
    known = {normal(pin)[0] for pin in base}
    pins: Pins = {pin: set() for pin in found if pin[0] not in known}
    CUDA.write_text(lock(CUDA.read_text(encoding="utf-8"), pins), encoding="utf-8")


def uv(*arguments: str, stdin: str = "") -> str:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *arguments]
    run = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"error: uv failed: {run.stderr.strip().splitlines()[-1] if run.stderr.strip() else 'no message'}")
    return run.stdout


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="lock files (default: all)")
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        type=Path,
        metavar="WHEEL",
        help="allow this file as well: a build that the index does not have, such as PyTorch's own for CPUs alone; it "
        "stays allowed until the version is changed",
    )
    parser.add_argument(
        "--resolve-cuda",
        action="store_true",
        help="choose the versions of requirements-cuda.lock anew, which is due when torch changes",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
