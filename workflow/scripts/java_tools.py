"""METEOR 1.5 and the Penn Treebank tokeniser, the Java programs that come with the package pycocoevalcap.

Both run once over all lines: METEOR's server mode, which pycocoevalcap uses, waits for ever when the other side dies.
They write nothing beside themselves, so the package may lie where it cannot be written to.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import UserError, single_line

# What pycocoevalcap, and through it the official evaluation of E2E, takes out after tokenising.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())
METEOR_STATISTICS = 23


def unavailable() -> str | None:
    """What is missing for METEOR and the tokeniser, and how to get it; None where nothing is."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "needs the package pycocoevalcap (100 MB); install it with `make setup-scores`"
    if shutil.which("java") is None:
        return "needs Java, and there is no `java` on the PATH; install a Java runtime (on Debian default-jre-headless)"
    return None


def meteor_statistics(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], memory: str = "2G"
) -> list[list[float]]:
    """METEOR's sufficient statistics of every hypothesis with the best of its references: its option -ssOut.

    Raises:
        UserError: Java or the package is missing, or the program failed.
    """
    width = max(map(len, references))
    with tempfile.TemporaryDirectory(prefix="meteor-") as folder:
        files = [Path(folder) / name for name in ("hypotheses", "references")]
        _write_lines(files[0], hypotheses)
        # An empty line scores 0 and never is the best of several references.
        _write_lines(files[1], (line for texts in references for line in [*texts, *[""] * (width - len(texts))]))
        options = ["-l", "en", "-norm", "-r", str(width), "-ssOut"]
        output = _run("meteor/meteor-1.5.jar", memory, ["-jar"], [*map(str, files), *options], None)
    rows = [line.split() for line in output.splitlines()]
    if len(rows) != len(hypotheses) or any(len(row) != METEOR_STATISTICS for row in rows):
        raise UserError(f"METEOR gave {len(rows)} lines of statistics for {len(hypotheses)} hypotheses")
    return [[float(value) for value in row] for row in rows]


@functools.lru_cache(maxsize=4)
def ptb_tokens(lines: tuple[str, ...], memory: str = "2G") -> tuple[str, ...]:
    """Every line tokenised as in the Penn Treebank, lower-cased and without punctuation, its words joined by spaces.

    Raises:
        UserError: Java or the package is missing, or the program failed.
    """
    options = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "".join(single_line(line) + "\n" for line in lines)
    output = _run("tokenizer/stanford-corenlp-3.4.1.jar", memory, ["-cp"], options, text)
    tokenised = output.split("\n")[:-1]
    if len(tokenised) != len(lines):
        raise UserError(f"the Penn Treebank tokeniser gave {len(tokenised)} lines for {len(lines)}")
    return tuple(" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in tokenised)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(single_line(line) + "\n" for line in lines)


def _run(jar: str, memory: str, start: list[str], arguments: list[str], text: str | None) -> str:
    """Standard output of a program of the package; its own last words where it fails."""
    if missing := unavailable():
        raise UserError(f"{Path(jar).stem} {missing}")
    package = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0])
    # Otherwise Java takes the encoding from the locale, which is plain ASCII where none is set.
    encoding = [f"-D{key}=UTF-8" for key in ("file.encoding", "stdout.encoding", "sun.stdout.encoding")]
    command = ["java", f"-Xmx{memory}", *encoding, *start, str(package / jar), *arguments]
    given = {"stdin": subprocess.DEVNULL} if text is None else {"input": text.encode()}
    try:
        result = subprocess.run(command, capture_output=True, **given)
    except OSError as error:
        raise UserError(f"java could not be started ({error.strerror})") from None
    if result.returncode:
        words = result.stderr.decode(errors="replace").strip() or result.stdout.decode(errors="replace").strip()
        reason = words.splitlines()[0] if words else "it said nothing"
        raise UserError(f"{Path(jar).stem} failed with status {result.returncode} ({reason})")
    return result.stdout.decode("utf-8", errors="replace")
