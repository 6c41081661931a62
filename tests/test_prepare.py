"""Readers and prepare: the official forms become rows, and whatever is wrong with them is named, not dropped."""

import gzip
import hashlib
import json

import pytest
from common import UserError
from conftest import archive
from prepare import main, prepare
from readers import linearise_e2e, xsum_topic


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def run(reader, inputs, output_dir, options=None):
    argv = ["--reader", reader, "--output-dir", str(output_dir)]
    for key, path in inputs.items():
        argv += ["--input", f"{key}={path}"]
    main(argv + (["--options", json.dumps(options)] if options is not None else []))


def assert_nothing_written(output_dir):
    assert not output_dir.exists() or not list(output_dir.iterdir())


# E2E ------------------------------------------------------------------------------------------------------------------

E2E = 'mr,ref\n"near[Abbey], name[Fern Bar], eatType[pub]","A pub,\r\nthe Fern Bar."\nname[Oak],Oak.\n'
E2E_TEST = 'mr,ref\nname[Oak],First.\n"name[Elm], area[north]",Second.\nname[Oak],Third.\n'


@pytest.fixture
def e2e(tmp_path):
    """A function that writes the three files, some of them replaced, and returns the inputs."""

    def write(**replaced):
        inputs = {}
        for split, text in ({"train": E2E, "valid": E2E_TEST, "test": E2E_TEST} | replaced).items():
            inputs[split] = tmp_path / f"{split}.csv"
            inputs[split].write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return inputs

    return write


def test_e2e_rows_and_groups(e2e, tmp_path):
    run("e2e", e2e(), tmp_path / "out")
    assert rows(tmp_path / "out" / "train.jsonl") == [
        {
            "id": "train-1",
            "source": "name : Fern Bar | Type : pub | near : Abbey",
            "references": ["A pub, the Fern Bar."],
            "group": None,
        },
        {"id": "train-2", "source": "name : Oak", "references": ["Oak."], "group": None},
    ]
    test = rows(tmp_path / "out" / "test.jsonl")
    assert [row["source"] for row in test] == ["name : Oak", "name : Elm | area : north"]
    assert [row["references"] for row in test] == [["First.", "Third."], ["Second."]]


def test_e2e_linearisation_has_the_fixed_order_and_names():
    mr = "near[n], familyFriendly[no], area[a], customer rating[3], priceRange[£], food[f], eatType[t], name[N]"
    assert linearise_e2e(mr, "here") == (
        "name : N | Type : t | food : f | price : £ | customer rating : 3 | area : a | family friendly : no | near : n"
    )


@pytest.mark.parametrize("name", ["original", "mr"])
def test_an_attribute_of_e2e_may_have_several_values(e2e, tmp_path, name):
    mr = "area[city centre], name[Oak], area[riverside]"
    run(
        "e2e", e2e(test=f'mr,ref,fixed\n"{mr}",First.,1\n"{mr}",Second.,0\n'), tmp_path / "out", {"linearisation": name}
    )
    [row] = rows(tmp_path / "out" / "test.jsonl")
    assert row["source"] == {"original": "name : Oak | area : city centre | area : riverside", "mr": mr}[name]
    assert row["references"] == ["First.", "Second."]


def test_e2e_may_be_a_table_with_tabs(e2e, tmp_path):
    run("e2e", e2e(test="mr\tref\nname[Oak], area[x]\tAn oak, in x.\n"), tmp_path / "out")
    assert [row["references"] for row in rows(tmp_path / "out" / "test.jsonl")] == [["An oak, in x."]]


def test_e2e_meaning_representations_may_stay_as_they_are(e2e, tmp_path):
    inputs = e2e()
    run("e2e", inputs, tmp_path / "out", {"linearisation": "mr"})
    assert [row["source"] for row in rows(tmp_path / "out" / "test.jsonl")] == ["name[Oak]", "name[Elm], area[north]"]
    with pytest.raises(UserError, match="the option linearisation is 'tags'; it can be original or mr"):
        run("e2e", inputs, tmp_path / "bad", {"linearisation": "tags"})


def test_data_json_records_inputs_counts_and_outputs(e2e, tmp_path):
    inputs = e2e()
    run("e2e", inputs, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "data.json").read_text())
    assert report["counts"] == {
        "train": {"examples": 2, "references": 2},
        "valid": {"examples": 2, "references": 3},
        "test": {"examples": 2, "references": 3},
    }
    digest = hashlib.sha256(inputs["train"].read_bytes()).hexdigest()
    assert report["inputs"]["train"] == {"file": "train.csv", "sha256": digest}
    for name, digest in report["outputs"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert (report["reader"], report["options"]) == ("e2e", {})


def test_prepare_writes_the_same_bytes_twice(e2e, tmp_path):
    inputs = e2e()
    for name in ("one", "two"):
        run("e2e", inputs, tmp_path / name)
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "data.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_byte_order_mark_crlf_and_column_order_do_not_matter(e2e, tmp_path):
    turned = b"\xef\xbb\xbf" + b'ref,mr\r\n"A pub, the Fern Bar.","name[Fern Bar]"\r\n'
    run("e2e", e2e(train=turned), tmp_path / "out")
    assert rows(tmp_path / "out" / "train.jsonl")[0]["references"] == ["A pub, the Fern Bar."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('mr,ref\n"name[A]","one\ntwo"\n"name[A]"x,ref\n', "train.csv, line 4: malformed CSV"),
        ('mr,ref\nname[A],ref\nname[A],"never closed\nname[A],ref\n', "train.csv, line 3: malformed CSV"),
        ("mr,text\nname[A],ref\n", "line 1: no column ref"),
        ("mr,ref\nname[A],ref\nname[A]\n", "line 3: 1 fields where the header has 2"),
        ("mr,ref\nname[A],one,two\n", "line 2: 3 fields where the header has 2"),
        (b"mr,ref\nname[A],caf\xe9\n", "line 2: not UTF-8"),
        (b"mr,ref\nname[A],a\0b\n", "line 2: holds a NUL byte"),
        ("mr,ref\n,ref\n", "line 2: the column mr is empty"),
        ('mr,ref\n"name[A]","one\ntwo"\nname[A], \n', "line 4: the column ref is empty"),
        ("mr,ref\nname[A],ref\nfood[x] name[A],ref\n", "line 3: not a meaning representation"),
        ('mr,ref\n"name[A], food[]",ref\n', "line 2: not a meaning representation"),
        ('mr,ref\n"name[A], colour[red]",ref\n', "line 2: unknown attribute 'colour'"),
        ("mr,ref\n", "the train split has no examples"),
        ("", "train.csv: the file is empty"),
    ],
)
def test_bad_csv_is_named_with_its_line_and_leaves_nothing(e2e, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        run("e2e", e2e(train=text), tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_an_error_in_the_last_split_leaves_no_other_split(e2e, tmp_path):
    with pytest.raises(UserError, match="test.csv, line 2"):
        run("e2e", e2e(test="mr,ref\nname[A],\n"), tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_missing_and_superfluous_inputs_are_named(e2e, tmp_path):
    inputs = e2e()
    with pytest.raises(UserError, match="absent.csv: the input test is missing"):
        run("e2e", inputs | {"test": tmp_path / "absent.csv"}, tmp_path / "out")
    with pytest.raises(UserError, match="takes the inputs train, valid, test, of which .*given: extra"):
        run("e2e", inputs | {"extra": inputs["test"]}, tmp_path / "out")
    with pytest.raises(UserError, match="unknown option 'colour'"):
        run("e2e", inputs, tmp_path / "out", {"colour": 1})


def test_another_number_of_examples_than_the_official_one_is_refused(e2e, tmp_path):
    with pytest.raises(UserError) as caught:
        main_with(e2e(), tmp_path / "out", "--expected", '{"train": 3, "test": 2}')
    assert str(caught.value).startswith("the train split has 2 examples where the official release gives 3; use the")
    assert "`expected: null` for this task under `overrides: tasks:`" in str(caught.value)
    with pytest.raises(UserError, match="the test split has 2 examples where the official release gives 1"):
        main_with(e2e(), tmp_path / "out", "--expected", '{"train": 2, "test": 1}')
    assert_nothing_written(tmp_path / "out")
    main_with(e2e(), tmp_path / "out", "--expected", '{"train": 2, "test": 2}')
    assert len(rows(tmp_path / "out" / "train.jsonl")) == 2


def test_a_split_may_be_absent(e2e, tmp_path):
    inputs = e2e()
    del inputs["train"]
    run("e2e", inputs, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "data.json").read_text())
    assert report["absent"] == ["train"] and report["counts"]["train"] == {"examples": 0, "references": 0}
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == b""
    with pytest.raises(UserError, match="the train split has 0 examples where the official release gives 2"):
        main_with(inputs, tmp_path / "other", "--expected", '{"train": 2}')
    with pytest.raises(UserError, match="of which some may be absent; given: none"):
        prepare("e2e", {}, {}, tmp_path / "none")


def main_with(inputs, output_dir, *more):
    main(["--reader", "e2e", "--output-dir", str(output_dir), *(f"--input={k}={v}" for k, v in inputs.items()), *more])


@pytest.fixture
def many(write_jsonl):
    """A function (what changes in some rows) -> inputs of the reader jsonl: the first batches take longest."""

    def write(changes=None):
        rows = [GOOD | {"id": str(n), "source": f"{n} " * (2000 if n < 128 else 1)} for n in range(600)]
        for number, change in (changes or {}).items():
            rows[number] |= change
        good = write_jsonl("good.jsonl", [GOOD])
        return {"train": write_jsonl("many.jsonl", rows), "valid": good, "test": good}

    return write


@pytest.mark.parametrize("workers", ["2", "3"])
def test_the_number_of_workers_changes_no_byte(many, tmp_path, workers):
    for name, count in (("one", "1"), ("several", workers)):
        argv = ["--reader", "jsonl", "--output-dir", str(tmp_path / name), "--options", '{"id": "id"}']
        main([*argv, "--workers", count, *(f"--input={split}={path}" for split, path in many().items())])
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "data.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes()
    assert [row["id"] for row in rows(tmp_path / "several" / "train.jsonl")] == [str(n) for n in range(600)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({550: {"source": ""}, 130: {"target": ""}}, "many.jsonl, line 131: the reference is empty"),
        ({550: {"id": "3"}}, "many.jsonl, line 551: the id '3' was already used .*line 4"),
    ],
)
def test_workers_report_the_first_error_and_leave_nothing(many, tmp_path, workers, changes, message):
    with pytest.raises(UserError, match=message):
        prepare("jsonl", many(changes), {"id": "id"}, tmp_path / "out", workers=workers)
    assert_nothing_written(tmp_path / "out")


def test_special_symbols_in_the_text_are_text(e2e, tmp_path):
    run("e2e", e2e(train="mr,ref\nname[<unk>],A </s> <mask> <pad> <s>\n"), tmp_path / "out")
    (row,) = rows(tmp_path / "out" / "train.jsonl")
    assert (row["source"], row["references"]) == ("name : <unk>", ["A </s> <mask> <pad> <s>"])


def test_real_e2e(shared_data, tmp_path):
    names = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}
    run("e2e", {split: shared_data(f"e2e/{name}") for split, name in names.items()}, tmp_path)
    counts = json.loads((tmp_path / "data.json").read_text())["counts"]
    assert counts == {
        "train": {"examples": 42061, "references": 42061},
        "valid": {"examples": 547, "references": 4672},
        "test": {"examples": 630, "references": 4693},
    }


# XSUM -----------------------------------------------------------------------------------------------------------------


def article(number, marker="SN", summary="FIRST-SENTENCE", topic="news/uk-wales-north", body=None):
    parts = {"URL": f"http://web.archive.org/web/2015/http://www.bbc.co.uk/{topic}-{number}", "TITLE": "Unused"}
    parts |= {summary: f"Summary {number}.", "RESTBODY": f"Body {number}.\nMore." if body is None else body}
    return "".join(f"[{marker}]{name}[{marker}]\n{text}\n\n" for name, text in parts.items()).encode()


ARTICLES = [("d/README", b"not an article"), *((f"d/{n}.summary", article(n)) for n in (5, 3, 1, 9, 2, 4))]
IDS = {"train": ["1", "2", "3"], "validation": ["4"], "test": ["5"]}


@pytest.fixture
def xsum(tmp_path):
    def write(members=ARTICLES, ids=IDS):
        (tmp_path / "ids.json").write_text(json.dumps(ids))
        return {"archive": archive(tmp_path / "xsum.tar.gz", members), "splits": tmp_path / "ids.json"}

    return write


def test_xsum_rows_follow_the_split_and_not_the_archive(xsum, tmp_path):
    run("xsum_raw", xsum(), tmp_path / "out")
    assert rows(tmp_path / "out" / "train.jsonl") == [
        {"id": n, "source": f"Body {n}. More.", "references": [f"Summary {n}."], "group": "news/uk"} for n in "123"
    ]
    assert [row["id"] for split in ("valid", "test") for row in rows(tmp_path / "out" / f"{split}.jsonl")] == ["4", "5"]


def test_xsum_extract_form_and_boilerplate(xsum, tmp_path):
    body = "Share this with\nEmail\nLinkedIn\n\nShare this with care.\nCopy this link\nThe end."
    members = [*ARTICLES[2:], ("d/5.data", article(5, "XSUM", "INTRODUCTION", body=body))]
    run("xsum_raw", xsum(members), tmp_path / "out")
    (row,) = rows(tmp_path / "out" / "test.jsonl")
    assert row["source"] == "Share this with care. The end."
    assert row["references"] == ["Summary 5."]


@pytest.mark.parametrize(
    ("url", "topic"),
    [
        ("http://web.archive.org/web/20150909155709/http://www.bbc.co.uk/news/business-34195413", "news/business"),
        ("http://web.archive.org/web/2016/http://www.bbc.com:80/news/world-us-canada-35903821", "news/world"),
        ("http://web.archive.org/web/2016/http://www.bbc.co.uk/sport/football/37203942", "sport/football"),
        ("https://www.bbc.co.uk/sport/37203942", "sport"),
        ("http://www.bbc.co.uk/news/10138849", "news"),
        ("http://www.bbc.co.uk/newsround/38711418", "newsround"),
        ("http://news.bbc.co.uk/2/hi/8.stm", None),
        ("news", None),
        ("", None),
    ],
)
def test_xsum_topic(url, topic):
    assert xsum_topic(url) == topic


@pytest.mark.parametrize(
    ("members", "ids", "message"),
    [
        (ARTICLES[:-3], IDS, "1 of the 3 articles of the train split are not in it, such as 2;"),
        ([*ARTICLES, ("e/3.data", article(3))], IDS, "the article 3 stands twice"),
        (ARTICLES, IDS | {"test": ["5", "1"]}, "the id 1 stands in train and again in test"),
        (ARTICLES, {"train": ["1"]}, "ids.json: expected an object with the lists of ids train, validation and test"),
        ([*ARTICLES[2:], ("d/5.summary", b"[SN]RESTBODY[SN]\nx")], IDS, "article 5: not an XSUM article"),
        ([*ARTICLES[2:], ("d/5.summary", article(5) + b"\xff")], IDS, "article 5: not UTF-8"),
        ([*ARTICLES, ("d/../../5.summary", b"")], IDS, "lies outside the archive's folder"),
    ],
)
def test_bad_xsum_is_named_and_leaves_nothing(xsum, tmp_path, members, ids, message):
    with pytest.raises(UserError, match=message):
        run("xsum_raw", xsum(members, ids), tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_an_article_without_a_text_is_left_out_and_counted(xsum, tmp_path):
    members = [member for member in ARTICLES if not member[0].endswith("1.summary")]
    assert len(members) == len(ARTICLES) - 1
    run("xsum_raw", xsum([*members, ("d/1.summary", article(1, body="Email\nTwitter"))], IDS), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "data.json").read_text())
    assert report["left_out"] == {"train": {"article without a text": 1}}
    assert "1" not in [row["id"] for row in rows(tmp_path / "out" / "train.jsonl")]


def test_truncated_xsum_archive(xsum, tmp_path):
    inputs = xsum()
    inputs["archive"].write_bytes(inputs["archive"].read_bytes()[:-9])
    with pytest.raises(UserError, match="truncated or damaged archive"):
        run("xsum_raw", inputs, tmp_path / "out")


def test_real_xsum_extract(shared_data, tmp_path):
    """The 321 articles in the raw form give the texts that others distribute for the same ids."""
    path = shared_data("xsum/official_test_subset_321_raw.tar.gz")
    with gzip.open(shared_data("xsum/xsum_pairs_unified.jsonl.gz"), "rt", encoding="utf-8") as file:
        known = {row["id"]: row for row in map(json.loads, file) if row["source"] == "EdinburghNLP/XSum"}
    ids = sorted(known)
    (tmp_path / "ids.json").write_text(json.dumps({"train": ids[2:], "validation": ids[:1], "test": ids[1:2]}))
    run("xsum_raw", {"archive": path, "splits": tmp_path / "ids.json"}, tmp_path / "out")
    made = [row for split in ("train", "valid", "test") for row in rows(tmp_path / "out" / f"{split}.jsonl")]
    assert len(made) == 321
    same = [row["source"].split() == known[row["id"]]["document"].split() for row in made]
    assert sum(same) == 320  # one in Welsh keeps its furniture there, except for the names that both languages share
    assert all(row["references"] == [known[row["id"]]["summary"].strip()] for row in made)


# JSON lines -----------------------------------------------------------------------------------------------------------


def test_jsonl_fields_lists_and_compression(write_jsonl, tmp_path):
    inputs = {
        "train": write_jsonl("train.jsonl", [{"key": 7, "text": ["One.", "Two."], "short": ["A", "B"], "kind": "x"}]),
        "valid": write_jsonl("valid.jsonl", [{"key": "v", "text": "a\n\nb\tc", "short": "S", "kind": None}]),
    }
    inputs["test"] = tmp_path / "test.jsonl.gz"
    inputs["test"].write_bytes(gzip.compress(inputs["valid"].read_bytes()))
    run("jsonl", inputs, tmp_path / "out", {"source": "text", "target": "short", "id": "key", "group": "kind"})
    assert rows(tmp_path / "out" / "train.jsonl") == [
        {"id": "7", "source": "One. Two.", "references": ["A", "B"], "group": "x"}
    ]
    expected = [{"id": "v", "source": "a b c", "references": ["S"], "group": None}]
    assert rows(tmp_path / "out" / "valid.jsonl") == rows(tmp_path / "out" / "test.jsonl") == expected


GOOD = {"id": "a", "source": "text", "target": "short"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD, "line 2: the id 'a' was already used .*line 1"),
        (GOOD | {"id": None}, "line 2: the field 'id' is neither"),
        ({"id": "b", "source": "text"}, "line 2: no field 'target'; found .*id, source"),
        (GOOD | {"id": "b", "source": " \n"}, "line 2: the source is empty"),
        (GOOD | {"id": "b", "target": ""}, "line 2: the reference is empty"),
        (GOOD | {"id": "b", "target": []}, "line 2: no reference"),
        (GOOD | {"id": "b", "target": 3}, "line 2: the field 'target' is neither a text nor a list"),
        (GOOD | {"id": "b", "source": "a\0b"}, "line 2: the source holds a NUL"),
        (GOOD | {"id": "b", "group": 3}, "line 2: the group is not a text"),
    ],
)
def test_bad_jsonl_is_named_with_its_line(write_jsonl, tmp_path, bad, message):
    good = write_jsonl("good.jsonl", [GOOD | {"group": "g"}])
    bad = write_jsonl("bad.jsonl", [GOOD | {"group": "g"}, {"group": "g"} | bad])
    with pytest.raises(UserError, match=f"bad.jsonl, {message}"):
        run("jsonl", {"train": good, "valid": good, "test": bad}, tmp_path / "out", {"id": "id", "group": "group"})
    assert_nothing_written(tmp_path / "out")


def test_half_a_surrogate_pair_is_refused(write_jsonl, tmp_path):
    good = write_jsonl("good.jsonl", [GOOD])
    (tmp_path / "bad.jsonl").write_text('{"source": "a\\ud83d", "target": "b"}\n')
    with pytest.raises(UserError, match="bad.jsonl, line 1: the source holds half of a surrogate pair"):
        run("jsonl", {"train": good, "valid": good, "test": tmp_path / "bad.jsonl"}, tmp_path / "out")


@pytest.mark.parametrize("argv", [["--input", "train"], ["--options", "[]"], ["--options", "{"], ["--reader", "what"]])
def test_bad_arguments_are_refused(argv, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--reader", "e2e", "--input", "a=b", "--output-dir", str(tmp_path / "out"), *argv])
    assert "error: argument" in capsys.readouterr().err
