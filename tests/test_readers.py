"""Readers beside E2E, XSUM and plain JSON lines (test_prepare.py): triples, topics, shared and foreign files."""

import json
import re
import subprocess
import sys
import unicodedata

import pytest
from common import UserError
from conftest import SCRIPTS, archive
from fetch import pack
from readers import LeftOut, linearise_e2e, read_webnlg
from test_prepare import article, assert_nothing_written, rows, run


def report(output_dir):
    return json.loads((output_dir / "data.json").read_text())


# WebNLG ---------------------------------------------------------------------------------------------------------------


def entry(eid, triples, texts, category="Ship"):
    lines = [f'<entry category="{category}" eid="{eid}" size="{len(triples)}">', "<originaltripleset>"]
    lines += ["<otriple>not | used | here</otriple>", "</originaltripleset>", "<modifiedtripleset>"]
    lines += [f"<mtriple>{triple}</mtriple>" for triple in triples]
    lines += ["</modifiedtripleset>", *(f'<lex comment="{comment}" lid="Id1">{text}</lex>' for comment, text in texts)]
    return "\n".join([*lines, "</entry>"])


def benchmark(*entries, begin='<?xml version="1.0" encoding="UTF-8"?>\n'):
    return (begin + "<benchmark><entries>\n" + "\n".join(entries) + "\n</entries></benchmark>\n").encode()


AYR = entry("Id1", ["Ayr_(ship) | homePort | Oban", "Ayr_(ship) | Length | 30"], [("good", "One."), ("toFix", "Two.")])
ELGIN = entry("Id2", ["Elgin | owner | &quot;Wick, Caithness&quot;"], [("toFix", "Bad.")])
LEITH = entry("Id1", ["Leith | owner | Wick"], [("good", "Three."), ("good", "Four.")], "Port")
MEMBERS = [("t/10triples/ten.xml", benchmark(LEITH)), ("t/2triples/two.xml", benchmark(AYR, ELGIN))]
TEST = benchmark(entry("Id1", ["a | b | c"], [(None, "x"), ("good", "y"), ("toFix", "x"), ("good", "z")], "Unseen"))


@pytest.fixture
def webnlg(tmp_path):
    """A function that writes a training archive, and a validation and a test file, and returns the inputs."""

    def write(valid=None, members=MEMBERS):
        (tmp_path / "valid.xml").write_bytes(benchmark(AYR) if valid is None else valid)
        (tmp_path / "test.xml").write_bytes(TEST)
        members = [("t/README", b"no XML"), *members]
        inputs = {split: tmp_path / f"{split}.xml" for split in ("valid", "test")}
        return inputs | {"train": archive(tmp_path / "train.tar.gz", members)}

    return write


def test_webnlg_training_has_the_good_texts_in_the_natural_order_of_the_files(webnlg, tmp_path):
    run("webnlg", webnlg(), tmp_path / "out")
    assert rows(tmp_path / "out" / "train.jsonl") == [
        {
            "id": "two/Id1",
            "source": "| Ayr_(ship) : homePort : Oban | Ayr_(ship) : Length : 30",
            "references": ["One."],
            "group": "Ship",
        },
        {"id": "ten/Id1", "source": "| Leith : owner : Wick", "references": ["Three.", "Four."], "group": "Port"},
    ]
    assert [row["references"] for row in rows(tmp_path / "out" / "valid.jsonl")] == [["One."]]


def test_webnlg_test_set_has_the_first_three_texts_whatever_they_are(webnlg, tmp_path):
    run("webnlg", webnlg(), tmp_path / "out")
    expected = {"id": "Id1", "source": "| a : b : c", "references": ["x", "y", "x"], "group": "Unseen"}
    assert rows(tmp_path / "out" / "test.jsonl") == [expected]
    run("webnlg", webnlg(), tmp_path / "all", {"references": None})
    assert rows(tmp_path / "all" / "test.jsonl") == [expected | {"references": ["x", "y", "x", "z"]}]


def test_what_webnlg_leaves_out_is_counted(webnlg, tmp_path):
    run("webnlg", webnlg(), tmp_path / "out")
    assert report(tmp_path / "out")["left_out"] == {
        "train": {"text not marked good": 2, "entry without a text marked good": 1},
        "valid": {"text not marked good": 1},
        "test": {"text beyond the first 3": 1},
    }
    items = list(read_webnlg(webnlg(), {})["valid"])
    assert LeftOut(f"{tmp_path}/valid.xml, line 3", "text not marked good") in items


def test_the_order_of_the_archive_does_not_matter(webnlg, tmp_path):
    for name, order in (("one", MEMBERS), ("two", MEMBERS[::-1])):
        run("webnlg", webnlg(members=order), tmp_path / name)
    assert (tmp_path / "one" / "train.jsonl").read_bytes() == (tmp_path / "two" / "train.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("reader", "style", "source"),
    [
        ("webnlg", "original", "| A_b : cD : e | A_b : F : g h"),
        ("webnlg", "bars", "A_b : cD : e | A_b : F : g h"),
        ("webnlg", "tags", "<H> A_b <R> cD <T> e <H> A_b <R> F <T> g h"),
        ("dart", "original", "A_b : cd : e | A_b : f : g h"),
        ("dart", "bars", "A_b : cd : e | A_b : f : g h"),
        ("dart", "tags", "<H> A_b <R> cD <T> e <H> A_b <R> F <T> g h"),
    ],
)
def test_linearisations(tmp_path, reader, style, source):
    path = tmp_path / "x.xml"
    path.write_bytes(benchmark(entry("Id1", ["A_b | cD | e", "A_b | F | g h"], [("good", "text")])))
    run(reader, {"test": path}, tmp_path / "out", {"linearisation": style})
    assert [row["source"] for row in rows(tmp_path / "out" / "test.jsonl")] == [source]


BOMB = '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n'
OUTSIDE = '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n'


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (benchmark(AYR, begin=BOMB), "line 2: declares a DOCTYPE or entities"),
        (benchmark(AYR.replace("One.", "&a;"), begin=OUTSIDE), "line 2: declares a DOCTYPE or entities"),
        (benchmark(AYR, begin="<!DOCTYPE benchmark>\n"), "line 1: declares a DOCTYPE or entities"),
        (benchmark(AYR.replace("One.", "&undeclared;")), "line 11: malformed XML .undefined entity"),
        (benchmark(AYR)[:-40], r"line \d+: malformed XML"),
        (b"", "line 1: malformed XML .no element found"),
        (benchmark(AYR.replace("One.", "caf@")).replace(b"@", b"\xe9"), r"line 11: malformed XML .not well-formed"),
        (benchmark(AYR.replace("One.", "a@b")).replace(b"@", b"\0"), "line 11: malformed XML"),
        (benchmark(AYR, begin='<?xml version="1.0" encoding="klingon"?>'), "line 1: .*encoding"),
        (benchmark(AYR, entry("Id2", ["a | b | c"], [])), "line 14: the entry Id2 has no text"),
        (benchmark(entry("Id1", [], [("good", "x")])), "line 3: the entry Id1 has no <mtriple>"),
        (
            benchmark(entry("Id1", ["a | b"], [("good", "x")])),
            r"line 8: not a triple of the form S . R . O: 'a . b'",
        ),
        (benchmark(entry("Id1", ["a | b | "], [("good", "x")])), "line 8: not a triple"),
        (benchmark(AYR.replace(' eid="Id1"', "")), "line 3: an entry without eid"),
        (benchmark(AYR.replace("One.", "<text>One.</text>")), "line 11: <text> inside a text"),
        (b"<benchmark><lex>x</lex></benchmark>", "line 1: <lex> outside an entry"),
        (benchmark(AYR, LEITH), "line 14: the id 'Id1' was already used .*line 3"),
        (benchmark(AYR.replace("One.", " ")), "line 3: the reference is empty"),
        (benchmark(ELGIN), "the valid split has no examples"),
    ],
)
def test_bad_xml_is_named_with_its_line_and_leaves_nothing(webnlg, tmp_path, xml, message):
    with pytest.raises(UserError, match=message) as caught:
        run("webnlg", webnlg(valid=xml), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert_nothing_written(tmp_path / "out")


def test_byte_order_mark_line_ends_and_encodings_of_xml_do_not_matter(webnlg, tmp_path):
    text = benchmark(AYR.replace("One.", "Caf\u00e9\tby\r\n the\nsea.").replace("Oban", " Ob\u00e1n\n")).decode()
    forms = {"utf-8": text.encode("utf-8-sig"), "crlf": text.replace("\n", "\r\n").replace("\r\r", "\r").encode()}
    forms["latin"] = text.replace("UTF-8", "ISO-8859-1").encode("latin-1")
    forms["utf-16"] = text.replace("UTF-8", "UTF-16").encode("utf-16")
    for name, data in forms.items():
        run("webnlg", webnlg(valid=data), tmp_path / name)
        (row,) = rows(tmp_path / name / "valid.jsonl")
        assert row["references"] == ["Caf\u00e9 by  the sea."], name
        assert row["source"] == "| Ayr_(ship) : homePort : Ob\u00e1n | Ayr_(ship) : Length : 30"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((("t/notes.txt", b"x"),), "train.tar.gz: no XML file in it"),
        ((("t/a.xml", benchmark(LEITH)), ("t/a.xml", benchmark(AYR))), "the member t/a.xml stands twice"),
        (
            (("t/a.xml", benchmark(LEITH)), ("u/a.xml", benchmark(AYR))),
            "u/a.xml, line 3: the id 'a/Id1' was already used",
        ),
        ((("t/a.xml", b"<x>\n"),), "train.tar.gz, t/a.xml, line 2: malformed XML"),
    ],
)
def test_bad_archives_of_xml(webnlg, tmp_path, members, message):
    with pytest.raises(UserError, match=message):
        run("webnlg", webnlg(members=members), tmp_path / "out")


def test_a_file_that_is_neither_xml_nor_an_archive(webnlg, tmp_path):
    (tmp_path / "train.tar").write_text("plain text")
    with pytest.raises(UserError, match="neither a file named .xml nor a tar archive"):
        run("webnlg", webnlg() | {"train": tmp_path / "train.tar"}, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linearisation": ["bars"]}, r"unknown linearisation \['bars'\]"),
        ({"linearisation": "Bars"}, "unknown linearisation 'Bars'; there are: original, bars, tags"),
        ({"references": 0}, "the option references is 0, not a number above 0 or null"),
        ({"references": True}, "the option references is True"),
        ({"good": True}, "unknown option 'good'"),
    ],
)
def test_bad_options_of_triples(webnlg, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run("webnlg", webnlg(), tmp_path / "out", options)


# DART -----------------------------------------------------------------------------------------------------------------

SETS = [
    ([["Ayr", "HOME_PORT", "Oban"], ["Ayr", "[TITLE]", "Ships"]], [("e2e", "One."), ("e2e", "Two."), ("e2e", "")]),
    (
        [["Ayr", "HOME_PORT", "Oban"], ["Ayr", "[TITLE]", "Ships"]],
        [("webnlg", "a"), ("e2e", "a"), ("e2e", "c"), ("e2e", "d")],
    ),
]


@pytest.fixture
def dart(tmp_path):
    """(JSON file, XML file) of the same entries."""
    value = [
        {
            "tripleset": triples,
            "subtree_was_extended": False,
            "annotations": [{"source": s, "text": t} for s, t in texts],
        }
        for triples, texts in SETS
    ]
    (tmp_path / "dart.json").write_text(json.dumps(value, indent=2))
    entries = [
        entry(f"Id{number}", [" | ".join(triple) for triple in triples], texts, "MISC")
        for number, (triples, texts) in enumerate(SETS, 5)
    ]
    (tmp_path / "dart.xml").write_bytes(benchmark(*entries))
    return tmp_path / "dart.json", tmp_path / "dart.xml"


def test_dart_entries_from_json_and_xml(dart, tmp_path):
    expected = [
        {"source": "Ayr : home_port : Oban | Ayr : [title] : Ships", "references": ["One.", "Two."], "group": "e2e"},
        {"source": "Ayr : home_port : Oban | Ayr : [title] : Ships", "references": ["a", "a", "c"], "group": None},
    ]
    for name, path, ids in (("json", dart[0], ["test-1", "test-2"]), ("xml", dart[1], ["Id5", "Id6"])):
        run("dart", {"test": path}, tmp_path / name)
        assert rows(tmp_path / name / "test.jsonl") == [
            {"id": id_} | row for id_, row in zip(ids, expected, strict=True)
        ]
        assert report(tmp_path / name)["left_out"] == {"test": {"empty text": 1, "text beyond the first 3": 1}}


def test_dart_training_has_every_text(dart, tmp_path):
    run("dart", {"train": dart[0]}, tmp_path / "out")
    assert [row["references"] for row in rows(tmp_path / "out" / "train.jsonl")] == [["One.", "Two."], list("aacd")]


def test_an_entry_with_empty_texts_only_is_left_out(dart, tmp_path):
    value = json.loads(dart[0].read_text())
    value[0]["annotations"] = [{"source": "e2e", "text": " "}]
    dart[0].write_text(json.dumps(value))
    run("dart", {"train": dart[0]}, tmp_path / "out")
    assert report(tmp_path / "out")["left_out"] == {"train": {"empty text": 1, "entry without a text": 1}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tripleset": [["a", "b"]]}, "entry 2: expected tripleset"),
        ({"tripleset": []}, "entry 2: expected tripleset"),
        ({"tripleset": [["a", "b", 3]]}, "entry 2: expected tripleset"),
        ({"annotations": [{"source": "e2e", "text": None}]}, "entry 2: expected tripleset"),
        ({"annotations": [{"text": "x"}]}, "entry 2: expected tripleset"),
        ({"annotations": []}, "entry 2: the entry train-2 has no text"),
    ],
)
def test_bad_dart_json_is_named(dart, tmp_path, change, message):
    value = json.loads(dart[0].read_text())
    value[1] |= change
    dart[0].write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"dart.json, {message}"):
        run("dart", {"train": dart[0]}, tmp_path / "out")


def test_dart_json_that_is_cut_off(dart, tmp_path):
    dart[0].write_text(dart[0].read_text()[:-30])
    with pytest.raises(UserError, match="dart.json: not JSON .*line"):
        run("dart", {"train": dart[0]}, tmp_path / "out")


# Against the official evaluations -------------------------------------------------------------------------------------


def skeleton(text):
    """Letters and digits of a text, as they are left by official preprocessing: small, and without accents."""
    text = text.lower().translate(str.maketrans({"\u0131": "i", "\u00f8": "o", "\u00df": "ss"}))
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode())


def assert_official(path, files):
    """The references are those of the evaluation's files: same entries, same order; a missing one is an empty line."""
    official = [file.read_text(encoding="utf-8").split("\n")[:-1] for file in files]
    ours = [row["references"] for row in rows(path)]
    assert [len(lines) for lines in official] == [len(ours)] * 3
    for number, references in enumerate(ours):
        lines = [skeleton(lines[number]) for lines in official]
        assert [skeleton(text) for text in references] + [""] * (3 - len(references)) == lines, number


def test_references_of_webnlg_are_those_of_the_official_evaluation(shared_data, tmp_path):
    for part in ("train", "dev"):
        pack(shared_data(f"webnlg2017/{part}"), tmp_path / f"{part}.tar.gz")
    inputs = {"train": tmp_path / "train.tar.gz", "valid": tmp_path / "dev.tar.gz"}
    run("webnlg", inputs | {"test": shared_data("webnlg2017/test/testdata_with_lex.xml")}, tmp_path / "out")
    assert report(tmp_path / "out")["counts"] == {
        "train": {"examples": 6935, "references": 18025},
        "valid": {"examples": 871, "references": 2258},
        "test": {"examples": 1862, "references": 4894},
    }
    folder = "references/webnlg/references"
    assert_official(
        tmp_path / "out" / "test.jsonl", [shared_data(f"{folder}/gold-all-cat-reference{n}.lex") for n in range(3)]
    )
    seen = {row["group"] for row in rows(tmp_path / "out" / "train.jsonl")}
    test = rows(tmp_path / "out" / "test.jsonl")
    parts = {
        "old": [row for row in test if row["group"] in seen],
        "new": [row for row in test if row["group"] not in seen],
    }
    assert (len(parts["old"]), len(parts["new"])) == (971, 891)
    for name, part in parts.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        assert_official(path, [shared_data(f"{folder}/gold-{name}-cat-reference{n}.lex") for n in range(3)])


def test_references_of_dart_are_those_of_the_official_evaluation(shared_data, tmp_path):
    json_dev, xml_dev = (shared_data(f"dart/dart-v1.1.1-full-dev.{form}") for form in ("json", "xml"))
    test = shared_data("dart/dart-v1.1.1-full-test.xml")
    run("dart", {"train": xml_dev, "valid": json_dev, "test": test}, tmp_path / "out")
    assert report(tmp_path / "out")["counts"] == {
        "train": {"examples": 2768, "references": 6980},
        "valid": {"examples": 2768, "references": 6980},
        "test": {"examples": 5097, "references": 11245},
    }
    files = [shared_data(f"references/dart/all-delex-reference{number}.lex") for number in range(3)]
    assert_official(tmp_path / "out" / "test.jsonl", files)
    from_xml, from_json = (
        [row | {"id": None} for row in rows(tmp_path / "out" / f"{split}.jsonl")] for split in ("train", "valid")
    )
    assert from_xml == from_json


def test_cleaned_e2e_has_the_examples_that_its_preset_expects(shared_data, tmp_path):
    inputs = {
        "valid": shared_data("e2e_cleaned/devel-fixed.no-ol.csv"),
        "test": shared_data("e2e_cleaned/test-fixed.csv"),
    }
    for linearisation in ("original", "mr"):
        run("e2e", inputs, tmp_path / linearisation, {"linearisation": linearisation})
        report = json.loads((tmp_path / linearisation / "data.json").read_text())
        counts = {"valid": (1484, 4299), "test": (1847, 4693)}
        for split, (examples, references) in counts.items():
            assert report["counts"][split] == {"examples": examples, "references": references}


def test_order_of_e2e_is_that_of_published_outputs(shared_data, tmp_path):
    """547 lines of a system's output belong to the meaning representations in order of first appearance."""
    run("e2e", {"valid": shared_data("e2e/devset.csv")}, tmp_path / "out")
    lines = shared_data("references/e2e_dev/mlp_seed01_epoch16.txt").read_text().splitlines()
    sources = [row["source"] for row in rows(tmp_path / "out" / "valid.jsonl")]
    assert len(lines) == len(sources)
    named = sum(
        source.split(" | ")[0].removeprefix("name : ") in line for source, line in zip(sources, lines, strict=True)
    )
    assert named > 0.95 * len(sources)
    assert linearise_e2e("name[A]", "") == "name : A"


# XSUM by topic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
def test_rows_without_a_source_are_left_out_on_request_only(tmp_path, allowed):
    (tmp_path / "t.jsonl").write_text('{"source": " ", "target": "a"}\n{"source": "b", "target": "c"}\n')
    inputs = {"train": tmp_path / "t.jsonl"}
    if not allowed:
        with pytest.raises(UserError, match="line 1: the source is empty"):
            run("jsonl", inputs, tmp_path / "out", {})
        return
    run("jsonl", inputs, tmp_path / "out", {"leave_out_empty": True})
    assert [row["source"] for row in rows(tmp_path / "out" / "train.jsonl")] == ["b"]
    assert json.loads((tmp_path / "out" / "data.json").read_text())["left_out"] == {"train": {"empty source": 1}}


def test_xsum_topics_choose_the_articles_of_a_split(tmp_path):
    topics = ["news/uk", "news/world-asia", "news/health", "sport/golf", "sport/3", "news/3"]
    members = [(f"d/{n}.summary", article(n, topic=topic)) for n, topic in enumerate(topics * 3)]
    members[5] = ("d/5.summary", article(5).replace(b"http", b"nothing"))
    (tmp_path / "ids.json").write_text(
        json.dumps(
            {name: [str(n) for n in range(6 * k, 6 * k + 6)] for k, name in enumerate(("train", "validation", "test"))}
        )
    )
    inputs = {"archive": archive(tmp_path / "x.tar.gz", members), "splits": tmp_path / "ids.json"}
    topics = {"train": ["news/*", "-news/health"], "test": ["sport", "sport/*"]}
    run("xsum_raw", inputs, tmp_path / "out", {"topics": topics})
    ids = {
        split: [row["id"] for row in rows(tmp_path / "out" / f"{split}.jsonl")] for split in ("train", "valid", "test")
    }
    assert ids == {"train": ["0", "1"], "valid": [str(n) for n in range(6, 12)], "test": ["15", "16"]}
    assert report(tmp_path / "out")["left_out"] == {
        "train": {"topic not in this split": 3, "no topic in the article's address": 1},
        "test": {"topic not in this split": 4},
    }


@pytest.mark.parametrize("topics", [["news"], {"training": ["news"]}, {"train": "news"}, {"train": []}])
def test_bad_topics_are_refused(tmp_path, topics):
    (tmp_path / "ids.json").write_text("{}")
    inputs = {"archive": tmp_path / "ids.json", "splits": tmp_path / "ids.json"}
    with pytest.raises(UserError, match="the option topics must give lists of patterns for some of train, valid, test"):
        run("xsum_raw", inputs, tmp_path / "out", {"topics": topics})


# JSON lines and parquet -----------------------------------------------------------------------------------------------


def test_references_in_several_fields_of_which_some_are_absent(write_jsonl, tmp_path):
    inputs = {
        "train": write_jsonl("train.jsonl", [{"source": "a", "summary": "b"}]),
        "test": write_jsonl("test.jsonl", [{"source": "a", "summary1": "b", "summary2": ["c", "d"]}]),
    }
    run("jsonl", inputs, tmp_path / "out", {"target": ["summary", "summary1", "summary2"]})
    assert rows(tmp_path / "out" / "train.jsonl")[0]["references"] == ["b"]
    assert rows(tmp_path / "out" / "test.jsonl")[0]["references"] == ["b", "c", "d"]
    bad = write_jsonl("bad.jsonl", [{"source": "a", "summary3": "b"}])
    with pytest.raises(
        UserError, match="bad.jsonl, line 1: none of the fields summary, summary1; found source, summary3"
    ):
        run("jsonl", {"test": bad}, tmp_path / "bad", {"target": ["summary", "summary1"]})


def test_splits_that_share_a_file(write_jsonl, tmp_path):
    names = ["train", "validation", "test", "dev", "valid"]
    shared = write_jsonl("all.jsonl", [{"source": f"s{n}", "target": "t", "in": name} for n, name in enumerate(names)])
    run("jsonl", dict.fromkeys(("train", "valid", "test"), shared), tmp_path / "out", {"split": "in"})
    found = {
        split: [row["id"] for row in rows(tmp_path / "out" / f"{split}.jsonl")] for split in ("train", "valid", "test")
    }
    assert found == {"train": ["train-1"], "valid": ["valid-2", "valid-4", "valid-5"], "test": ["test-3"]}
    bad = write_jsonl("bad.jsonl", [{"source": "a", "target": "b", "in": "Test"}])
    with pytest.raises(
        UserError, match="line 1: the field 'in' is 'Test', which names no split; known are train, valid"
    ):
        run("jsonl", {"test": bad}, tmp_path / "bad", {"split": "in"})


@pytest.mark.parametrize("options", [{"target": []}, {"target": [1]}, {"target": None}, {"source": None}, {"id": 3}])
def test_options_that_are_no_names_of_fields(write_jsonl, tmp_path, options):
    with pytest.raises(UserError, match=f"the option {next(iter(options))} is .* name"):
        run("jsonl", {"test": write_jsonl("a.jsonl", [{"source": "a"}])}, tmp_path / "out", options)


@pytest.fixture
def parquet(tmp_path):
    """A function that writes columns as a parquet file of several row groups."""
    pyarrow = pytest.importorskip("pyarrow")
    module = pytest.importorskip("pyarrow.parquet")

    def write(name, **columns):
        module.write_table(pyarrow.table(columns), tmp_path / name, row_group_size=2)
        return tmp_path / name

    return write


def test_parquet_is_what_json_lines_are(parquet, write_jsonl, tmp_path):
    columns = {"document": [f"d{n}\nx" for n in range(5)], "summary": [f"s{n}" for n in range(5)], "id": [*range(5)]}
    lines = write_jsonl(
        "a.jsonl", [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    )
    options = {"source": "document", "target": "summary", "id": "id"}
    for name, reader, path in (
        ("one", "jsonl", lines),
        ("two", "parquet", parquet("a.parquet", other=[0] * 5, **columns)),
    ):
        run(reader, {"test": path}, tmp_path / name, options)
    assert (tmp_path / "one" / "test.jsonl").read_bytes() == (tmp_path / "two" / "test.jsonl").read_bytes()


def test_bad_parquet_is_named(parquet, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not parquet")
    with pytest.raises(UserError, match="bad.parquet: not a parquet file"):
        run("parquet", {"test": tmp_path / "bad.parquet"}, tmp_path / "out")
    path = parquet("a.parquet", source=["a", "b", None], target=["a", "b", "c"])
    with pytest.raises(UserError, match="a.parquet, row 3: no field 'source'"):
        run("parquet", {"test": path}, tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_without_pyarrow_parquet_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="needs pyarrow, which is not installed: pip install pyarrow"):
        run("parquet", {"test": tmp_path / "a.parquet"}, tmp_path / "out")


def test_the_readers_import_nothing_that_only_some_of_them_need():
    code = "import sys; import prepare; sys.exit('pyarrow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS).returncode == 0
