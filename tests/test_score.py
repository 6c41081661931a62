"""The command: what it reads and refuses, its scores by several references, splits, comparisons, and what it writes."""

import hashlib
import json
import math

import pytest
from common import UserError
from conftest import example
from metrics import METRICS, Metric
from score import main

REFERENCES = [["the cat sat on the mat", "a cat was on the mat"], ["a dog ran"], ["one two three four", "x", "five"]]
HYPOTHESES = ["the cat sat on a mat", "the dog ran off", "one two four"]


@pytest.fixture
def score(tmp_path, write_jsonl):
    """A function (metric, hypotheses, references, options, more arguments) that returns the metric's report."""

    def call(metric, hypotheses, references, options=None, *arguments, groups=None):
        (tmp_path / "hypotheses.txt").write_text("".join(line + "\n" for line in hypotheses), encoding="utf-8")
        groups = groups or [None] * len(references)
        rows = [example(n, "source", *texts, group=group) for n, (texts, group) in enumerate(zip(references, groups))]  # noqa: B905
        files = ["--hypotheses", str(tmp_path / "hypotheses.txt"), "--examples", str(write_jsonl("test.jsonl", rows))]
        files += ["--output", str(tmp_path / "scores.json"), "--samples", "40", "--trials", "50"]
        given = metric if options is None else f"{metric}={json.dumps(options)}"
        main(["--metric", given, *files, *arguments])
        return json.loads((tmp_path / "scores.json").read_text())["metrics"][metric]

    return call


@pytest.fixture
def write_lines(tmp_path):
    """A function (name, lines) that writes a text file and returns its path as text."""

    def write(name, lines):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_report(score, tmp_path, capsys):
    report = score("bleu", HYPOTHESES, REFERENCES)
    assert set(report) == {"signature", "scores", "intervals", "counts"}
    whole = json.loads((tmp_path / "scores.json").read_text())
    assert (whole["count"], report["counts"], whole["bootstrap"]) == (3, {"all": 3}, {"samples": 40, "seed": 12345})
    assert whole["hypotheses_sha256"] == hashlib.sha256((tmp_path / "hypotheses.txt").read_bytes()).hexdigest()
    digest = hashlib.sha256((tmp_path / "test.jsonl").read_bytes()).hexdigest()
    assert whole["references_sha256"] == {str(tmp_path / "test.jsonl"): digest}
    low, high = report["intervals"]["bleu"]
    assert low <= report["scores"]["bleu"] <= high
    assert f"{report['scores']['bleu']:.2f} [{low:.2f}, {high:.2f}]" in capsys.readouterr().out


def test_several_metrics_in_one_call(write_lines, capsys):
    files = ["--hypotheses", write_lines("h", HYPOTHESES), "--references", write_lines("r", ["a b c d"] * 3)]
    main(["--metric", "chrf", "--metric", 'bleu={"lowercase": true}', *files, "--samples", "40"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["split", "segments", "chrf", "bleu"]
    assert lines[4].split()[:2] == ["all", "3"] and len({len(line) for line in lines[3:5]}) == 1
    assert any(line.startswith("bleu: nrefs:1|case:lc") for line in lines)


@pytest.mark.parametrize(("metric", "best"), [("bleu", 100), ("chrf", 100), ("ter", 0), ("rouge", 100)])
def test_perfect_hypotheses_by_any_reference(score, metric, best):
    references = [["one two three four five", "six seven eight nine ten"], ["a b c d e"]]
    report = score(metric, [references[0][1], references[1][0]], references)
    assert list(report["scores"].values()) == pytest.approx([best] * len(report["scores"]))


def test_bleu_by_hand(score):
    # 1- to 4-gram precision 5/6, 3/5, 1/4 and smoothed 1/6; the lengths are equal, hence no brevity penalty
    value = score("bleu", ["the cat sat on a mat"], [["the cat was on a mat"]])["scores"]["bleu"]
    assert value == pytest.approx(100 * math.exp(sum(map(math.log, (5 / 6, 3 / 5, 1 / 4, 1 / 6))) / 4))


@pytest.mark.parametrize(("metric", "name"), [("bleu", "BLEU"), ("chrf", "CHRF"), ("ter", "TER")])
def test_equal_to_sacrebleu_with_variable_references(score, metric, name):
    metrics = pytest.importorskip("sacrebleu.metrics")
    theirs = getattr(metrics, name)()
    streams = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(3)]
    expected = theirs.corpus_score(HYPOTHESES, streams).score
    report = score(metric, HYPOTHESES, REFERENCES)
    assert report["scores"] == pytest.approx({metric: expected})
    assert report["signature"] == theirs.get_signature().format()
    assert report["signature"].startswith("nrefs:var|")
    assert "version:" in report["signature"]


@pytest.mark.parametrize("empty", [[], [""]])
def test_a_missing_reference_is_not_an_empty_one(score, empty):
    """An empty reference of length 0 would be closest to a short hypothesis and lift the brevity penalty."""
    variable = score("bleu", ["a b c d", "x"], [["a b c d", "e f g h"], ["x y z", *empty]])["scores"]["bleu"]
    fixed = score("bleu", ["a b c d", "x"], [["a b c d", "e f g h"], ["x y z", "x y z"]])["scores"]["bleu"]
    assert variable == fixed


def test_options_reach_the_metric_and_the_signature(score):
    cased = score("bleu", ["The Cat sat on the mat"], [["the cat sat on the mat"]])
    folded = score("bleu", ["The Cat sat on the mat"], [["the cat sat on the mat"]], {"lowercase": True})
    assert cased["scores"]["bleu"] < folded["scores"]["bleu"] == pytest.approx(100)
    assert "case:mixed" in cased["signature"] and "case:lc" in folded["signature"]


def test_empty_hypotheses_count(score):
    assert score("rouge", ["", "a b"], [["a b"], ["a b"]])["scores"]["rouge1"] == pytest.approx(50)
    for metric in ("bleu", "chrf", "ter", "nist"):
        assert score(metric, ["", "a b c d"], [["a b c d"], ["a b c d"]])["counts"] == {"all": 2}


# Splits ---------------------------------------------------------------------------------------------------------------

GROUPS = ["Airport", "Politician", "Food"]


def test_webnlg_is_split_into_seen_and_unseen(score):
    report = score("bleu", HYPOTHESES, REFERENCES, {"protocol": "webnlg"}, groups=GROUPS)
    assert report["counts"] == {"all": 3, "seen": 2, "unseen": 1}
    alone = score("bleu", HYPOTHESES[1:2], REFERENCES[1:2], {"protocol": "webnlg"})
    assert report["scores"]["bleu:unseen"] == alone["scores"]["bleu"]
    assert alone["counts"] == {"all": 1}  # examples without groups are not split


@pytest.mark.parametrize("groups", [["x", "y", "x"], ["Airport", "Politician", "politician"], ["Food", None, "Food"]])
def test_groups_that_are_no_categories_of_webnlg_are_not_taken_for_unseen(score, capsys, groups):
    report = score("bleu", HYPOTHESES, REFERENCES, {"protocol": "webnlg"}, groups=groups)
    assert report["counts"] == {"all": 3}
    [notice] = [line for line in capsys.readouterr().err.splitlines() if "seen and unseen" in line]
    assert "`group`" in notice if None in groups else "a group that is no category, such as" in notice


def test_segments_without_a_group_are_a_group_of_their_own(score):
    groups = ["all", None, "all"]
    report = score("rouge", HYPOTHESES, REFERENCES, None, "--by-group", groups=groups)
    assert report["counts"] == {"all": 3, "group all": 2, "no group": 1}


def test_groups_where_there_are_none_are_refused(score):
    with pytest.raises(UserError, match="the examples have no groups"):
        score("rouge", HYPOTHESES, REFERENCES, None, "--by-group")


@pytest.mark.parametrize("arguments", [["--by-group"], []])
def test_groups_on_request(score, arguments):
    options = {} if arguments else {"groups": True}
    report = score("rouge", HYPOTHESES, REFERENCES, options, *arguments, groups=["x", "y", "x"])
    assert report["counts"] == {"all": 3, "x": 2, "y": 1}
    assert set(report["scores"]) == {
        *(name + split for name in ("rouge1", "rouge2", "rougeL") for split in ("", ":x", ":y"))
    }
    assert "counts" in score("rouge", HYPOTHESES, REFERENCES, groups=["x", "y", "x"])


# Notices --------------------------------------------------------------------------------------------------------------


def test_lost_references_and_empty_hypotheses_are_noticed(score, tmp_path, capsys):
    report = score("rouge", ["यह दिन है", "a b", ""], [["यह दिन है"], ["a b"], ["c"]])
    [notice] = report["notices"]
    out, err = capsys.readouterr()
    assert notice.startswith("1 of 3 references lose most or all") and f"notice: rouge: {notice}" in out
    assert f"notice: rouge: {notice}" in err
    assert "hypotheses.txt: 1 of 3 hypotheses are empty, the first in line 3" in err
    scores = score("rouge", ["यह दिन है", "a b", ""], [["यह दिन है"], ["a b"], ["c"]], {"tokens": "unicode"})
    assert "notices" not in scores and scores["scores"]["rouge1"] == pytest.approx(200 / 3)


def test_a_run_of_webnlg_says_one_thing_once(write_lines, capsys, caplog):
    texts = ["the cat sat on the mat ."] * 150
    files = ["--hypotheses", write_lines("h", texts), "--references", write_lines("r", texts), "--samples", "40"]
    main(["--metric", 'bleu={"protocol": "webnlg"}', "--metric", 'ter={"protocol": "webnlg"}', *files])
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notice")]
    assert len(notices) == 1 and "no scores for seen and unseen categories" in notices[0] and not caplog.records


# Comparisons ----------------------------------------------------------------------------------------------------------


def test_a_system_against_itself_and_a_better_one(write_lines, tmp_path, capsys):
    references = [f"the {n} cats sat on the mat number {n}" for n in range(60)]
    worse = [text if n % 3 else "nothing of it" for n, text in enumerate(references)]
    first, better = write_lines("first", worse), write_lines("better", references)
    files = ["--hypotheses", first, "--references", write_lines("r", references), "--output", str(tmp_path / "o.json")]
    main(["--metric", "bleu", "--metric", "rouge", *files, "--compare", better, "--compare", first, "--trials", "200"])
    for entry in json.loads((tmp_path / "o.json").read_text())["metrics"].values():
        for name, found in entry["comparisons"][better].items():
            assert found["difference"] == pytest.approx(found["score"] - entry["scores"][name])
            assert found["difference"] > 0 and found["bootstrap"] < 0.01 and found["randomisation"] < 0.01
        assert {(found["bootstrap"], found["randomisation"]) for found in entry["comparisons"][first].values()} == {
            (1, 1)
        }
    assert f"{better}, against the first" in capsys.readouterr().out


def test_the_seed_decides_the_interval(score):
    references = [[f"w{n % 7} x y z {n % 3}"] for n in range(40)]
    hypotheses = [f"w{n % 5} x y z {n % 4}" for n in range(40)]
    first, again, other = (
        score("bleu", hypotheses, references, None, "--seed", seed)["intervals"] for seed in ("1", "1", "2")
    )
    assert first == again != other


# Reading --------------------------------------------------------------------------------------------------------------


def test_reference_files_line_by_line(write_lines, capsys):
    files = [write_lines("r0", ["a b c d e", "f g h i j"]), write_lines("r1", ["", "k l m n o"])]
    hypotheses = write_lines("h", ["a b c d e", "k l m n o"])
    named = [part for file in files for part in ("--references", file)]
    main(["--metric", "bleu", "--hypotheses", hypotheses, *named, "--samples", "40"])
    assert "100.00" in (out := capsys.readouterr().out) and "nrefs:var" in out
    main(["--protocol", "webnlg", "--metric", 'bleu={"protocol": "webnlg"}', "--hypotheses", hypotheses]
         + ["--references", *files, "--samples", "40"])  # fmt: skip
    assert "nrefs:3" in capsys.readouterr().out  # missing lines are references of no words


E2E_ROWS = [("name[A]", "a b c d"), ("name[B]", "i, j k l"), ("name[A]", "e f g h")]


@pytest.mark.parametrize(
    ("name", "separator", "quote"), [("r.csv", ",", '"'), ("r.tsv", "\t", ""), ("r.txt", ",", '"')]
)
def test_e2es_table_of_references_is_grouped_by_meaning_representation(write_lines, tmp_path, name, separator, quote):
    rows = [f"{mr}{separator}{quote}{text}{quote}" for mr, text in E2E_ROWS]
    references = write_lines(name, [f"mr{separator}ref", *rows])
    main(["--metric", 'bleu={"protocol": "e2e"}', "--hypotheses", write_lines("h", ["e f g h", "i, j k l"])]
         + ["--references", references, "--output", str(tmp_path / "o"), "--samples", "40"])  # fmt: skip
    report = json.loads((tmp_path / "o").read_text())
    assert (report["count"], report["metrics"]["bleu"]["scores"]["bleu"]) == (2, pytest.approx(100))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("h.tsv", ["mr\toutput", "name[A]\ta b"], "h.tsv: a table, but expected text"),
        ("h.txt", ["mr,output", "name[A],a b"], "h.txt: a table, but expected text"),
        ("h.jsonl", ['{"references": ["a"]}'], "h.jsonl: JSON, but expected text, .* as --examples"),
        ("h.txt", ['{"references": ["a"]}'], "h.txt: JSON, but expected text"),
        ("h.xml", ["<benchmark>"], "h.xml: XML, but expected text, .* prepare.py --reader webnlg"),
    ],
)
def test_tables_json_and_xml_are_not_taken_for_text(write_lines, name, lines, message):
    other, table = write_lines("other", ["a b"] * len(lines)), write_lines(name, lines)
    for hypotheses, references in ((table, other), (other, table)):
        with pytest.raises(UserError, match=message):
            main(["--metric", "bleu", "--hypotheses", hypotheses, "--references", references])


def test_text_that_begins_like_a_table_is_text(write_lines, capsys):
    lines = write_lines("h", ["MR, ref: see below", "plain words in a line"])
    main(["--metric", "bleu", "--hypotheses", lines, "--references", lines, "--samples", "40"])
    assert " 100.00 " in capsys.readouterr().out


def test_the_help_names_the_fields_of_the_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert '{"references": ["...", "..."], "group": "Airport"}' in " ".join(capsys.readouterr().out.split())


def test_e2e_references_in_one_file_with_empty_lines_between(write_lines, tmp_path):
    references = write_lines("refs", ["a b c d", "e f g h", "", "i j k l", ""])
    main(["--metric", 'bleu={"protocol": "e2e"}', "--hypotheses", write_lines("h", ["e f g h", "i j k l"])]
         + ["--references", references, "--output", str(tmp_path / "o"), "--samples", "40"])  # fmt: skip
    assert json.loads((tmp_path / "o").read_text())["metrics"]["bleu"]["scores"]["bleu"] == pytest.approx(100)


def test_bom_crlf_tabs_and_gzip_do_not_matter(tmp_path, write_lines, capsys):
    (tmp_path / "windows").write_bytes("\ufeffa b\tc d é\r\ne f g h i\r\n".encode())
    references = write_lines("r", ["a b c d é", "e f g h i"])
    main(["--metric", "bleu", "--hypotheses", str(tmp_path / "windows"), "--references", references, "--samples", "40"])
    assert " 100.00 " in capsys.readouterr().out


def test_a_task_by_its_name(tmp_path, monkeypatch, write_jsonl, write_lines, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "tasks").mkdir(parents=True)
    text = "reader: jsonl\ninputs: {test: {path: t.jsonl}}\nmetrics: {chrf: {word_order: 2}}\n"
    (tmp_path / "configs" / "tasks" / "mine.yaml").write_text(text)
    write_jsonl("data/mine/test.jsonl", [example(0, "source", "a b c")])
    main(["--task", "mine", "--hypotheses", write_lines("h", ["a b c"]), "--samples", "40"])
    assert "chrf: nrefs:1|case:mixed|eff:yes|nc:6|nw:2" in capsys.readouterr().out
    with pytest.raises(UserError, match="no task is called 'yours'"):
        main(["--task", "yours", "--hypotheses", "h"])
    with pytest.raises(UserError, match="data/e2e/test.jsonl: not there yet; make it with `snakemake"):
        main(["--task", "e2e", "--hypotheses", "h"])  # of the project's own tasks, not prepared here


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "message"),
    [
        (["a"], [["a"], ["b"]], None, "hypotheses.txt has 1 lines and .*test.jsonl 2 examples"),
        (["a", "b"], [["a"]], None, "hypotheses.txt has 2 lines and .*test.jsonl 1 examples"),
        (["a"], [[]], None, "test.jsonl, line 1: no references"),
        (["a", "b"], [["a"], [" "]], None, "test.jsonl, line 2: no references"),
        ([], [], None, "test.jsonl: no examples"),
        (["a\0b"], [["a"]], None, "hypotheses.txt, line 1: holds a NUL byte"),
        (["a"], [["a"]], {"lower": True}, "unknown option 'lower' for bleu; it knows: lowercase"),
        (["a"], [["a"]], {"tokenize": "what"}, "do not suit bleu"),
        (["a"], [["a"]], {"protocol": "xsum"}, "bleu has no protocol 'xsum'; it has: e2e, e2e-python, webnlg, dart"),
        (["a"], [["a"]], {"protocol": "e2e", "lowercase": True}, "the protocol e2e says how it is computed; leave out"),
        (["a"], [["a"]], {"groups": "yes"}, "groups is true or false"),
    ],
)
def test_refusals_leave_no_score(score, tmp_path, hypotheses, references, options, message):
    with pytest.raises(UserError, match=message):
        score("bleu", hypotheses, references, options)
    assert not (tmp_path / "scores.json").exists()


def test_reference_files_of_unequal_length_are_refused(write_lines):
    files = [write_lines("r0", ["a", "b"]), write_lines("r1", ["a"])]
    with pytest.raises(UserError, match="r1 has 1 lines and .*r0 2"):
        main(["--metric", "bleu", "--hypotheses", write_lines("h", ["a", "b"]), "--references", *files])
    with pytest.raises(UserError, match="r0, line 2: no references"):
        main(["--metric", "bleu", "--hypotheses", files[0], "--references", write_lines("r0", ["a", ""])])


def test_latin_1_is_refused_with_its_line(tmp_path, write_lines):
    (tmp_path / "latin").write_bytes("fine\ncafé\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin, line 2: not UTF-8"):
        main(
            ["--metric", "bleu", "--hypotheses", str(tmp_path / "latin"), "--references", write_lines("r", ["a", "b"])]
        )


def test_a_metric_that_fails_does_not_take_the_others_with_it(write_lines, tmp_path, monkeypatch, capsys):
    def broken(segments, options):
        raise UserError("the program has died")

    monkeypatch.setitem(METRICS, "meteor", Metric(broken))
    files = ["--hypotheses", write_lines("h", ["a b"]), "--references", write_lines("r", ["a b"])]
    with pytest.raises(UserError, match="meteor failed: the program has died"):
        main(["--metric", "meteor", "--metric", "rouge", *files, "--samples", "40", "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out").read_text())
    assert (list(report["metrics"]), list(report["unavailable"])) == (["rouge"], ["meteor"])
    assert "100.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [{"max_ngram_order": "x"}, {"smooth_method": "floor", "smooth_value": "x"}, {"tokenize": "ja-mecab"}]
)
def test_options_that_sacrebleu_stumbles_over_late_are_one_sentence(score, options):
    with pytest.raises(UserError, match="do not suit bleu"):
        score("bleu", HYPOTHESES, REFERENCES, options)


def test_signatures_tell_different_orders_apart(score):
    plain, bigrams = (score("bleu", HYPOTHESES, REFERENCES, options) for options in ({}, {"max_ngram_order": 2}))
    assert bigrams["signature"] == plain["signature"] + "|max_ngram_order:2"


def test_without_java_every_other_score_appears(write_lines, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    files = ["--hypotheses", write_lines("h", HYPOTHESES), "--references", write_lines("r", ["a b c d"] * 3)]
    main(["--protocol", "e2e", *files, "--samples", "40", "--output", str(tmp_path / "o.json")])
    captured = capsys.readouterr()
    assert captured.err.count("\nmeteor needs") + captured.err.startswith("meteor needs") == 1
    report = json.loads((tmp_path / "o.json").read_text())
    assert set(report["metrics"]) == {"bleu", "nist"} and set(report["unavailable"]) == {"meteor", "rouge", "cider"}
    assert "meteor: not computed; it needs " in captured.out
    with pytest.raises(UserError, match="nothing could be computed"):
        main(["--metric", "meteor", *files])
