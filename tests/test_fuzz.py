"""A short run of tests/fuzz.py, and what its long runs have found, each as the smallest case that shows it."""

import json

import fuzz
import pytest

pytestmark = pytest.mark.usefixtures("hooks")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_few_cases_of_every_target(name):
    outcome = fuzz.run(name, cases=20, seed=3)
    assert outcome.cases >= 5 and not outcome.findings


SCORES = {"scores": {"bleu": 1.0}, "intervals": {"bleu": [0, 1]}, "signature": "s"}
OPTIONS_OF_A_TASK = {"_name": None, "max_source_tokens": None}


def export_metadata(**changes):
    parts = json.loads(fuzz._header()[0]["__metadata__"]["fairseq_prefix"])
    return {name: {**part, **changes.get(name, {})} for name, part in parts.items()}


FOUND = {
    "an error of Arrow's in two lines": ("parquet", lambda: fuzz.parquet_files()[0].replace(b"\x15\x04", b"\x0e\x04")),
    "a gzip file that ends in its head": ("tar_of_xml", lambda: fuzz.archives()[1][:12]),
    "a column's name that is not UTF-8": ("parquet", lambda: fuzz.parquet_files()[0].replace(b"source", b"sour\x9ee")),
    "a header of several lines": ("e2e", lambda: b'"m\nr",ref\na,b\n'),
    "a line of the log that is nested": ("log_lines", lambda: b'| INFO | train | {"loss": ' + b"[" * 9000 + b"}\n"),
    "bz2's own kind of error": ("tar", lambda: fuzz.archives()[2][:40] + b"\0" * 9 + fuzz.archives()[2][50:]),
    "an error of YAML's in two lines": ("yaml", lambda: b"reader: \x0c"),
    "a piece of more digits than Python reads": ("decode", lambda: ["9" * 5000]),
    "a hypothesis of such a number": ("generated", lambda: b"H-" + b"9" * 5000 + b"\t-1\ta\n"),
    "an index shorter than its head": ("index", lambda: b"MMIDIDX\0\0\1"),
    "an index that claims more than it has": ("index", lambda: b"MMIDIDX\0\0\1" + bytes(7) + b"\4" + b"\xff" * 8),
    "a line of the log that another fell into": ("log_lines", lambda: b'| INFO | train | {"loss": 1"}\n'),
    "a run without parameters": ("records", lambda: ({"metrics": {"bleu": SCORES}}, {})),
    "scores that are none": ("records", lambda: ({"metrics": {"bleu": None}}, fuzz.RECORD)),
    "an encoder.json that is nested": ("encoder_json", lambda: b'{"a": ' + b"[" * 9000),
    "an encoder.json of lists": ("encoder_json", lambda: b'{"a": []}'),
    "a signature of half a character": (
        "records",
        lambda: ({"metrics": {"bleu": {**SCORES, "signature": "\ud800"}}}, fuzz.RECORD),
    ),
    "a Content-Length that is no number": ("range_header", lambda: (200, {"Content-Length": ":"})),
    "a flag that steers the terminal": ("flags", lambda: ("train", "\x1b]0;x\x07", None)),
    "an address that is none": ("addresses", lambda: "https://["),
    "a limit that is no number": ("export_metadata", lambda: export_metadata(task=OPTIONS_OF_A_TASK)),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_fuzzing_found(root, what):
    name, case = FOUND[what]
    assert fuzz.attempt(fuzz.TARGETS[name], case(), root)[1] is None


def test_damage_changes_a_file_and_is_the_same_for_the_same_seed():
    made = [fuzz.damaged(fuzz.random.Random(number), [fuzz.E2E]) for number in range(100)]
    assert made == [fuzz.damaged(fuzz.random.Random(number), [fuzz.E2E]) for number in range(100)]
    assert len(set(made)) > 90 and made.count(fuzz.E2E) < 10


def broken(case, folder):
    """Every kind of finding, by the first byte of the case."""
    if case[:1] == b"a":
        raise KeyError("x")
    if case[:1] == b"b":
        error = fuzz.UserError("one")
        error.args = ("one\ntwo",)
        raise error
    if case[:1] == b"c":
        (folder.parent / "outside").mkdir()
    if case[:1] == b"d":
        raise SystemExit(2)
    if case[:1] == b"e":
        while True:
            pass


@pytest.mark.parametrize(
    ("case", "finding"),
    [
        (b"a", "KeyError: 'x' (test_fuzz.py:"),
        (b"b", "UserError: of several lines: 'one"),
        (b"c", "a file outside the folder: ['case', 'outside']"),
        (b"d", "SystemExit: 2"),
        (b"e", "Hang: not done after 0.1 seconds"),
    ],
)
def test_the_fuzzer_sees_what_should_not_happen(root, monkeypatch, case, finding):
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    with fuzz._limits():
        refused, happened = fuzz.attempt(fuzz.Target("broken", broken), case, root)
    assert happened.startswith(finding) and refused == (case == b"b")


def test_the_program_prints_a_table_and_the_bytes_that_reproduce_a_finding(monkeypatch, capsys):
    monkeypatch.setitem(fuzz.TARGETS, "broken", fuzz.Target("broken", broken, samples=lambda: [b"a"]))
    assert fuzz.report([fuzz.run("broken", 30, 1), fuzz.run("e2e", 20, 1)]) == 1
    printed = capsys.readouterr().out
    assert "broken" in printed and "KeyError" in printed and "b'a" in printed
    assert fuzz.report([fuzz.run("e2e", 20, 1)]) == 0
