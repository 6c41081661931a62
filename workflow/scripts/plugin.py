"""The plugin's own command, `python -m fairseq_prefix`, started in a warm process where there is one (warm.py)."""

from __future__ import annotations

import json
import sys
import tempfile

from common import UserError
from warm import start

MODULE = "fairseq_prefix.__main__"


def plugin(command: str, file: str, *arguments: str) -> dict:
    """The description of a file that the plugin makes or looks at.

    Raises:
        UserError: the command failed; with the reason it gave.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = start(MODULE, [command, file, *arguments, "--json"], errors)
        output = process.stdout.read()
        if process.wait() != 0:
            errors.seek(0)
            raise UserError(f"{file}: {(errors.read().strip().splitlines() or ['cannot be read'])[-1]}")
    return json.loads(output)


def main(argv: list[str]) -> int:
    process = start(MODULE, argv, sys.stderr)
    for line in process.stdout:
        print(line, end="")
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
