"""Scores: those of sacrebleu and rouge-score, whatever the number of references, and never over misaligned files."""

import hashlib
import json
import math

import pytest
from common import UserError
from conftest import example
from score import main

REFERENCES = [["the cat sat on the mat", "a cat was on the mat"], ["a dog ran"], ["one two three four", "x", "five"]]
HYPOTHESES = ["the cat sat on a mat", "the dog ran off", "one two four"]


@pytest.fixture
def score(tmp_path, write_jsonl):
    """A function (metric, hypotheses, references, options) that returns the report."""

    def call(metric, hypotheses, references, options=None):
        (tmp_path / "hypotheses.txt").write_text("".join(line + "\n" for line in hypotheses), encoding="utf-8")
        examples = write_jsonl("test.jsonl", [example(n, "source", *texts) for n, texts in enumerate(references)])
        files = ["--hypotheses", str(tmp_path / "hypotheses.txt"), "--examples", str(examples)]
        files += ["--output", str(tmp_path / f"{metric}.json")]
        main(["--metric", metric, *files, *(["--options", json.dumps(options)] if options is not None else [])])
        return json.loads((tmp_path / f"{metric}.json").read_text())

    return call


def test_report(score, tmp_path):
    report = score("bleu", HYPOTHESES, REFERENCES)
    assert set(report) == {"metric", "scores", "signature", "count", "hypotheses_sha256", "examples_sha256"}
    assert (report["metric"], report["count"]) == ("bleu", 3)
    for name in ("hypotheses.txt", "test.jsonl"):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert digest in (report["hypotheses_sha256"], report["examples_sha256"])


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
    assert report["scores"] == {metric: expected}
    assert report["signature"] == theirs.get_signature().format()
    assert report["signature"].startswith("nrefs:var|")
    assert "version:" in report["signature"]


def test_a_missing_reference_is_not_an_empty_one(score):
    """An empty reference of length 0 would be closest to a short hypothesis and lift the brevity penalty."""
    variable = score("bleu", ["a b c d", "x"], [["a b c d", "e f g h"], ["x y z"]])["scores"]["bleu"]
    fixed = score("bleu", ["a b c d", "x"], [["a b c d", "e f g h"], ["x y z", "x y z"]])["scores"]["bleu"]
    assert variable == fixed


def test_options_reach_the_metric_and_the_signature(score):
    cased = score("bleu", ["The Cat sat on the mat"], [["the cat sat on the mat"]])
    folded = score("bleu", ["The Cat sat on the mat"], [["the cat sat on the mat"]], {"lowercase": True})
    assert cased["scores"]["bleu"] < folded["scores"]["bleu"] == pytest.approx(100)
    assert "case:mixed" in cased["signature"] and "case:lc" in folded["signature"]


def test_rouge_by_hand(score):
    # "cats sat" against "cat sat there": with stemming 2 of 2 and 2 of 3 unigrams, 1 of 1 and 1 of 2 bigrams
    report = score("rouge", ["cats sat"], [["cat sat there"]])
    assert report["scores"] == pytest.approx({"rouge1": 80, "rouge2": 100 * 2 / 3, "rougeL": 80})
    plain = score("rouge", ["cats sat"], [["cat sat there"]], {"stemmer": False, "types": ["rouge1"]})
    assert plain["scores"] == pytest.approx({"rouge1": 40})
    assert "stem:porter" in report["signature"] and "stem:no" in plain["signature"]


def test_rouge_takes_the_best_reference_of_each_example_and_the_mean_over_examples(score):
    report = score("rouge", ["a b c", "x"], [["a b c", "z"], ["y"]])
    assert report["scores"]["rouge1"] == pytest.approx(50)
    assert report["signature"].startswith("nrefs:var|refs:max|agg:mean|")


def test_empty_hypotheses_count(score):
    assert score("rouge", ["", "a b"], [["a b"], ["a b"]])["scores"]["rouge1"] == pytest.approx(50)
    for metric in ("bleu", "chrf", "ter"):
        assert score(metric, ["", "a b c d"], [["a b c d"], ["a b c d"]])["count"] == 2


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "message"),
    [
        (["a"], [["a"], ["b"]], None, "hypotheses.txt has 1 lines and .*test.jsonl 2 examples"),
        (["a", "b"], [["a"]], None, "hypotheses.txt has 2 lines and .*test.jsonl 1 examples"),
        (["a"], [[]], None, "test.jsonl, line 1: no references"),
        ([], [], None, "test.jsonl: no examples"),
        (
            ["a"],
            [["a"]],
            {"lower": True},
            "unknown option 'lower'; it knows: lowercase|unknown option 'lower' for bleu",
        ),
        (["a"], [["a"]], {"tokenize": "what"}, "do not suit bleu"),
    ],
)
def test_refusals_leave_no_score(score, tmp_path, hypotheses, references, options, message):
    with pytest.raises(UserError, match=message):
        score("bleu", hypotheses, references, options)
    assert not (tmp_path / "bleu.json").exists()


def test_bad_rouge_type_is_refused(score):
    with pytest.raises(UserError, match="do not suit rouge"):
        score("rouge", ["a"], [["a"]], {"types": ["rouge-l"]})


def test_real_e2e_bleu(shared_data, tmp_path):
    """The official BLEU of a published system on the E2E development set, to its last digit."""
    from prepare import main as prepare

    published = shared_data("references/e2e_dev/scores.tsv").read_text().split("\n")
    values = {row.split("\t")[0]: row.split("\t")[2] for row in published[1:] if row}
    files = {"train": "devset.csv", "valid": "devset.csv", "test": "devset.csv"}
    inputs = [part for key, name in files.items() for part in ("--input", f"{key}={shared_data(f'e2e/{name}')}")]
    prepare(["--reader", "e2e", *inputs, "--output-dir", str(tmp_path)])
    for name in ("mlp_seed01_epoch16", "mlp_seed15_epoch19"):
        hypotheses = shared_data(f"references/e2e_dev/{name}.txt")
        argv = ["--examples", str(tmp_path / "test.jsonl"), "--output", str(tmp_path / "bleu.json")]
        main(["--metric", "bleu", "--hypotheses", str(hypotheses), *argv, "--options", '{"lowercase": true}'])
        value = json.loads((tmp_path / "bleu.json").read_text())["scores"]["bleu"]
        assert round(value, 2) == pytest.approx(100 * float(values[f"{name}.txt"]))
