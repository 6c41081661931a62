"""The metrics: worked examples, agreement with the packages they build on, protocols, intervals and tests."""

import math
import random
import re

import numpy as np
import pytest
import ter
from common import UserError
from metrics import (
    METRICS,
    PROTOCOLS,
    Segments,
    check_options,
    dart_text,
    is_score,
    notices,
    score_names,
    statistics,
    webnlg_hypothesis,
    webnlg_reference,
)
from significance import compare, intervals


def score(metric, hypotheses, references, /, threads=1, **options):
    result = statistics(metric, Segments(hypotheses, references, threads), options)
    return dict(zip(result.names, result.scores(), strict=True)), result.signature


def corpus(count, seed=0, words=30):
    """Made-up hypotheses, and one to three references of each that are like them."""
    rng = random.Random(seed)
    texts = [[f"w{rng.randrange(words)}" for _ in range(rng.randrange(3, 25))] for _ in range(count)]

    def changed(text):
        result = [f"w{rng.randrange(words)}" if rng.random() < 0.3 else word for word in text]
        middle = rng.randrange(len(result))
        return result[middle:] + result[:middle] if rng.random() < 0.5 else result

    references = [[" ".join(changed(text)) for _ in range(rng.randrange(1, 4))] for text in texts]
    return [" ".join(text) for text in texts], references


# BLEU and NIST of e2e-metrics -----------------------------------------------------------------------------------------


def test_e2e_bleu_is_cased_down_and_tokenised_as_mteval():
    scores, signature = score("bleu", ["The Vaults, a pub."], [["the vaults , a pub ."]], protocol="e2e")
    assert scores["bleu"] == pytest.approx(100)
    assert signature == "nrefs:1|case:lc|tok:13a|smooth:exp|version:mteval-v13a|protocol:e2e"


def test_e2e_bleu_lets_empty_and_short_hypotheses_take_nothing_from_the_others():
    # lengths 4 + 0, 3, 2, 1, all of them hits; the references have 4 + 2 words
    scores, _ = score("bleu", ["a b c d", ""], [["a b c d"], ["x y"]], protocol="e2e")
    assert scores["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert score("bleu", [""], [["x y"]], protocol="e2e")[0]["bleu"] == 0
    # The first order without a hit counts half a hit. Three words have no 4-gram: that order counts nothing.
    scores, _ = score("bleu", ["a b x"], [["a b c"]], protocol="e2e")
    assert scores["bleu"] == pytest.approx(100 * (2 / 3 * 1 / 2 * 1 / 2) ** 0.25)


def test_e2e_cases_down_ascii_letters_only_as_perl_does():
    assert score("bleu", ["a b c É"], [["A B C é"]], protocol="e2e-python")[0]["bleu"] == pytest.approx(100)
    scores, _ = score("bleu", ["a b c É"], [["A B C é"]], protocol="e2e")
    assert scores["bleu"] == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)


def test_pymteval_counts_an_empty_hypothesis_as_one_word_and_short_ones_as_negative_lengths():
    # lengths 4 + 1 = 5, 3 + 0, 2 - 1, 1 - 2 -> at least 1e-9; all n-grams of the first hit; the references have 4 + 2
    scores, signature = score("bleu", ["a b c d", ""], [["a b c d"], ["x y"]], protocol="e2e-python")
    assert signature == "nrefs:1|case:lc|tok:13a|smooth:none|version:pymteval|protocol:e2e-python"
    precisions = [4 / 5, 3 / 3, 2 / 1, 1 / 1e-9]
    assert scores["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 5) * math.prod(precisions) ** 0.25)


def test_nist_by_hand():
    # References "a b", "a c": information of a is log2(4/2), of "a b" log2(2/1); the hypothesis "a b" has both.
    # Unigrams: (1 + 2) / 2 with b's log2(4/1) = 2; bigrams: 1 / 1.
    scores, _ = score("nist", ["a b"], [["a b", "a c"]])
    assert scores["nist"] == pytest.approx((1 + 2) / 2 + 1)
    # Half as long as the references on average: the penalty, whose beta makes it 0.5 at two thirds
    short, _ = score("nist", ["a b"], [["a b c"]])
    gain = (math.log2(3) + math.log2(3)) / 2 + 0
    assert short["nist"] == pytest.approx(0.5 * gain)


def test_nists_penalty_takes_the_mean_of_all_references_or_of_each_segments_mean():
    """Perl's mteval: (8 + 2 + 2 + 2) / 4 words in each of 2 segments. pymteval, measure_scores.py -p: 8 + 2."""
    hypotheses, references = ["a b c d", "x y"], [["a b c d e f g h"], ["x y", "x z", "z y"]]
    (perl, of_perl), (python, of_python) = (
        score("nist", hypotheses, references, protocol=protocol) for protocol in ("e2e", "e2e-python")
    )
    beta = math.log(0.5) / math.log(1.5) ** 2
    expected = [math.exp(beta * math.log(6 / length) ** 2) for length in (7, 10)]
    assert perl["nist"] / python["nist"] == pytest.approx(expected[0] / expected[1])
    assert ("version:mteval-v13a" in of_perl, "version:pymteval" in of_python) == (True, True)
    assert score("nist", hypotheses, references)[0] == perl  # the published one by default


# TER ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hypothesis", "reference", "edits"),
    [
        ("a b c", "a b c", 0),
        ("", "a b", 2),
        ("a b", "", 2),
        ("a x c", "a b c", 1),
        ("c d e f a b", "a b c d e f", 1),  # one shift
        ("d e f x a b c", "a b c d e f", 2),  # one shift, one deletion
        # A shift that repairs only what it costs is made by tercom, and here opens the way for a better one.
        ("b a", "a b", 1),
    ],
)
def test_tercom_by_hand(hypothesis, reference, edits):
    assert ter.tercom_edits(hypothesis.split(), reference.split()).count == edits


def test_sacrebleus_edits_many_times_faster():
    from sacrebleu.metrics.lib_ter import BeamEditDistance, translation_edit_rate

    rng = random.Random(3)
    for number in range(120):
        words = rng.choice([3, 12])
        lengths = (rng.randrange(70), rng.randrange(70)) if number % 10 == 0 else (rng.randrange(14), rng.randrange(14))
        hypothesis, reference = ([str(rng.randrange(words)) for _ in range(length)] for length in lengths)
        assert ter.sacrebleu_edits(hypothesis, reference) == translation_edit_rate(hypothesis, reference)[0]
        if reference:
            assert ter._SacrebleuDistance(reference).trace(hypothesis) == BeamEditDistance(reference)(hypothesis)


def test_tercoms_beam_is_searched_where_it_matters():
    """The fast distance is used only where tercom's pruned table gives the same distance and the same trace."""
    rng = random.Random(5)
    pruned = 0
    for _ in range(150):
        hypothesis, reference = ([str(rng.randrange(6)) for _ in range(rng.randrange(1, 90))] for _ in range(2))
        distance = ter._TercomDistance(reference)
        expected = distance._pruned(hypothesis)
        exact = distance._extended(hypothesis)[-1][2]
        assert distance.trace(hypothesis) == expected and distance.distance(hypothesis) == expected[0]
        pruned += expected[0] != exact
    assert pruned  # or nothing was tested


def test_ter_of_several_references_is_of_the_nearest_over_their_mean_length():
    scores, _ = score("ter", ["a b c"], [["a b d", "x y z u v"]], protocol="webnlg")
    assert scores["ter"] == pytest.approx(100 * 1 / 4)


# ROUGE ----------------------------------------------------------------------------------------------------------------


def test_rouge_by_hand():
    # "cats sat" against "cat sat there": with stemming 2 of 2 and 2 of 3 unigrams, 1 of 1 and 1 of 2 bigrams
    scores, signature = score("rouge", ["cats sat"], [["cat sat there"]])
    assert scores == pytest.approx({"rouge1": 80, "rouge2": 100 * 2 / 3, "rougeL": 80})
    plain, without = score("rouge", ["cats sat"], [["cat sat there"]], stemmer=False, types=["rouge1"])
    assert plain == pytest.approx({"rouge1": 40})
    assert "stem:porter" in signature and "stem:no" in without


def test_rouge_takes_the_best_reference_of_each_example_and_the_mean_over_examples():
    scores, signature = score("rouge", ["a b c", "x"], [["a b c", "z"], ["y"]])
    assert scores["rouge1"] == pytest.approx(50)
    assert signature.startswith("nrefs:var|refs:best|agg:mean|")
    mean, signature = score("rouge", ["a b c", "x"], [["a b c", "z"], ["y"]], references="mean")
    assert mean["rouge1"] == pytest.approx(25) and "refs:mean" in signature


def test_rouge_lsum_splits_sentences():
    both, signature = score("rouge", ["B c. A b."], [["A b. B c."]], types=["rougeL", "rougeLsum"], stemmer=False)
    assert both == pytest.approx({"rougeL": 50, "rougeLsum": 100})
    assert "sent:.?!" in signature


def test_rouge_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    texts = ["The running dogs, happily jumping!", "Economies are recovering in 2021.", "Café Adriatic's waiters"]
    references = [["A dog runs and jumps happily", "Dogs"], ["The economy recovers"], ["the waiter of the café"]]
    best = [scorer.score_multi(several, text) for text, several in zip(texts, references, strict=True)]
    scores, _ = score("rouge", texts, references, types=["rouge1", "rougeL"])
    assert scores == {name: 100 * sum(each[name].fmeasure for each in best) / 3 for name in ("rouge1", "rougeL")}


@pytest.mark.parametrize(
    "text",
    [
        "यह एक सुंदर दिन है।",
        "Это хороший день.",
        "今天天气很好，我去市场。",
        "วันนี้อากาศดีมาก",
        "هذا يوم جميل",
        "오늘은 날씨가 좋다",
        "می‌خواهم",
    ],
)
def test_rouge_counts_words_of_any_script_with_unicode_tokens(text):
    lost, plain = score("rouge", [text], [[text]])
    scores, signature = score("rouge", [text], [[text]], tokens="unicode", types=["rouge1", "rougeLsum"])
    assert set(lost.values()) == {0} and scores == pytest.approx({"rouge1": 100, "rougeLsum": 100})
    assert "tok:rouge-score|stem:porter" in plain and "tok:unicode|stem:no|sent:unicode" in signature


def test_unicode_tokens_are_words_or_characters_where_no_space_is_written():
    from metrics import unicode_words

    assert unicode_words("Été, l'HÔTEL_n°2") == ["été", "l", "hôtel", "n", "2"]
    assert unicode_words("E\u0301te\u0301") == ["été"]  # accents of their own
    assert unicode_words("हिन्दी में") == ["हिन्दी", "में"]  # vowel signs belong to the word
    assert unicode_words("今天 Tokyo へ") == ["今", "天", "tokyo", "へ"]
    assert unicode_words("नमस्\u200dते") == unicode_words("नमस्ते")
    # Two of four characters are the same
    assert score("rouge", ["今天下雨"], [["今天天晴"]], tokens="unicode", types=["rouge1"])[0] == {"rouge1": 50}


def test_unicode_tokens_are_stemmed_on_request_only():
    plain, stemmed = (
        score("rouge", ["Cats café"], [["cat café"]], tokens="unicode", types=["rouge1"], **more)[0]["rouge1"]
        for more in ({}, {"stemmer": True})
    )
    assert (plain, stemmed) == (50, 100)


@pytest.fixture
def irregular_forms(tmp_path, monkeypatch):
    """A package like py-rouge, with two irregular forms; and no stems of others remembered before or after."""
    import metrics

    (tmp_path / "py_rouge-1.1.dist-info").mkdir()
    (tmp_path / "py_rouge-1.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: py-rouge\nVersion: 1.1\n"
    )
    (tmp_path / "rouge").mkdir()
    (tmp_path / "rouge" / "wordnet_key_value.txt").write_text("went|go\nmice|mouse\nate|eat\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    metrics._rouge_tokenizer.cache_clear()
    yield
    metrics._rouge_tokenizer.cache_clear()


def test_perl_rouge_looks_irregular_forms_up_before_it_stems(irregular_forms):
    options = {"types": ["rouge1"]}
    # mice -> mouse, not stemmed again (mous); "ate" has three letters and stays, as in ROUGE-1.5.5
    assert score("rouge", ["went mice ate"], [["go mice eat"]], **options)[0]["rouge1"] == pytest.approx(100 / 3)
    scores, signature = score("rouge", ["went mice ate"], [["go mice eat"]], perl=True, **options)
    assert scores["rouge1"] == pytest.approx(200 / 3)
    assert "|stem:wordnet2.0+porter1980(py-rouge-1.1)|" in signature
    # Porter's own algorithm, where nltk's makes "die" of "dies", and "dying" another word
    assert score("rouge", ["skies"], [["sky"]], perl=True, **options)[0]["rouge1"] == 0
    assert score("rouge", ["flies"], [["fli"]], perl=True, **options)[0]["rouge1"] == 100


def test_perl_rouge_says_what_it_needs():
    import importlib.metadata

    if any(importlib.metadata.distributions(name="py-rouge")):
        pytest.skip("py-rouge is installed")
    with pytest.raises(UserError, match="rouge needs the package py-rouge .* `make setup-scores`"):
        score("rouge", ["a"], [["a"]], perl=True)


@pytest.mark.parametrize(
    "options",
    [
        {"types": ["rouge-l"]},
        {"types": "rouge1"},
        {"types": []},
        {"stemmer": "yes"},
        {"references": "all"},
        {"tokens": "ascii"},
        {"perl": "yes"},
    ],
)
def test_bad_rouge_options_are_refused(options):
    with pytest.raises(UserError, match="rouge"):
        score("rouge", ["a"], [["a"]], **options)


# Protocols ------------------------------------------------------------------------------------------------------------


def test_webnlg_prepares_hypotheses_and_references_in_a_different_order():
    assert webnlg_reference("Kovač–Müller's  U.S.A.") == "kovac - muller ' s u . s . a ."
    assert webnlg_hypothesis("  Kovač–Müller's  U.S.A.") == "kovac - muller ' s u . s . a ."
    # One character that becomes three: split before it is replaced, or after
    assert (webnlg_reference("well…"), webnlg_hypothesis("well…")) == ("well ...", "well . . .")


def test_dart_keeps_accents():
    assert dart_text("Kovač won, in 1984.") == "kovač won , in 1984 ."
    assert dart_text(dart_text("Hawaii Five-O's")) == dart_text("Hawaii Five-O's") == "hawaii five - o ' s"


@pytest.mark.parametrize("protocol", ["webnlg", "dart"])
def test_only_three_references_count_and_missing_ones_have_no_words_for_bleu(protocol):
    four = score("bleu", ["a b c d e"], [["x", "y", "z", "a b c d e"]], protocol=protocol)
    assert four[0]["bleu"] == 0 and "nrefs:3" in four[1]
    # 1 hypothesis word; the closest of lengths 3, 0, 0 is 0 (and 2 of lengths 2): no brevity penalty
    short = statistics("bleu", Segments(["a"], [["a b c"]]), {"protocol": protocol})
    assert list(short.rows[0][:2]) == [1, 0]


def test_multi_bleu_does_not_smooth():
    assert (
        score("bleu", ["a b c x"], [["a b c d"]], protocol="webnlg")[0]["bleu"]
        == 0
        < score("bleu", ["a b c x"], [["a b c d"]])[0]["bleu"]
    )


def test_dart_v1_was_scored_cased_and_unsplit():
    texts = "Ayr won, in 1984.", "ayr won , in 1984 ."
    assert score("bleu", [texts[0]], [[texts[1]]], protocol="dart")[0]["bleu"] == pytest.approx(100)
    scores, signature = score("bleu", [texts[0]], [[texts[1]]], protocol="dart-v1.0")
    assert scores["bleu"] == 0 and "case:mixed" in signature and signature.endswith("|protocol:dart-v1.0")
    assert score("bleu", [texts[0] + " "], [[texts[0]]], protocol="dart-v1.0")[0]["bleu"] == pytest.approx(100)
    assert score("ter", [texts[0]], [[texts[1]]], protocol="dart-v1.0")[0]["ter"] > 0


def test_every_protocol_belongs_to_its_metrics():
    for protocol, metrics in PROTOCOLS.items():
        for metric in METRICS:
            if metric in metrics:
                check_options(metric, {"protocol": protocol})
            else:
                with pytest.raises(UserError):
                    check_options(metric, {"protocol": protocol})


# Notices --------------------------------------------------------------------------------------------------------------

HINDI, RUSSIAN, CHINESE, THAI = (
    "यह एक सुंदर दिन है",
    "Это хороший день",
    "今天天气很好，我去市场买东西",
    "วันนี้อากาศดีมากฉันไปตลาด",
)
FRENCH, ENGLISH = "L'été, nous étions à l'hôtel", "A café near Kovač's well"


def noticed(metric, texts, /, **options):
    return " ".join(notices(metric, Segments(texts, [[text] for text in texts]), options))


@pytest.mark.parametrize(
    ("metric", "text", "options", "expected"),
    [
        ("rouge", HINDI, {}, "1 of 1 references lose most or all of their text .* tokens: unicode"),
        ("rouge", RUSSIAN, {"stemmer": False}, "lose most or all"),
        ("rouge", FRENCH, {}, "lose some of their letters"),
        ("rouge", "?!? ...", {}, "lose most or all"),
        ("rouge", "🙂🙂", {"tokens": "unicode"}, "lose most or all"),
        ("bleu", CHINESE, {}, "have no spaces between words .* tokenize"),
        ("bleu", THAI, {"protocol": "dart"}, "have no spaces .* the protocol dart is for English"),
        ("bleu", HINDI, {"protocol": "webnlg"}, "lose most or all .* the protocol webnlg is for English"),
        ("bleu", CHINESE, {"protocol": "e2e"}, "have no spaces"),
        ("nist", CHINESE, {}, "have no spaces"),
        ("ter", THAI, {}, "have no spaces .* asian_support"),
        ("ter", HINDI, {"protocol": "webnlg"}, "lose most or all"),
        ("meteor", RUSSIAN, {}, "not in Latin letters"),
        ("bleu", "two words", {}, "no reference has 4 words, so BLEU is 0"),
        ("cider", "one example", {}, "CIDEr of a single example is always 0"),
    ],
)
def test_references_that_a_metric_cannot_read_are_noticed(metric, text, options, expected):
    assert re.search(expected, noticed(metric, [text], **options))


@pytest.mark.parametrize(
    ("metric", "text", "options"),
    [
        ("rouge", ENGLISH, {"tokens": "unicode"}),
        ("rouge", HINDI, {"tokens": "unicode"}),
        ("rouge", CHINESE, {"tokens": "unicode"}),
        ("bleu", "यह एक सुंदर दिन है और", {}),
        ("bleu", CHINESE, {"tokenize": "zh"}),
        ("bleu", CHINESE, {"tokenize": "char", "groups": True}),
        ("bleu", "two words", {"max_ngram_order": 2}),
        ("bleu", "two words", {"protocol": "e2e"}),
        ("bleu", ENGLISH, {"protocol": "webnlg"}),
        ("ter", CHINESE, {"normalized": True, "asian_support": True}),
        ("chrf", THAI, {}),
        ("meteor", FRENCH, {}),
        ("nist", FRENCH, {}),
    ],
)
def test_no_notice_where_words_are_found(metric, text, options):
    assert not noticed(metric, [text], **options)


def test_some_accents_in_english_are_no_notice():
    assert not noticed("rouge", [ENGLISH, *["all plain words"] * 10])
    assert "2 of 12 references" in noticed("rouge", [RUSSIAN, HINDI, *["all plain words"] * 10])


def test_tokenised_hypotheses_are_noticed_once_and_sacrebleu_says_nothing(monkeypatch, caplog):
    import metrics

    monkeypatch.setattr(metrics, "_CHUNK", 100)
    texts = ["the cat sat on the mat ."] * 300
    score("bleu", texts, [[text] for text in texts], protocol="webnlg")
    scores = [score("bleu", texts, [[text] for text in texts], **options) for options in ({}, {"force": True})]
    assert scores[0] == scores[1] and not caplog.records
    assert "300 of 300 hypotheses end in ' .'" in noticed("bleu", texts)
    for options in ({"force": True}, {"tokenize": "none"}, {"protocol": "dart"}):
        assert not noticed("bleu", texts, **options)


def test_unknown_subwords_of_bertscores_model_are_noticed(tmp_path):
    pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "mat", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 8}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert "lose most or all" in noticed("bertscore", [HINDI], model=str(tmp_path), layer=1)
    assert not noticed("bertscore", ["the mat"], model=str(tmp_path), layer=1)


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "options"), [("rouge", {}), ("ter", {}), ("ter", {"protocol": "webnlg"}), ("chrf", {}), ("bleu", {})]
)
def test_any_number_of_processes_gives_the_same(metric, options, monkeypatch):
    import metrics

    monkeypatch.setattr(metrics, "_FEW", 0)
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    hypotheses, references = corpus(30)
    one, two = (statistics(metric, Segments(hypotheses, references, threads), options) for threads in (1, 2))
    assert (one.rows == two.rows).all() and one.signature == two.signature


@pytest.mark.parametrize(("metric", "name"), [("bleu", "BLEU"), ("chrf", "CHRF"), ("ter", "TER")])
def test_intervals_and_tests_are_those_of_sacrebleu(metric, name, monkeypatch):
    from sacrebleu import metrics
    from sacrebleu.significance import PairedTest

    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    hypotheses, references = corpus(25)
    references = [texts[:1] for texts in references]
    others = [text.replace("w1", "w2") for text in hypotheses]
    streams = [[texts[0] for texts in references]]
    ours = [statistics(metric, Segments(texts, references), {}) for texts in (hypotheses, others)]

    theirs = getattr(metrics, name)().corpus_score(hypotheses, streams, n_bootstrap=100)
    [(low, high)] = intervals(ours[0], samples=100)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=1e-4)
    [found] = compare(*ours, samples=100, trials=200)
    for kind, samples, value in (("bs", 100, found.bootstrap), ("ar", 200, found.randomisation)):
        systems = [("one", hypotheses), ("other", others)]
        _, result = PairedTest(systems, {name: getattr(metrics, name)()}, streams, kind, samples)()
        [scores] = [scores for key, scores in result.items() if key != "System"]
        assert value == pytest.approx(scores[1].p_value)


def test_a_subset_scores_as_if_alone():
    hypotheses, references = corpus(12)
    picked = np.array([1, 4, 5, 9])
    for metric in ("bleu", "chrf", "ter", "rouge"):
        part = statistics(metric, Segments(hypotheses, references), {}).subset(picked)
        alone = statistics(metric, Segments([hypotheses[i] for i in picked], [references[i] for i in picked]), {})
        assert part.scores() == pytest.approx(alone.scores())


def test_bertscore_says_what_it_needs():
    with pytest.raises(UserError, match="bertscore needs the (package bert-score|options model)"):
        score("bertscore", ["a"], [["a"]])


@pytest.mark.parametrize(
    ("metric", "options"),
    [("bleu", {}), ("bleu", {"protocol": "e2e"}), ("nist", {}), ("ter", {"protocol": "dart"}), ("chrf", {})]
    + [("rouge", {}), ("rouge", {"types": ["rouge3", "rougeLsum"]})],
)
def test_planning_knows_the_names_of_the_scores(metric, options):
    found = statistics(metric, Segments(["a b c d"], [["a b c d e"]]), options)
    assert score_names(metric, options) == list(found.names) and all(map(is_score, found.names))
