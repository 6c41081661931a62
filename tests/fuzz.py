"""Bad files, by the hundred thousand, for everything that reads one: `python tests/fuzz.py [--cases N] [--only NAME]`.

Valid files are damaged at random, by a seed of each case's own; what has structure (options, records, metadata) is made
by hypothesis, which shortens what it finds. Each case is accepted or refused with one sentence. Anything else is a
finding, printed with the bytes that cause it: another exception, a message of several lines, seconds without an end, 1
GB more of memory, an end of the process, a file outside the case's folder.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hypothesis.strategies as st
from common import UserError
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis.errors import NoSuchExample

from fairseq_prefix.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS = 5  # a case may take
MEMORY = 1 << 30  # bytes that a case may take more than there were
Case = bytes | object


class Hang(BaseException):
    """A case that does not end."""


class Unsafe(Exception):
    """A case that ends, but should not have ended so."""


@dataclass
class Target:
    """What is fuzzed: `check(case, folder)` reads the case in a folder of its own, and returns or is refused."""

    name: str
    check: Callable[[Case, Path], object]
    samples: Callable[[], list[bytes]] | None = None  # valid files to damage
    strategy: Callable[[], st.SearchStrategy] | None = None  # or what hypothesis makes the cases of
    share: float = 1.0  # of the number of cases: slow ones have fewer


@dataclass
class Outcome:
    """What came of a target's cases."""

    name: str
    cases: int = 0
    refused: int = 0
    accepted: int = 0
    findings: dict[str, Case] = field(default_factory=dict)  # what happened -> the first case where it did


TARGETS: dict[str, Target] = {}


def target(name: str, **options) -> Callable:
    """Register a function as the check of a target."""

    def register(check: Callable) -> Callable:
        TARGETS[name] = Target(name, check, **options)
        return check

    return register


# Damage ---------------------------------------------------------------------------------------------------------------

NASTY = [
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b]0;x\x07", b"\n", b"\r", b"\t", b"\xe2\x80\xa8"),
    *(b"../../x", b"/etc/passwd", b"-1", b"0", b"1e999", b"NaN", b"9" * 5000, b"[" * 3000, b"{" * 3000, b'"', b"'"),
    *(b"$(touch x)", b"`touch x`", b"<script>", b"&x;", b"<!DOCTYPE a [<!ENTITY x 'y'>]>", b"!!python/name:os.system"),
    *(b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"\xd9\xa3", b"\\ud800", b"null", b"true", b"[]", b"{}"),
]


def damaged(rng: random.Random, samples: list[bytes]) -> bytes:
    """One of the samples after one to four changes: bits, cut and doubled parts, numbers, nasty bytes, splices."""
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = rng.randrange(len(data) + 1), int(2 ** rng.uniform(0, 8))
        kind = rng.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        elif kind == 3:
            data[at:at] = rng.choice(NASTY)
        elif kind == 4:
            data[at : at + length] = rng.choice(NASTY)
        elif kind == 5:
            data[at : at + length] = rng.randbytes(min(length, len(data) - at))
        elif kind == 6:
            other = rng.choice(samples)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        elif data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
    return bytes(data)


TEXT = st.text(max_size=20) | st.sampled_from([part.decode("utf-8", "replace") for part in NASTY]) | st.just("\ud800")
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=6
)


def changed(sample: object, values: st.SearchStrategy = VALUES) -> st.SearchStrategy:
    """The sample, a value of lists and maps, with one to three places in it replaced, taken out or added."""
    places = list(_places(sample))
    change = st.tuples(st.sampled_from(places), st.sampled_from(["set", "set", "remove", "add"]), TEXT, values)
    return st.lists(change, min_size=1, max_size=3).map(partial(_with_changes, sample))


def _places(value: object, path: tuple = ()) -> Iterator[tuple]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from _places(value[key], (*path, key))


def _with_changes(value: object, changes: list) -> object:
    def copied(value):
        if isinstance(value, dict):
            return {key: copied(part) for key, part in value.items()}
        return [copied(part) for part in value] if isinstance(value, list) else value

    value = copied(value)
    for (*above, last), kind, name, new in changes:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change may have taken the place away
            place = value
            for key in above:
                place = place[key]
            if kind == "remove":
                del place[last]
            elif kind == "add" and isinstance(place, dict):
                place[name] = new
            else:
                place[last] = new
    return value


# Running --------------------------------------------------------------------------------------------------------------


def run(name: str, cases: int, seed: int) -> Outcome:
    """Fuzz one target in this process."""
    chosen, outcome = TARGETS[name], Outcome(name)
    cases = max(5, round(cases * chosen.share))
    with tempfile.TemporaryDirectory() as root, _limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def note(case: Case) -> None:
            outcome.cases += 1
            refused, happened = attempt(chosen, case, Path(root))
            outcome.refused += refused
            outcome.accepted += not (refused or happened)
            if happened and _kind(happened) not in map(_kind, outcome.findings):
                outcome.findings[happened] = case

        if chosen.samples:
            samples = chosen.samples()
            for number in range(cases):
                note(damaged(random.Random(f"{seed} {name} {number}"), samples))
        else:
            hypothesis_seed(seed)(_quietly(cases)(given(chosen.strategy())(note)))()
            for happened in outcome.findings:
                outcome.findings[happened] = _shortened(chosen, happened, outcome.findings[happened], Path(root))
    return outcome


def _quietly(cases: int) -> settings:
    return settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _shortened(chosen: Target, happened: str, case: Case, root: Path) -> Case:
    """A smaller case of the same finding, if hypothesis comes upon one."""

    def the_same(case: Case) -> bool:
        found = attempt(chosen, case, root)[1]
        return bool(found) and _kind(found) == _kind(happened)

    with contextlib.suppress(NoSuchExample):
        return find(
            chosen.strategy(), the_same, settings=settings(_quietly(1000), phases=[Phase.generate, Phase.shrink])
        )
    return case


def attempt(chosen: Target, case: Case, root: Path) -> tuple[bool, str | None]:
    """(whether a case was refused in one sentence, what else happened that should not)."""
    folder = root / "case"
    folder.mkdir()
    _remember(case)
    held, refused, happened = _resident(), False, None
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            chosen.check(case, folder)
    except (UserError, UsageError) as error:
        refused = True
        if "\n" in str(error).strip() or "\x1b" in str(error):
            happened = f"{type(error).__name__}: of several lines: {str(error)[:200]!r} ({_place(error)})"
    except (Exception, Hang, SystemExit) as error:
        happened = f"{type(error).__name__}: {str(error)[:150]} ({_place(error)})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if _resident() - held > MEMORY:
        happened = f"{(_resident() - held) >> 20} MB of memory"
    if {path.name for path in root.iterdir()} != {"case"}:
        happened = f"a file outside the folder: {sorted(path.name for path in root.iterdir())}"
    shutil.rmtree(folder)
    return refused, happened


def _kind(happened: str) -> str:
    """Findings of one cause are one: numbers and quoted parts differ from case to case."""
    return happened.split(":")[0] + happened.rsplit("(", 1)[-1]


def _place(error: BaseException) -> str:
    """File and line of the project's that the exception came through last."""
    places, trace = [], error.__traceback__
    while trace:
        places.append((Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno))
        trace = trace.tb_next
    ours = [place for place in places if place[0].parent.name in ("scripts", "fairseq_prefix", "tests")]
    return " from ".join(f"{path.name}:{line}" for path, line in [places[-1], (ours or places)[-1]])


def _remember(case: Case) -> None:
    """For who looks why the process ended, in a file that `FUZZ_CASE` names."""
    if path := os.environ.get("FUZZ_CASE"):
        Path(path).write_bytes(case if isinstance(case, bytes) else repr(case).encode("utf-8", "backslashreplace"))


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Memory is limited, and what takes too long is interrupted."""

    def hang(number, frame):
        raise Hang(f"not done after {SECONDS} seconds")

    before, previous = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, previous)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 1 if there were findings."""
    from common import progress

    import fairseq_prefix

    args = parse_args(argv)
    if args.list:
        print("\n".join(TARGETS))
        return 0
    fairseq_prefix.install()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.CRITICAL)
    outcomes = []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress(args.only or list(TARGETS), "fuzzing", unit=" targets") as bar,
    ):
        os.environ["FUZZ_CASE"] = f"{folder}/case"
        for name in bar:
            bar.set_postfix_str(name)
            outcomes.append(run_apart(name, args.cases, args.seed, Path(folder) / "case"))
    return report(outcomes)


def run_apart(name: str, cases: int, seed: int, last: Path) -> Outcome:
    """Fuzz one target in a process of its own, whose end is a finding; `last` is where it notes its cases."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: theirs.send_bytes(pickle.dumps(run(name, cases, seed))))
    process.start()
    theirs.close()
    try:
        return pickle.loads(ours.recv_bytes())  # tensors as well, which `send` would share with a process that ends
    except EOFError:
        process.join()
        return Outcome(name, findings={f"the process ended with status {process.exitcode}": last.read_bytes()})


def report(outcomes: list[Outcome]) -> int:
    """Print a table and the findings."""
    print(f"{'target':<22}{'cases':>9}{'refused':>9}{'accepted':>10}{'findings':>10}")
    for each in outcomes:
        print(f"{each.name:<22}{each.cases:>9,}{each.refused:>9,}{each.accepted:>10,}{len(each.findings):>10}")
    cases, refused, accepted = (
        sum(getattr(each, key) for each in outcomes) for key in ("cases", "refused", "accepted")
    )
    found = sum(len(each.findings) for each in outcomes)
    print(f"{'all':<22}{cases:>9,}{refused:>9,}{accepted:>10,}{found:>10}")
    for each in outcomes:
        for happened, case in each.findings.items():
            print(f"\n{each.name}: {happened}\n  {case!r}")
    return 1 if found else 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000, metavar="N", help="of each target; slow ones have fewer")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="another one makes other cases")
    parser.add_argument("--only", action="append", choices=TARGETS, metavar="NAME", help="this target; repeatable")
    parser.add_argument("--list", action="store_true", help="name the targets")
    return parser.parse_args(argv)


# Text and data sets ---------------------------------------------------------------------------------------------------


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def prepare_all(reader: str, inputs: dict[str, Path], options: dict) -> None:
    """Read as `prepare` does, and check that what it would write is what it says."""
    from prepare import prepared
    from readers import READERS

    for items in READERS[reader](inputs, options).values():
        for line in prepared(list(items)).lines:
            row = json.loads(line)
            if not (row["source"] and all(row["references"])) or len(line.splitlines()) != 1:
                raise Unsafe(f"written: {line!r}")


E2E = b'mr,ref\n"name[The Mill], eatType[pub], near[Inn]","The Mill is a pub."\n"name[A], food[B]","He said ""hi"""\n'
WEBNLG = b"""<?xml version="1.0" encoding="utf-8"?>
<benchmark><entries><entry category="Food" eid="Id1" size="1"><modifiedtripleset>
<mtriple>A_b | r | "x &amp; y"</mtriple></modifiedtripleset><lex comment="good" lid="Id1">A is \xc3\xa9 x.</lex>
<lex comment="bad" lid="Id2">Bad.</lex></entry></entries></benchmark>
"""
DART = b'[{"tripleset": [["a", "R", "c"]], "annotations": [{"source": "webnlg", "text": "a is c"}]}]'
ARTICLE = b"""[SN]URL[SN]
http://www.bbc.co.uk/news/uk-1
[SN]FIRST-SENTENCE[SN]
It is.
[SN]RESTBODY[SN]
More.
Share this with
"""
SPLITS_OF_XSUM = b'{"train": ["1"], "validation": ["2"], "test": ["3"]}'
ROWS = b"""{"id": "a", "source": "one", "target": ["x", "y"], "group": null}
{"id": 2, "source": ["a", "b"], "target": "z"}
"""


@target("e2e", samples=lambda: [E2E])
def _(case, folder):
    prepare_all("e2e", {"train": written(folder, "t.csv", case), "test": folder / "t.csv"}, {})


@target("webnlg", samples=lambda: [WEBNLG])
def _(case, folder):
    prepare_all("webnlg", {"test": written(folder, "t.xml", case)}, {})


@target("dart", samples=lambda: [DART, DART.replace(b",", b",\n")])
def _(case, folder):
    prepare_all("dart", {"train": written(folder, "t.json", case)}, {})


@target("dart_values", strategy=lambda: changed(json.loads(DART)))
def _(case, folder):
    prepare_all("dart", {"train": written(folder, "t.json", json.dumps(case).encode())}, {})


@target("xsum_article", samples=lambda: [ARTICLE])
def _(case, folder):
    archive = written(folder, "a.tar", tar([(f"x/{number}.data", case) for number in "123"]))
    prepare_all("xsum_raw", {"archive": archive, "splits": written(folder, "s.json", SPLITS_OF_XSUM)}, {})


@target("xsum_splits", samples=lambda: [SPLITS_OF_XSUM])
def _(case, folder):
    archive = written(folder, "a.tar", tar([(f"x/{number}.data", ARTICLE) for number in "123"]))
    prepare_all("xsum_raw", {"archive": archive, "splits": written(folder, "s.json", case)}, {})


@target("jsonl", samples=lambda: [ROWS])
def _(case, folder):
    prepare_all("jsonl", {"train": written(folder, "t.jsonl", case)}, {"id": "id", "group": "group"})


@target("jsonl_rows", strategy=lambda: changed(json.loads(ROWS.splitlines()[0])))
def _(case, folder):
    path = written(folder, "t.jsonl", json.dumps(case).encode() + b"\n")
    prepare_all("jsonl", {"train": path}, {"target": ["target", "b"], "group": "group", "leave_out_empty": True})


READER_OPTIONS = {
    "e2e": {"linearisation": "mr"},
    "webnlg": {"linearisation": "tags", "references": 3},
    "dart": {"linearisation": "bars", "references": None},
    "jsonl": {"source": "source", "target": ["target"], "id": "id", "split": "split", "leave_out_empty": True},
    "xsum_raw": {"topics": {"train": ["news/*"]}},
}


@target("reader_options", strategy=lambda: st.sampled_from(list(READER_OPTIONS)).flatmap(_options_of_reader))
def _(case, folder):
    reader, options = case
    files = {"e2e": E2E, "webnlg": WEBNLG, "dart": DART, "jsonl": ROWS}
    if reader == "xsum_raw":
        inputs = {
            "archive": written(folder, "a.tar", tar([("1.data", ARTICLE), ("2.data", ARTICLE), ("3.data", ARTICLE)]))
        }
        inputs["splits"] = written(folder, "s.json", SPLITS_OF_XSUM)
    else:
        inputs = {"train": written(folder, "t.xml" if reader == "webnlg" else "t.csv", files[reader])}
    prepare_all(reader, inputs, options)


def _options_of_reader(reader: str) -> st.SearchStrategy:
    return st.tuples(st.just(reader), changed(READER_OPTIONS[reader]))


@cache
def parquet_files() -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    files = []
    for table in ({"source": ["a", "b"], "target": ["c", "d"]}, {"source": [["a"]], "target": [None], "n": [1]}):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(table), buffer)
        files.append(buffer.getvalue())
    return files


@target("parquet", samples=parquet_files)
def _(case, folder):
    prepare_all("parquet", {"train": written(folder, "t.parquet", case)}, {})


@target("lines", samples=lambda: [ROWS, ARTICLE, b"\xef\xbb\xbfa\r\nb\n"])
def _(case, folder):
    from common import read_lines

    for _, line in read_lines(written(folder, "t.txt", case)):
        if "\n" in line or "\0" in line:
            raise Unsafe(repr(line))


@target("gzip", samples=lambda: [gzip.compress(ROWS * 20, mtime=0)])
def _(case, folder):
    from common import read_jsonl

    list(read_jsonl(written(folder, "t.jsonl.gz", case)))


@target("json", samples=lambda: [DART, SPLITS_OF_XSUM, ROWS.splitlines()[0]])
def _(case, folder):
    from common import read_json

    read_json(written(folder, "t.json", case))


@target("single_line", strategy=lambda: TEXT)
def _(case, folder):
    from common import printable, single_line

    line = single_line(case)
    if len(line.splitlines()) > 1 or "\t" in line or single_line(line) != line:
        raise Unsafe(repr(line))
    if not printable(case).isprintable():
        raise Unsafe(repr(printable(case)))


# Archives -------------------------------------------------------------------------------------------------------------


def tar(members: list[tuple[str, bytes]], mode: str = "w", **attributes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@cache
def archives() -> list[bytes]:
    members = [("m/model.pt", b"x" * 300), ("m/dict.txt", b"a 1\n"), ("m/a.xml", WEBNLG)]
    odd = [tar([("../../x", b"y")]), tar([("/x", b"y")]), tar([("model.pt", b"")], type=tarfile.SYMTYPE, linkname="/x")]
    odd += [tar([("model.pt", b"")], type=kind) for kind in (tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)]
    return [tar(members, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")] + odd


@target("tar", samples=archives)
def _(case, folder):
    from unpack import unpack

    outputs = {"model.pt": folder / "out" / "model.pt", "dict.txt": folder / "out" / "dict.txt"}
    unpack(written(folder, "a.tar", case), outputs, max_bytes=10_000)
    if {path.name for path in (folder / "out").iterdir()} != {"model.pt", "dict.txt"}:
        raise Unsafe("not the members asked for")


@target("tar_of_xml", samples=archives)
def _(case, folder):
    prepare_all("webnlg", {"train": written(folder, "a.tar.gz", case)}, {})


# Configuration --------------------------------------------------------------------------------------------------------

CONFIG = {
    "tasks": ["e2e", "xsum@50-1"],
    "models": ["bart_large", "gpt2_medium"],
    "methods": ["prefix", "prefix~prefix-length=5"],
    "seeds": [1],
    "mirror": ["mirror"],
    "studies": ["length"],
    "overrides": {
        "train": {"lr": 5e-5, "adam-betas": "(0.9, 0.98)"},
        "tasks": {"e2e": {"generate": {"beam": 5}, "inputs": {"train": {"file": "a.csv", "url": "https://x/a"}}}},
    },
}


@target("configuration", strategy=lambda: changed(CONFIG), share=0.1)
def _(case, folder):
    configure(case, REPOSITORY / "configs")


def configure(values: dict, folder: Path) -> None:
    """Read a configuration, and ask it what the rules ask; nothing it names leaves the folders it belongs into."""
    from config import Configuration

    if not isinstance(values, dict):
        return
    study = Configuration(values, "mine.yaml", [folder])
    for task in study.tasks:
        paths = [*study.task_inputs(task.partition("@")[0]).values(), *study.downloads()]
        if any(".." in Path(path).parts or path.startswith(("/", "-")) or "\n" in path for path in study.downloads()):
            raise Unsafe(f"downloads to {paths}")
    list(study.runs())


PRESETS = {"tasks": ["e2e", "xsum", "demo_table"], "models": ["bart_large", "demo_bart", "bart_large_hf"]}
PRESETS |= {"methods": ["prefix", "adapter_small"], "studies": ["length", "low_data"]}


@cache
def preset_files() -> list[bytes]:
    return [
        (REPOSITORY / "configs" / kind / f"{name}.yaml").read_bytes()
        for kind, names in PRESETS.items()
        for name in names
    ]


@target("yaml", samples=preset_files)
def _(case, folder):
    from config import check, load_yaml

    values = load_yaml(written(folder, "t.yaml", case), "configs/tasks/t.yaml")
    for definition in ("task", "model", "method", "study", "config"):
        with contextlib.suppress(UserError):
            check(values, definition, "configs/tasks/t.yaml")


@target("presets", strategy=lambda: st.sampled_from(sorted(PRESETS)).flatmap(_changed_preset), share=0.1)
def _(case, folder):
    import yaml

    kind, values = case
    for each in PRESETS:
        (folder / each).mkdir()
    name = {"tasks": "toy", "models": "toy", "methods": "prefix", "studies": "toy"}[kind]
    (folder / kind / f"{name}.yaml").write_bytes(yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "replace"))
    listed = {"tasks": ["e2e"], "models": ["bart_large"], "methods": ["prefix"], "seeds": [1], kind: [name]}
    from config import Configuration

    study = Configuration(listed, "mine.yaml", [folder, REPOSITORY / "configs"])
    for path in study.downloads():
        if ".." in Path(path).parts or path.startswith(("/", "-")) or not path.isprintable():
            raise Unsafe(f"downloads to {path!r}")


def _changed_preset(kind: str) -> st.SearchStrategy:
    import yaml

    files = [yaml.safe_load((REPOSITORY / "configs" / kind / f"{name}.yaml").read_text()) for name in PRESETS[kind]]
    return st.tuples(st.just(kind), st.sampled_from(files).flatmap(changed))


@target(
    "flags", strategy=lambda: st.tuples(st.sampled_from(["train", "generate", "data"]), TEXT | _flag_names(), VALUES)
)
def _(case, folder):
    import shlex

    from flags import arguments, check_flag

    command, flag, value = case
    check_flag(command, flag, value, "mine.yaml")
    given = arguments({flag: value})
    if shlex.split(shlex.join(given)) != given:
        raise Unsafe(repr(given))


@cache
def _flag_names() -> st.SearchStrategy:
    from flags import known_flags

    return st.sampled_from(sorted({*known_flags()["train"], *known_flags()["generate"]}))


# Vocabularies and subwords --------------------------------------------------------------------------------------------


@cache
def byte_bpe() -> tuple[dict, bytes]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
    merges = ["Ġ t", "h e", "Ġt he"]
    tokens = {
        symbol: number for number, symbol in enumerate([*alphabet, *(merge.replace(" ", "") for merge in merges)])
    }
    return tokens, "\n".join(["#version: 0.2", *merges, ""]).encode()


def bpe_folder(folder: Path, tokens: bytes, merges: bytes) -> None:
    """encoder.json and vocab.bpe, read and used."""
    from fairseq_prefix.files.vocabulary import VocabularyError, read_vocabulary

    written(folder, "encoder.json", tokens), written(folder, "vocab.bpe", merges)
    with contextlib.suppress(VocabularyError):
        vocabulary = read_vocabulary(folder, [], True)
        vocabulary.decode(vocabulary.encode("the cat é\u3000x"))


@target("encoder_json", samples=lambda: [json.dumps(byte_bpe()[0]).encode()], share=0.2)
def _(case, folder):
    bpe_folder(folder, case, byte_bpe()[1])


@target("vocab_bpe", samples=lambda: [byte_bpe()[1]], share=0.5)
def _(case, folder):
    bpe_folder(folder, json.dumps(byte_bpe()[0]).encode(), case)


@cache
def vocabulary_of(tag: str):
    """A byte BPE, or a sentencepiece model."""
    import atexit

    from fairseq_prefix.files.vocabulary import read_vocabulary

    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    folder = Path(place.name)
    if tag == "bpe":
        tokens, merges = byte_bpe()
        written(folder, "encoder.json", json.dumps(tokens).encode()), written(folder, "vocab.bpe", merges)
    else:
        written(folder, "spm.model", spm_bytes())
    return read_vocabulary(folder, [], False)


def round_trip(tag: str, text: str) -> None:
    """A text that can be encoded comes back as it is cleaned."""
    from fairseq_prefix.files.vocabulary import VocabularyError, single_line

    vocabulary = vocabulary_of(tag)
    with contextlib.suppress(VocabularyError):
        pieces = vocabulary.encode(text)
        expected = single_line(text) if tag == "bpe" else " ".join(text.split())
        if "<unk>" not in pieces and vocabulary.decode(pieces) != expected:
            raise Unsafe(f"{text!r} -> {vocabulary.decode(pieces)!r}")


@target("bpe_round_trip", strategy=lambda: st.text(max_size=40))
def _(case, folder):
    round_trip("bpe", case)


@target(
    "spm_round_trip", strategy=lambda: st.text(st.sampled_from("the cat sat on mat under jug é12+<>/,"), max_size=40)
)
def _(case, folder):
    round_trip("spm", case)


@cache
def spm_bytes() -> bytes:
    from conftest import learn_small_spm

    buffer, text = io.BytesIO(), ["the cat sat on the mat", "a café, 12 + 3 < 4 and/or 5 > 4", "under the milk jug"]
    learn_small_spm(text, buffer)
    return buffer.getvalue()


PIECES = st.lists(
    TEXT.map(str.strip) | st.sampled_from(["<unk>", "<s>", "12", "٣", "²", "9" * 5000, "▁the"]), max_size=6
)


@target("decode", strategy=lambda: PIECES)
def _(case, folder):
    from fairseq_prefix.files.vocabulary import VocabularyError

    for tag in ("bpe", "spm"):
        with contextlib.suppress(VocabularyError):
            vocabulary_of(tag).decode([piece for piece in case if piece and len(piece.split()) == 1])


@target("sentencepiece", samples=lambda: [spm_bytes()], share=0.5)
def _(case, folder):
    from fairseq_prefix.files.vocabulary import SentencePiece, VocabularyError

    with contextlib.suppress(VocabularyError):
        vocabulary = SentencePiece(written(folder, "spm.model", case))
        vocabulary.decode(vocabulary.encode("the cat"))


@target("dictionary", samples=lambda: [b"the 10\ncat 5\n<mask> 1 #fairseq:overwrite\n"])
def _(case, folder):
    from binarise import known_words

    from fairseq_prefix.files.dictionary import read_dictionary

    path = written(folder, "dict.txt", case)
    with contextlib.suppress(UserError):
        known_words(path)
    read_dictionary(path)


@target("subword_text", samples=lambda: [b"the cat\nsat <unk>\n"])
def _(case, folder):
    from binarise import check_text

    check_text(written(folder, "t.source", case), {"the", "cat", "sat", "<unk>"})


@target("index", samples=lambda: [b"MMIDIDX\0\0" + bytes([1, 0, 0, 0, 0, 0, 0, 0, 4, 2]) + bytes(7) + bytes(40)])
def _(case, folder):
    from binarise import read_index

    read_index(written(folder, "t.idx", case))


# Documents and noise --------------------------------------------------------------------------------------------------


@target("documents", strategy=lambda: changed({"segments": ["a b", "c"], "focus": [1]}))
def _(case, folder):
    from documents import read_documents

    list(read_documents(written(folder, "d.jsonl", json.dumps(case).encode() + b"\n")))


TOKENS = st.lists(st.sampled_from("▁a b ▁c".split()), min_size=1)


@target("noise", strategy=lambda: st.tuples(st.lists(TOKENS, min_size=1, max_size=5), st.integers(0, 2**32)))
def _(case, folder):
    from noise import MASK, Noise, corrupt, pack

    segments, seed = case
    tokens = [token for segment in segments for token in segment]
    packed = [token for parts, _ in pack(segments, [0], 6) for part in parts for token in part]
    if packed != tokens:
        raise Unsafe(f"{packed} of {tokens}")
    source = corrupt(random.Random(seed), segments, [0], Noise())
    if len(source) > len(tokens) or MASK not in source and source:
        raise Unsafe(repr(source))


@target("paragraphs", samples=lambda: [ARTICLE * 2, b'CHAPTER I\n\nIt was. He said: "No!"\n\n\nThe end.\n'])
def _(case, folder):
    from make_documents import documents

    for document in documents([written(folder, "t.txt", case)], 20):
        if not all(segment.strip() for segment in document):
            raise Unsafe(repr(document))


# Outputs and scores ---------------------------------------------------------------------------------------------------

GENERATED = b"S-0\tthe cat\nT-0\ta\nH-0\t-0.5\tthe cat\nD-0\t-0.5\tthe cat\nP-0\t-0.1 -0.2\nH-1\t-1e-3\t<unk> a\n"
LOG = b"""2026-01-01 00:00:00 | INFO | train_inner | {"epoch": 1, "loss": "3.2", "num_updates": "4", "gb_free": "3.1"}
2026-01-01 00:00:00 | INFO | valid | {"epoch": 1, "valid_loss": "3.2", "valid_num_updates": "4"}
2026-01-01 | INFO | fairseq.utils | rank   0: capabilities =  8.0  ; total memory = 39.6 GB ; name = X
"""


@target("generated", samples=lambda: [GENERATED])
def _(case, folder):
    from hypotheses import read_generated

    read_generated(written(folder, "generate.txt", case))


@target("log_lines", samples=lambda: [LOG])
def _(case, folder):
    from curve import Metrics
    from state import State
    from train import Progress

    metrics, state = Metrics(folder), State(folder / "train.log")
    with contextlib.closing(Progress("training", ["--max-update", "10"], False, state, metrics)) as bar:
        for line in case.decode("utf-8", "replace").splitlines(keepends=True):
            bar.follow(line)
    metrics.write(folder / "curve.tsv")


@target(
    "metrics_file", samples=lambda: [b'\n{"update": 4, "loss": "3.2"}\n{"resumed_from": 3}\n{"update": 5, "lr": "0.1"}']
)
def _(case, folder):
    from curve import Metrics

    written(folder, "metrics.jsonl", case)
    Metrics(folder).resumptions()
    Metrics(folder).write(folder / "curve.tsv")


STATE = b"""{"host": "a", "pid": 1, "slurm_job": null, "begin": 1.5, "n": 3, "initial": 1, "total": 10,
"unit": "update", "elapsed": 2.5, "scores": {"loss": "2.1"}, "updated": 3.0, "end": 4.0, "error": "it failed"}"""


@target("state_file", samples=lambda: [STATE])
def _(case, folder):
    from state import describe, read_state

    written(folder, "train.state.json", case)
    describe(read_state(folder / "train.log"))


JOB = b"""{"id": %d, "rule": "train", "what": "Training", "wildcards": {"task": "t"}, "logs": ["l"], "outputs": ["o"],
 "needs": %s, "cores": 1, "gpus": 0, "needed": true}"""
JOURNAL = b"""{"event": "plan", "time": 1.0, "host": "a", "pid": 1, "command": ["snakemake"], "cores": 2, "gpus": 1,
 "history": [["train", {"task": "t"}, 3.5]], "jobs": [%s, %s]}
{"event": "start", "time": 2.0, "id": 1}
{"event": "failed", "time": 3.0, "id": 1, "reason": "r"}
{"event": "end", "time": 4.0}
"""


@target("journal", samples=lambda: [(JOURNAL % (JOB % (1, b"[]"), JOB % (2, b"[1]"))).replace(b",\n ", b", ")])
def _(case, folder):
    from unittest.mock import patch

    import journal
    import status

    with patch.object(journal, "JOURNAL", written(folder, "workflow.jsonl", case)):
        status.told(None)


@target(
    "references", samples=lambda: [b'{"id": "1", "references": ["a b", "c"], "group": "x"}\n{"references": ["d"]}\n']
)
def _(case, folder):
    from score import read_hypotheses, read_references, split_segments

    options = argparse.Namespace(references=None, examples=written(folder, "t.jsonl", case), task=None)
    references, groups = read_references(options, {})
    read_hypotheses(written(folder, "h.txt", b"a b\n\n"), references, options)
    split_segments(groups, {"groups": True})


WORDS = st.lists(st.sampled_from("a b c d . ,".split()), max_size=12)


@target("ter", strategy=lambda: st.tuples(WORDS, WORDS))
def _(case, folder):
    from ter import sacrebleu_edits, tercom_edits

    hypothesis, reference = case
    most = max(len(hypothesis), len(reference))
    counts = sacrebleu_edits(hypothesis, reference), tercom_edits(hypothesis, reference).count
    if not all(0 <= count <= most for count in counts):
        raise Unsafe("more edits than words")


REFERENCES = st.lists(st.text(min_size=1, max_size=15), min_size=1, max_size=2)
SEGMENTS = st.lists(st.tuples(st.text(max_size=15), REFERENCES), min_size=1, max_size=3)


@target(
    "metrics",
    strategy=lambda: st.tuples(st.sampled_from(["bleu", "chrf", "rouge", "ter", "nist"]), SEGMENTS),
    share=0.1,
)
def _(case, folder):
    from metrics import Segments, statistics

    metric, rows = case
    pairs = Segments([hypothesis for hypothesis, _ in rows], [references for _, references in rows], 1, "1G")
    scores = statistics(metric, pairs, {}).scores()
    if not all(math.isfinite(score) for score in scores):
        raise Unsafe(f"{scores}")


SCORED = {"metrics": {"bleu": {"scores": {"bleu": 1.0}, "intervals": {"bleu": [0, 1]}, "signature": "s"}}}
RECORD = {"trained_parameters": 7, "stored_parameters": 7, "base_parameters": 10, "seconds": 6.0, "peak_mb": 5}
RECORD |= {"arch": "prefix_bart_tiny", "seed": 1, "flags": ["--lr", "1"], "versions": {"torch": "2"}, "data_sha256": {}}


def run_folder(folder: Path, scored: object, record: object) -> Path:
    run = folder / "runs" / "toy" / "bart" / "prefix" / "1"
    run.mkdir(parents=True)
    for name, value in (("bleu.json", scored), ("run.json", record)):
        written(run, name, json.dumps(value).encode())
    written(run, "hypotheses.txt", b"a \x1b]0;x\x07\n")
    return run


@target(
    "records",
    strategy=lambda: st.tuples(changed(SCORED), st.just(RECORD)) | st.tuples(st.just(SCORED), changed(RECORD)),
)
def _(case, folder):
    import table

    run = run_folder(folder, *case)
    examples = written(folder, "t.jsonl", b'{"id": "1", "source": "s", "references": ["r"], "group": null}\n')
    options = ["--task", "toy", "--metric", "bleu", "--run", str(run), "--examples", str(examples)]
    table.main([*options, "--output", str(folder / "t.txt")])
    if "\x1b" in (folder / "t.txt").read_text():
        raise Unsafe("an escape sequence in a table")


HEADERS = st.dictionaries(
    st.sampled_from(["Content-Range", "Content-Length"]), TEXT | st.sampled_from(["bytes 0-4/5", "bytes 2-4/*", "-1"])
)


@target("range_header", strategy=lambda: st.tuples(st.sampled_from([200, 206]), HEADERS))
def _(case, folder):
    from fetch import Interrupted, content_range

    status, headers = case
    with contextlib.suppress(Interrupted):
        content_range(argparse.Namespace(status=status, headers=headers))


@target("addresses", strategy=lambda: TEXT | TEXT.map("https://{}".format) | TEXT.map("file://{}".format), share=0.5)
def _(case, folder):
    from fetch import fetch

    def refuse(*_, **__):
        raise OSError("no network here")

    with mock.patch("urllib.request.OpenerDirector.open", refuse):
        fetch(folder / "out", [case], None, [], "set/out")


# The plugin's files ---------------------------------------------------------------------------------------------------


@cache
def plugin_files() -> dict[str, bytes]:
    """A base, and a checkpoint and an export of a prefix over it, in every format."""
    import tiny
    import torch

    from fairseq_prefix.__main__ import main as plugin
    from fairseq_prefix.files.checkpoint import configuration, write_checkpoint

    found = {}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        base = tiny.save_base(folder / "base", arch="full_gpt2_tiny", **SMALL)
        args = tiny.make_args("prefix_gpt2_tiny", base_model=str(base), prefix_length=2, prefix_mid_dim=3, **SMALL)
        cfg = configuration(vars(args), {"max_source_tokens": 50}, str(base))
        write_checkpoint(str(folder / "c.pt"), cfg, tiny.make_lm_task().build_model(args).state_dict())
        plugin(["export", str(folder / "c.pt"), str(folder / "p.safetensors")])
        state = torch.load(folder / "c.pt", weights_only=True)
        torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
        whole = torch.load(base / "model.pt", weights_only=True)
        whole["cfg"] = {"model": {**SMALL, "activation_fn": "gelu_accurate", "no_scale_embedding": True}}
        torch.save(whole, base / "model.pt")
        torch.save(whole, folder / "old.pt", _use_new_zipfile_serialization=False)
        paths = {"checkpoint": "c.pt", "legacy": "legacy.pt", "export": "p.safetensors", "base": "base/model.pt"}
        for key, path in {**paths, "old_base": "old.pt", "dictionary": "base/dict.txt"}.items():
            found[key] = (folder / path).read_bytes()
    return found


SMALL = {"decoder_layers": 1, "decoder_embed_dim": 8, "decoder_ffn_embed_dim": 8, "decoder_attention_heads": 2}
SMALL |= {"max_target_positions": 64, "decoder_output_dim": 8, "decoder_input_dim": 8}


def plugin_reads(path: Path, folder: Path) -> None:
    """Describe, export and import a file; what comes out can be read again and is the same."""
    import torch

    from fairseq_prefix.__main__ import main as plugin
    from fairseq_prefix.files.checkpoint import read_tuned

    plugin(["inspect", str(path), "--json"])
    plugin(["inspect", str(path)])
    before = read_tuned(str(path))
    plugin(["export", str(path), str(folder / "again.safetensors")])
    after = read_tuned(str(folder / "again.safetensors"))
    same = before.folded.keys() == after.folded.keys()
    if not (
        same
        and all(
            torch.equal(before.folded[site].nan_to_num(), after.folded[site].nan_to_num()) for site in before.folded
        )
    ):
        raise Unsafe("the export differs from the checkpoint")


@target("checkpoint", samples=lambda: [plugin_files()["checkpoint"], plugin_files()["legacy"]], share=0.5)
def _(case, folder):
    plugin_reads(written(folder, "c.pt", case), folder)


@target("export", samples=lambda: [plugin_files()["export"]])
def _(case, folder):
    plugin_reads(written(folder, "p.safetensors", case), folder)


@target("export_header", strategy=lambda: changed(_header()[0]))
def _(case, folder):
    """The header that safetensors itself reads, and the tensors after it."""
    header = json.dumps(case).encode()
    data = len(header).to_bytes(8, "little") + header + _header()[1]
    plugin_reads(written(folder, "p.safetensors", data), folder)


@cache
def _header() -> tuple[dict, bytes]:
    data = plugin_files()["export"]
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


@target(
    "export_metadata", strategy=lambda: changed(json.loads(_header()[0]["__metadata__"]["fairseq_prefix"])), share=0.1
)
def _(case, folder):
    from safetensors.torch import load, save_file

    from fairseq_prefix.__main__ import main as plugin

    save_file(load(plugin_files()["export"]), folder / "p.safetensors", {"fairseq_prefix": json.dumps(case)})
    plugin_reads(folder / "p.safetensors", folder)
    plugin(["import", str(folder / "p.safetensors"), str(folder / "i.pt"), "--base-model", "base"])
    fairseq_reads(folder / "i.pt")


def fairseq_reads(path: Path) -> None:
    """By fairseq's own function, as for a search; what it would build a model of, it may evaluate."""
    from fairseq import checkpoint_utils
    from omegaconf import OmegaConf

    from fairseq_prefix.files.loading import check_contents

    state = checkpoint_utils.load_checkpoint_to_cpu(str(path), {"base_model": "elsewhere"})
    options = state.get("cfg")
    check_contents(OmegaConf.to_container(options, resolve=True) if OmegaConf.is_config(options) else state)


CODE = st.sampled_from(
    ["exit()", "'+str(exit())+'", "'${model.arch}'", "${model.arch}", "${oc.env:HOME}", "${${model.arch}:HOME}", "'a'"]
    + [b"# coding: utf-7\n(1,#+AAo-exit()#\n)", b"1"]
)


@target("checkpoint_contents", strategy=lambda: changed(_contents("checkpoint"), VALUES | CODE | _tensors()), share=0.5)
def _(case, folder):
    import torch

    torch.save(case, folder / "c.pt")
    fairseq_reads(folder / "c.pt")
    plugin_reads(folder / "c.pt", folder)


@target("base_contents", strategy=lambda: changed(_contents("base"), VALUES | _tensors()), share=0.5)
def _(case, folder):
    import torch

    torch.save(case, folder / "model.pt")
    base_is_read(folder)


@cache
def _contents(name: str) -> dict:
    import torch

    return torch.load(io.BytesIO(plugin_files()[name]), weights_only=True)


def _tensors() -> st.SearchStrategy:
    import torch

    shapes = st.lists(st.integers(0, 6), max_size=3)
    kinds = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.uint8, torch.complex64])
    return st.builds(lambda shape, kind: torch.zeros(shape, dtype=kind), shapes, kinds) | st.just(
        torch.zeros(1).expand(10**9)
    )


def base_is_read(folder: Path) -> None:
    """A base as training and as the API read it, which may refuse what the other accepts."""
    import tiny

    from fairseq_prefix import api

    if not (folder / "dict.txt").exists():
        written(folder, "dict.txt", plugin_files()["dictionary"])
    with contextlib.suppress(UsageError):
        tiny.build("prefix_gpt2_tiny", base_model=str(folder), prefix_length=1, **SMALL)
    with mock.patch.object(api, "read_vocabulary"):
        api.load(folder)


@target("base", samples=lambda: [plugin_files()["base"], plugin_files()["old_base"]], share=0.3)
def _(case, folder):
    written(folder, "model.pt", case)
    base_is_read(folder)


HUGGING_FACE = {"model_type": "gpt2", "n_head": 2, "eos_token_id": 3, "activation_function": "gelu_new"}


@target(
    "hugging_face",
    strategy=lambda: st.tuples(changed(HUGGING_FACE), changed(_gpt2_weights(), _tensors()), st.booleans()),
)
def _(case, folder):
    import torch
    from safetensors.torch import save_file

    config, weights, pickled = case
    written(folder, "config.json", json.dumps(config).encode())
    written(folder, "dict.txt", b"".join(b"%d 1\n" % number for number in range(9)))
    weights = {str(name).encode("utf-8", "replace").decode(): tensor for name, tensor in weights.items()}
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        small = {name: tensor[:5] if tensor.numel() > 99 else tensor for name, tensor in weights.items()}
        save_file({name: tensor.clone() for name, tensor in small.items()}, folder / "model.safetensors")
    base_is_read(folder)


@cache
def _gpt2_weights() -> dict:
    import torch

    shapes = {"wte.weight": (9, 4), "wpe.weight": (8, 4), "ln_f.weight": (4,), "h.0.attn.c_attn.weight": (4, 12)}
    shapes |= {"h.0.attn.c_attn.bias": (12,), "h.0.mlp.c_fc.weight": (4, 8), "lm_head.weight": (9, 4)}
    shapes |= {"h.0.mlp.c_fc.bias": (8,), "h.0.mlp.c_proj.weight": (8, 4), "h.0.attn.c_proj.weight": (4, 4)}
    shapes |= {f"h.0.{name}.{kind}": (4,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    shapes |= dict.fromkeys(("ln_f.bias", "h.0.mlp.c_proj.bias", "h.0.attn.c_proj.bias"), (4,))
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


if __name__ == "__main__":
    sys.exit(main())
