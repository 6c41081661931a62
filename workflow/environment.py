"""Check an environment that the lock files were installed into; workflow/setup.sh runs it with its Python.

Two requirements are left out on purpose: torchaudio, which only fairseq's speech tasks import and whose only build on
the package index does not load beside a torch for CPUs; and pycocotools, which pycocoevalcap uses for images only. Both
are deleted from the metadata of the installed packages, so that `pip check` reports only what is really missing. A
torchaudio of an earlier set-up that cannot be imported is removed: transformers would try to load it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"fairseq-fixed": "torchaudio", "pycocoevalcap": "pycocotools"}  # package -> requirement


def main() -> None:
    for package, requirement in LEFT_OUT.items():
        try:
            drop_requirement(distribution(package), requirement)
        except PackageNotFoundError:
            continue  # of a set-up that was not asked for
    if importlib.util.find_spec("torchaudio") and python("-c", "import torchaudio").returncode:
        print("Removing torchaudio, which cannot be imported beside this torch", file=sys.stderr)
        python("-m", "pip", "uninstall", "--yes", "--quiet", "torchaudio")
    ours, others = sorted_findings(python("-m", "pip", "check").stdout, locked_packages())
    for line in others:
        print(f"notice: pip check: {line} (not a package of this project's lock files)", file=sys.stderr)
    if ours:
        sys.exit("\n".join(f"pip check: {line}" for line in ours))


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def drop_requirement(installed: Distribution, requirement: str) -> None:
    """Delete a requirement from the metadata of an installed package, and correct the package's RECORD."""
    text = installed.read_text("METADATA")
    dropped = re.sub(rf"^Requires-Dist: {re.escape(requirement)}(?![\w.-]).*\n", "", text, flags=re.MULTILINE)
    if dropped == text:
        return
    name = next(file for file in installed.files if file.name == "METADATA" and file.parent.suffix == ".dist-info")
    data = dropped.encode()
    Path(installed.locate_file(name)).write_bytes(data)
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    record = Path(installed.locate_file(name.parent / "RECORD"))
    lines = record.read_text(encoding="utf-8").splitlines()
    lines = [f"{name},sha256={digest},{len(data)}" if line.startswith(f"{name},") else line for line in lines]
    record.write_text("\n".join(lines) + "\n", encoding="utf-8")


def locked_packages() -> set[str]:
    """The project itself and the packages of all lock files, as `normal` spells them."""
    texts = (path.read_text(encoding="utf-8") for path in ROOT.glob("requirements*.lock"))
    return {"fairseq-prefix"} | {normal(name) for text in texts for name in re.findall(r"^([\w.-]+)==", text, re.M)}


def sorted_findings(report: str, locked: set[str]) -> tuple[list[str], list[str]]:
    """The lines of `pip check` about these packages, and those about others, such as packages a user has added."""
    lines = [line for line in report.splitlines() if line and line != "No broken requirements found."]
    ours = [line for line in lines if normal(line.split()[0]) in locked]
    return ours, [line for line in lines if line not in ours]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
