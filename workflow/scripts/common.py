"""What every stage's script shares: errors a user can act on, files that are whole or absent, readers, progress."""

from __future__ import annotations

import argparse
import bz2
import collections
import contextlib
import difflib
import errno
import functools
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import lzma
import os
import signal
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from signal_handlers import handle
from state import PROGRESS_LINE, State, describe
from tqdm import tqdm

PROGRESS = "PREFIX_PROGRESS"  # the environment variable that is `lines` for the jobs of the workflow
SPLITS = ("train", "valid", "test")
EVALUATED = ("test", "valid")  # the splits that hypotheses are generated for
# The official evaluations of WebNLG 2017 and of DART score against the first three texts of an entry.
OFFICIAL_REFERENCES = 3
LONGEST_LINE = 64 << 20  # bytes; a few kB of a compressed file may be any number of them
# What a truncated or damaged compressed file raises while it is read, whatever its format.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError)
# Of the disk, not of the program: full, over quota, read-only, no permission, broken.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def _load_vocabulary() -> ModuleType:
    """Load this module of the plugin by itself: `import fairseq_prefix` would import torch, which takes seconds."""
    path = Path(__file__).resolve().parents[2] / "fairseq_prefix" / "files" / "vocabulary.py"
    spec = importlib.util.spec_from_file_location("plugin_vocabulary", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# How every text is cleaned, encoded and decoded. imports.py reads the statement that is never run.
if TYPE_CHECKING:
    from fairseq_prefix.files import vocabulary
else:
    vocabulary = _load_vocabulary()
single_line = vocabulary.single_line


def printable(text: str) -> str:
    """The text, on one line, with what would steer a terminal spelt out."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


class UserError(Exception):
    """Bad input: one or two sentences that name the file, line or key and say what to do. Shown without a traceback."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def suggestion(name, known: Iterable[str], most: int = 20) -> str:
    """`; did you mean 'x'?`, or all known names if none is near and there are at most so many."""
    known = sorted(known)
    if near := difflib.get_close_matches(str(name), known, 1):
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(known)}" if 0 < len(known) <= most else ""


def run_main(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`; a `UserError` becomes one line on stderr and exit status 1.

    SIGTERM ends it as Ctrl-C does, so that files half written are removed.
    """
    handle([signal.SIGTERM], lambda number, _: sys.exit(128 + number))
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        what = error.filename or "a file could not be written"
        sys.exit(f"error: {what}: {error.strerror}; nothing half-written is left: mend that and run the same again")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the final name only when the block succeeds."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
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


def named_path(form: str) -> Callable[[str], tuple[str, Path]]:
    """An argparse type for options like `--input KEY=PATH`; `form` is how the error message calls it."""

    def parse(text: str) -> tuple[str, Path]:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
        return name, Path(path)

    return parse


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


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to read, decompressed where its name ends in .gz."""
    try:
        with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as file:
            yield file
    except DAMAGED as error:
        raise UserError(f"{path}: truncated or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a UTF-8 text file, plain or .gz; a byte-order mark and CRLF are taken off.

    Raises:
        UserError: the file is missing, truncated, not UTF-8, or holds a NUL byte or a line without an end (named).
    """
    with _open(path) as file:
        yield from decode_lines(file, path)


def decode_lines(file: BinaryIO, name: object) -> Iterator[tuple[int, str]]:
    """What `read_lines` does, for an open binary file (a member of an archive) that errors call `name`."""
    lines = iter(functools.partial(file.readline, LONGEST_LINE + 1), b"")
    for number, raw in enumerate(lines, 1):
        if len(raw) > LONGEST_LINE:
            raise UserError(f"{name}, line {number}: longer than {LONGEST_LINE >> 20} MiB; write shorter lines")
        if b"\0" in raw:
            raise UserError(f"{name}, line {number}: holds a NUL byte; the file is damaged or not text")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: not UTF-8 (byte {error.start + 1} of the line)") from None
        yield number, line.rstrip("\r\n")


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSON-lines file; an empty or malformed line is a `UserError`."""
    for number, line in read_lines(path):
        yield number, json_row(path, number, line)


def encoded_lines(path: str | os.PathLike, split: str) -> list[int]:
    """How many lines encode.py writes for each example of a split: one in the test set, elsewhere one per reference."""
    return [1 if split == "test" else len(row.get("references", [])) for _, row in read_jsonl(path)]


def json_row(path: str | os.PathLike, number: int, line: str) -> dict:
    """The object of one line of a JSON-lines file."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
    return row


def read_json(path: str | os.PathLike):
    """The JSON value of a file; missing or malformed is a `UserError`."""
    text = "\n".join(line for _, line in read_lines(path))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


class TarMember(tarfile.TarInfo):
    """A member whose description is short and sound; tarfile itself takes any length of it into memory, and raises
    whatever comes of what stands there. Sparse files, which no release has, are whatever size they claim.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> TarMember:
        member = super().frombuf(buf, encoding, errors)
        if member.type in DESCRIPTIONS and not 0 <= member.size <= LONGEST_DESCRIPTION:
            raise tarfile.TarError(f"a member is described by {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> TarMember:
        try:
            return super().fromtarfile(archive)
        except (ValueError, RecursionError) as error:
            raise tarfile.TarError(str(error)) from None

    def _refuse_sparse(self, *_) -> None:
        raise tarfile.TarError("a member is a sparse file")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


DESCRIPTIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
LONGEST_DESCRIPTION = 1 << 18  # bytes: a long name and extended attributes


@contextlib.contextmanager
def open_tar(path: str | os.PathLike) -> Iterator[Iterator[tuple[str, tarfile.TarInfo, tarfile.ExFileObject]]]:
    """Stream the regular files of a tar archive (plain, .gz, .bz2, .xz) in order; nothing is ever extracted by name.

    Yields an iterator of (member name, member, readable file); each file is to be read before the next is asked for.

    Raises:
        UserError: the archive is missing, truncated or damaged, or holds a member that is a link, a device, or lies
            outside the archive's folder.
    """
    try:
        with open(path, "rb") as raw:
            magic = raw.read(6)
        opener = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(magic[:2], open)
        # tarfile's own stream mode checks no checksum and takes a cut-off .gz for a complete one, hence our own opener.
        with opener(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=TarMember) as archive:
            yield _safe_members(path, archive, stream)
    except DAMAGED as error:
        raise UserError(f"{path}: truncated or damaged archive ({error}); fetch it again") from None
    except OSError as error:
        if error.errno is None:  # bz2's word for damage
            raise UserError(f"{path}: truncated or damaged archive ({error}); fetch it again") from None
        if error.filename != os.fspath(path):
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _safe_members(path, archive: tarfile.TarFile, stream):
    while member := archive.next():
        archive.members.clear()  # tarfile would remember each, and what is said of all
        archive.pax_headers.clear()
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{path}: member {member.name!r} lies outside the archive's folder; the archive is refused")
        if not (member.isreg() or member.isdir()):
            raise UserError(f"{path}: member {member.name!r} is a link or a device; the archive is refused")
        if member.isreg():
            yield member.name, member, archive.extractfile(member)
    while stream.read(1 << 20):  # to the end, where the checksum is
        pass


def sha256_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def progress(
    items: Iterable | None, description: str, total: int | None = None, state: State | None = None, **options
) -> tqdm:
    """A progress bar on stderr, also where stderr is a log file (there it is redrawn twice a minute only).

    Of a job of the workflow, which has a display of its own, it is plain lines, and figures in the job's `state`.
    """
    if os.environ.get(PROGRESS) == "lines":
        return _Lines(items, description, total, state, **options)
    interactive = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        total=total,
        mininterval=0.2 if interactive else 30.0,
        dynamic_ncols=interactive,
        **options,
    )


class _Lines(tqdm):
    """tqdm's counting without its drawing: a line now and then, more seldom the longer it takes."""

    def __init__(self, items: Iterable | None, description: str, total: int | None, state: State | None, **options):
        self._state = state
        self._counting = False
        self._last_line = time.monotonic()
        super().__init__(items, desc=description, total=total, mininterval=2.0, file=io.StringIO(), **options)

    def update(self, n: float = 1) -> bool | None:
        """As tqdm's; the clock starts with the first, as loading says nothing about the speed."""
        if self._counting:
            return super().update(n)
        self._counting = True
        self.n += n
        self.initial = self.last_print_n = self.n
        self.start_t = self.last_print_t = time.time()
        return self.refresh()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """What tqdm calls to draw."""
        counted = self.format_dict
        figures = {name: counted[name] for name in ("n", "initial", "total", "elapsed")}
        figures |= {"unit": counted["unit"].strip(), "scores": getattr(self, "scores", {})}
        if self._state:
            self._state.update(**figures)
        if time.monotonic() - self._last_line >= min(600, max(30, counted["elapsed"] / 20)):
            self._last_line = time.monotonic()
            print(f"{PROGRESS_LINE}{self.desc}: {describe(figures)}", file=sys.stderr, flush=True)
        return True


@contextlib.contextmanager
def worker_pool(count: int, initializer: Callable[..., None] | None = None, arguments: tuple = ()):
    """Yield a function like `map` that calls in `count` processes (1: in this one).

    Results come in the order of the items whatever the number of processes, and only a few items are ahead of the
    result that is asked for next, so that neither side of a long sequence piles up in memory. Processes start at once:
    begin with what takes memory afterwards.

    Raises:
        UserError: a process was killed; and what the function or the iterable of items raises, in the items' order.
    """
    if count == 1:
        if initializer:
            initializer(*arguments)
        yield map
        return
    pool = ProcessPoolExecutor(count, initializer=initializer, initargs=arguments)
    try:
        pool.submit(int).result()
        yield functools.partial(_map_in, pool, 4 * count)
    except BrokenProcessPool:
        raise UserError("a worker process was killed, for want of memory perhaps; use fewer of them") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _map_in(pool: ProcessPoolExecutor, ahead: int, function: Callable, items: Iterable) -> Iterator:
    waiting: collections.deque = collections.deque()
    failure: Exception | None = None
    items = iter(items)
    while failure is None:
        try:
            waiting.append(pool.submit(function, next(items)))
        except StopIteration:
            break
        except Exception as error:  # what the items before it raise comes first
            failure = error
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if failure is not None:
        raise failure


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


def positive(text: str) -> int:
    """The type of an argument that is a whole number above 0."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def json_object(text: str) -> dict:
    """The type of an argument that is a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return value
