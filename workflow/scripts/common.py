"""What every stage's script shares: errors a user can act on, files that are whole or absent, JSON lines, progress bars."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


class UserError(Exception):
    """Bad input: one or two sentences that name the file, line or key and say what to do. Shown without a traceback."""


def run_main(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`; a `UserError` becomes one line on stderr and exit status 1."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        sys.exit(1)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the final name only when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; shared caches need the usual mode
    try:
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike, mode: str = "w"):
    """Like `open(path, mode)` for writing UTF-8 text (or bytes), but the file appears whole or not at all."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with atomic_path(path) as temporary, open(temporary, mode, **text) as file:
        yield file


def write_json(path: str | os.PathLike, value) -> None:
    with atomic_open(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2, sort_keys=True)
        file.write("\n")


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict]) -> int:
    """Write one JSON object a line; returns how many."""
    count = 0
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a UTF-8 text file; a byte-order mark and CRLF are taken off.

    Raises:
        UserError: the file is missing, is not UTF-8, or holds a NUL byte (named with its line).
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        for number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise UserError(f"{path}, line {number}: holds a NUL byte; the file is damaged or not text")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)") from None
            yield number, line.rstrip("\r\n")


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSON-lines file; an empty or malformed line is a `UserError`."""
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def read_json(path: str | os.PathLike):
    """The JSON value of a file; missing or malformed is a `UserError`."""
    text = "\n".join(line for _, line in read_lines(path))
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def sha256_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def progress(items: Iterable | None, description: str, total: int | None = None, **options) -> tqdm:
    """A progress bar on stderr, also where stderr is a log file (there it is redrawn twice a minute only)."""
    interactive = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        total=total,
        mininterval=0.2 if interactive else 30.0,
        dynamic_ncols=interactive,
        **options,
    )
