"""The metrics. Each turns hypotheses and references into one row of statistics per segment, whose sums make the scores.

Rows are what confidence intervals, significance tests and splits of the test set are made of. sacrebleu, rouge-score
and pycocoevalcap do the counting wherever they give the official number; `protocol` in a metric's options asks for the
official evaluation of one data set. docs/scores.md says for each task what is computed how.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import java_tools
import numpy as np
import regex
from common import OFFICIAL_REFERENCES, UserError, progress

# The metrics of each protocol's leaderboard. A protocol also fixes how texts are prepared and which references count.
# e2e is the default of e2e-metrics (Perl), e2e-python its option -p; dart-v1.0 is how DART's first release was scored.
E2E = ("e2e", "e2e-python")
PROTOCOLS = {
    **dict.fromkeys(E2E, ("bleu", "nist", "meteor", "rouge", "cider")),
    "webnlg": ("bleu", "meteor", "ter"),
    "dart": ("bleu", "meteor", "ter"),
    "dart-v1.0": ("bleu", "meteor", "ter"),
}
# The categories of WebNLG 2017: those of its training data, and those that only its test set has.
SEEN = frozenset(
    "Airport Astronaut Building City ComicsCharacter Food Monument SportsTeam University WrittenWork".split()
)
UNSEEN = frozenset("Artist Athlete CelestialBody MeanOfTransportation Politician".split())
ROUGE_TYPES = ["rouge1", "rouge2", "rougeL"]
_CHUNK = 256
_FEW = 1000  # segments for which a second process costs more than it brings


class Statistics:
    """Rows of one metric's statistics, (segments, columns), and what makes scores of their sums."""

    def __init__(
        self, names: Sequence[str], rows: Iterable, compute: Callable[[np.ndarray], Sequence[float]], signature: str
    ) -> None:
        self.names, self.compute, self.signature = tuple(names), compute, signature
        self.rows = np.array(rows, dtype=float)

    def scores(self) -> list[float]:
        return [float(score) for score in self.compute(self.rows.sum(axis=0))]

    def subset(self, segments: np.ndarray) -> Statistics:
        """The statistics of some segments; weights that come from the whole test set (NIST, CIDEr) stay as they are."""
        return Statistics(self.names, self.rows[segments], self.compute, self.signature)


@dataclass(frozen=True)
class Segments:
    """What is scored: hypotheses and the references of each, and how much of the machine may be used."""

    hypotheses: list[str]
    references: list[list[str]]
    threads: int = 1
    java_memory: str = "2G"

    def count(self) -> str:
        """The number of references, as signatures have it."""
        numbers = {len(texts) for texts in self.references}
        return str(numbers.pop()) if len(numbers) == 1 else "var"


@dataclass(frozen=True)
class Metric:
    """One metric: its function, the names of its own options, what it lacks on this machine, and what it compares."""

    statistics: Callable[[Segments, dict], Statistics]
    options: tuple[str, ...] = ()
    missing: Callable[[dict], str | None] = lambda options: None
    # The words that it compares of each text, for `notices`, and what to do where it finds none.
    words: Callable[[list[str], dict, str], list[list[str]]] | None = None
    advice: str = "use chrf"


def statistics(metric: str, segments: Segments, options: dict) -> Statistics:
    """The statistics of a metric with its options.

    Raises:
        UserError: an option is unknown or does not suit the metric, or what it needs is not installed.
    """
    check_options(metric, options)
    if reason := unavailable(metric, options):
        raise UserError(f"{metric} {reason}")
    own = _without(options, "groups")
    if protocol := own.get("protocol"):
        segments = prepared(protocol, metric, segments)
    result = METRICS[metric].statistics(segments, own)
    if protocol:
        result.signature += f"|protocol:{protocol}"
    return result


def check_options(metric: str, options: dict) -> None:
    """Refuse what the metric does not know, and options beside a protocol, which leaves nothing open."""
    known = (*METRICS[metric].options, *(["protocol"] if _protocols(metric) else []), "groups")
    for name in options:
        if name not in known:
            raise UserError(f"unknown option {name!r} for {metric}; it knows: {', '.join(known)}")
    protocol = options.get("protocol")
    if protocol is not None and protocol not in _protocols(metric):
        raise UserError(f"{metric} has no protocol {protocol!r}; it has: {', '.join(_protocols(metric))}")
    if protocol is not None and (beside := sorted(set(options) - {"protocol", "groups"})):
        raise UserError(f"{metric}: the protocol {protocol} says how it is computed; leave out {', '.join(beside)}")
    if not isinstance(options.get("groups", False), bool):
        raise UserError(f"{metric}: groups is true or false, not {options['groups']!r}")


def unavailable(metric: str, options: dict) -> str | None:
    """Why the metric cannot be computed on this machine, as the end of a sentence; None where it can."""
    return METRICS[metric].missing(options)


def score_names(metric: str, options: dict) -> list[str]:
    """The names of the scores that a metric with these options gives."""
    if metric != "rouge":
        return [metric]
    return ["rougeL"] if options.get("protocol") in E2E else list(options.get("types", ROUGE_TYPES))


def is_score(name: str) -> bool:
    """Whether some metric gives a score of this name."""
    return re.fullmatch(r"rouge([1-9]|L|Lsum)", name) is not None or name in METRICS.keys() - {"rouge"}


def _protocols(metric: str) -> list[str]:
    return [name for name, metrics in PROTOCOLS.items() if metric in metrics]


def _signature(segments: Segments, **parts: object) -> str:
    return "|".join(f"{key}:{value}" for key, value in {"nrefs": segments.count(), **parts}.items())


def _options_error(metric: str, options: dict, error: Exception) -> UserError:
    return UserError(f"the options {json.dumps(options)} do not suit {metric} ({error})")


def _mean(names: Sequence[str], values: Iterable, signature: str, scale: float = 100) -> Statistics:
    """The statistics of scores that are means over the segments; the last column counts them."""
    columns = np.array(values, dtype=float).reshape(-1, len(names))
    rows = np.column_stack([columns, np.ones(len(columns))])
    return Statistics(names, rows, lambda sums: scale * sums[:-1] / sums[-1], signature)


# Protocols ------------------------------------------------------------------------------------------------------------


def prepared(protocol: str, metric: str, segments: Segments) -> Segments:
    """Texts and references as the official scripts of a data set hand them to the metric."""
    if protocol == "webnlg":
        prepare_hypothesis, prepare_reference = webnlg_hypothesis, webnlg_reference
    elif protocol == "dart":
        prepare_hypothesis = prepare_reference = dart_text
    elif protocol == "dart-v1.0":
        prepare_hypothesis = prepare_reference = str.strip
    else:
        return segments
    references = [[prepare_reference(text) for text in texts[:OFFICIAL_REFERENCES]] for texts in segments.references]
    if metric == "bleu":  # multi-bleu.perl takes a missing line for a reference of no words
        references = [texts + [""] * (OFFICIAL_REFERENCES - len(texts)) for texts in references]
    return replace(segments, hypotheses=list(map(prepare_hypothesis, segments.hypotheses)), references=references)


def webnlg_hypothesis(text: str) -> str:
    """A hypothesis as the official script of WebNLG 2017 prepares it: in ASCII first, then split."""
    from unidecode import unidecode

    return _split_words(unidecode(unidecode(text.strip()).lower()))


def webnlg_reference(text: str) -> str:
    """A reference as the official script of WebNLG 2017 prepares it: split first, then in ASCII."""
    from unidecode import unidecode

    return unidecode(_split_words(text).lower())


def dart_text(text: str) -> str:
    """A text as DART's reference files have it; what is in that form already stays as it is."""
    return _split_words(text).lower()


def _split_words(text: str) -> str:
    return " ".join(" ".join(re.split(r"(\W)", text)).split())


# Many segments, several processes -------------------------------------------------------------------------------------


def _rows(function: Callable[[list], list], segments: Segments, description: str) -> list:
    """Rows of all segments in order, whatever the number of processes; `function` makes those of some pairs."""
    pairs = list(zip(segments.hypotheses, segments.references, strict=True))
    chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
    rows: list = []
    with progress(None, description, total=len(pairs)) as bar:
        for part in _mapped(function, chunks, 1 if len(pairs) < _FEW else segments.threads):
            rows += part
            bar.update(len(part))
    return rows


def _mapped(function: Callable, chunks: list, threads: int) -> Iterable:
    if threads == 1:
        yield from map(function, chunks)
        return
    # Spawned, not forked: progress bars have a thread, and a fork copies the locks it may hold.
    with ProcessPoolExecutor(threads, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, chunks)


# Metrics of sacrebleu -------------------------------------------------------------------------------------------------


def _sacrebleu_rows(class_name: str, options: dict, pairs: list) -> list:
    from sacrebleu import metrics

    hypotheses, references = zip(*pairs, strict=True)
    width = max(map(len, references))
    # One stream per reference number; None, unlike "", is no reference at all.
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(width)]
    return getattr(metrics, class_name)(**options)._extract_corpus_statistics(hypotheses, streams)


def _bleu_rows(options: dict, pairs: list) -> list:
    # sacrebleu would warn of tokenised texts for each chunk; `notices` does so once.
    return _sacrebleu_rows("BLEU", {**options, "force": True}, pairs)


def _ter_rows(options: dict, pairs: list) -> list:
    from sacrebleu.metrics import TER
    from ter import sacrebleu_edits

    metric = TER(**options)
    return _edit_rows(lambda text: metric._preprocess_segment(text).split(), sacrebleu_edits, pairs)


def _tercom_rows(pairs: list) -> list:
    from ter import tercom_edits

    return _edit_rows(lambda text: text.lower().split(), lambda *words: tercom_edits(*words).count, pairs)


def _edit_rows(split: Callable[[str], list[str]], edits: Callable[[list, list], int], pairs: list) -> list:
    """For every segment the edits to the nearest reference, and the mean length of all."""
    rows = []
    for hypothesis, references in pairs:
        words, others = split(hypothesis), [split(text) for text in references]
        rows.append([min(edits(words, other) for other in others), sum(map(len, others)) / len(others)])
    return rows


def _sacrebleu(
    name: str, class_name: str, rows: Callable[[dict, list], list]
) -> Callable[[Segments, dict], Statistics]:
    """The function of a metric of sacrebleu; its options are the arguments of sacrebleu's class."""

    def make(segments: Segments, options: dict) -> Statistics:
        from sacrebleu import metrics

        count = segments.count()
        try:
            metric = getattr(metrics, class_name)(**options)
            metric.corpus_score(["a b c d"], [["a b c d"]])  # some options are looked at only now
            metric.num_refs = -1 if count == "var" else int(count)
            signature = metric.get_signature().format() + _unsigned(options)
        except (TypeError, ValueError, AssertionError, LookupError, ImportError, RuntimeError, OSError) as error:
            raise _options_error(name, options, error) from None
        return Statistics(
            [name],
            _rows(functools.partial(rows, options), segments, name),
            lambda sums: [metric._compute_score_from_stats(list(sums)).score],
            signature,
        )

    return make


def _unsigned(options: dict) -> str:
    """The options that sacrebleu's own signature says nothing of."""
    return "".join(f"|{name}:{options[name]}" for name in ("max_ngram_order", "beta") if name in options)


_generic_bleu = _sacrebleu("bleu", "BLEU", _bleu_rows)
_generic_ter = _sacrebleu("ter", "TER", _ter_rows)


def bleu(segments: Segments, options: dict) -> Statistics:
    """Return BLEU of sacrebleu; for E2E that of mteval in e2e-metrics, for WebNLG and DART that of multi-bleu.perl."""
    protocol = options.get("protocol")
    if protocol in E2E:
        return _mteval_bleu(segments, protocol)
    return _generic_bleu(segments, _multi_bleu(protocol) if protocol else options)


def _multi_bleu(protocol: str) -> dict:
    """The options with which sacrebleu equals multi-bleu.perl: with its option -lc, except for DART v1.0."""
    return {"lowercase": protocol != "dart-v1.0", "tokenize": "none", "smooth_method": "none"}


def ter(segments: Segments, options: dict) -> Statistics:
    """TER by sacrebleu; for webnlg and dart as tercom 0.7.25 with its default options."""
    if "protocol" not in options:
        return _generic_ter(segments, options)
    signature = _signature(segments, case="lc", tok="tercom", norm="no", punct="yes", version="tercom-0.7.25")
    return Statistics(["ter"], _rows(_tercom_rows, segments, "ter"), _tercom_score, signature)


def _tercom_score(sums: np.ndarray) -> list[float]:
    return [100 * sums[0] / sums[1] if sums[1] else 100.0 * bool(sums[0])]


# BLEU and NIST of e2e-metrics -----------------------------------------------------------------------------------------
# Its measure_scores.py runs mteval-v13a-sig.pl, from which the published scores come, or with -p the module pymteval.
# Both differ from sacrebleu's BLEU in short and empty texts, and from nltk's NIST, which takes the best reference where
# they take the n-grams of all. The modes differ from each other in NIST's length penalty, and in short and empty texts.

_NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def _mteval_tokens(texts: Iterable[str], python: bool) -> list[list[str]]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenise = Tokenizer13a()
    if python:
        return [tokenise(text.strip()).lower().split(" ") for text in texts]
    return [tokenise(text).translate(_ASCII_LOWER).split() for text in texts]


def _ngrams(words: list[str], order: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _hits(hypothesis: list[str], references: list[list[str]], order: int) -> Counter:
    """The n-grams of a hypothesis that references have, each at most as often as one of them has it."""
    most: Counter = Counter()
    for reference in references:
        most |= _ngrams(reference, order)
    return _ngrams(hypothesis, order) & most


def _mteval_counts(hypothesis: list[str], orders: int, python: bool) -> list[int]:
    """The numbers of n-grams of a hypothesis; pymteval lets a short text take away from those of others."""
    counts = [len(hypothesis) - order + 1 for order in range(1, orders + 1)]
    return counts if python else [max(count, 0) for count in counts]


def _mteval_bleu(segments: Segments, protocol: str) -> Statistics:
    python, rows = protocol == "e2e-python", []
    for hypothesis, references in progress(_tokenised(segments, python), "bleu", total=len(segments.hypotheses)):
        hits = [_hits(hypothesis, references, order).total() for order in range(1, 5)]
        closest = min(map(len, references), key=lambda length: (abs(length - len(hypothesis)), length))  # noqa: B023
        rows.append([*hits, *_mteval_counts(hypothesis, 4, python), closest])
    score = _pymteval_bleu_score if python else _perl_bleu_score
    return Statistics(["bleu"], rows, score, _mteval_signature(segments, python))


def _perl_bleu_score(sums: np.ndarray) -> list[float]:
    hits, lengths, reference = sums[:4], sums[4:8], sums[8]
    if not lengths[0]:
        return [0.0]
    logarithms, smooth = 0.0, 1
    for hit, length in zip(hits[lengths > 0], lengths[lengths > 0], strict=True):
        smooth = smooth if hit else 2 * smooth
        logarithms += math.log((hit or 1 / smooth) / length)
    return [100 * math.exp(min(0, 1 - reference / lengths[0]) + logarithms / 4)]


def _pymteval_bleu_score(sums: np.ndarray) -> list[float]:
    hits, lengths, reference = sums[:4], sums[4:8], sums[8]
    penalty = math.exp(1 - reference / (lengths[0] or 1e-5)) if lengths[0] <= reference else 1
    precisions = [max(hit, 1e-15) / max(length, 1e-9) for hit, length in zip(hits, lengths, strict=True)]
    return [100 * penalty * math.exp(sum(map(math.log, precisions)) / 4)]


def nist(segments: Segments, options: dict) -> Statistics:
    """Return NIST over 1- to 5-grams as mteval computes it; the weight of an n-gram comes from all references.

    The length penalty compares a hypothesis with the mean length of references. Perl's mteval takes the mean over all
    references of the test set, in which a segment with many references weighs more. pymteval takes the mean of each
    segment first.
    """
    python = options.get("protocol") == "e2e-python"
    tokenised = list(_tokenised(segments, python))
    counts: Counter = Counter()
    for _, references in tokenised:
        for reference in references:
            counts[()] += len(reference)
            for order in range(1, 6):
                counts.update(_ngrams(reference, order))
    rows = []
    for hypothesis, references in progress(tokenised, "nist"):
        gains = [
            sum(
                hits * math.log2(counts[ngram[:-1]] / counts[ngram])
                for ngram, hits in _hits(hypothesis, references, order).items()
            )
            for order in range(1, 6)
        ]
        words, number = sum(map(len, references)), len(references)
        means = [words / number, 1] if python else [words, number]
        rows.append([*gains, *_mteval_counts(hypothesis, 5, python), *means, 1])
    return Statistics(["nist"], rows, _nist_score, _mteval_signature(segments, python))


def _nist_score(sums: np.ndarray) -> list[float]:
    gains, lengths, (words, number, segments) = sums[:5], sums[5:10], sums[10:]
    ratio = lengths[0] / (words / number * segments) if words else 1
    penalty = 1 if ratio >= 1 else math.exp(-_NIST_BETA * math.log(ratio) ** 2) if ratio > 0 else 0
    return [penalty * sum(gain / length for gain, length in zip(gains, lengths, strict=True) if length > 0)]


def _tokenised(segments: Segments, python: bool) -> Iterable[tuple[list[str], list[list[str]]]]:
    references = (_mteval_tokens(texts, python) for texts in segments.references)
    return zip(_mteval_tokens(segments.hypotheses, python), references, strict=True)


def _mteval_signature(segments: Segments, python: bool) -> str:
    parts = {"smooth": "none", "version": "pymteval"} if python else {"smooth": "exp", "version": "mteval-v13a"}
    return _signature(segments, case="lc", tok="13a", **parts)


# Metrics of pycocoevalcap ---------------------------------------------------------------------------------------------

_METEOR_ALPHA, _METEOR_BETA, _METEOR_GAMMA, _METEOR_DELTA = 0.85, 0.2, 0.6, 0.75
_METEOR_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def _ptb(segments: Segments) -> Segments:
    """The segments as the evaluation of COCO captions tokenises them, which that of E2E took over."""
    flat = tuple(text for texts in segments.references for text in texts)
    tokenised = iter(java_tools.ptb_tokens(flat, segments.java_memory))
    references = [[next(tokenised) for _ in texts] for texts in segments.references]
    hypotheses = list(java_tools.ptb_tokens(tuple(segments.hypotheses), segments.java_memory))
    return replace(segments, hypotheses=hypotheses, references=references)


def meteor(segments: Segments, options: dict) -> Statistics:
    """METEOR 1.5 with the parameters for English, case folded and normalised by the program itself."""
    e2e = options.get("protocol") in E2E
    segments = _ptb(segments) if e2e else segments
    rows = np.array(
        java_tools.meteor_statistics(segments.hypotheses, segments.references, segments.java_memory), dtype=float
    )
    # A match of everything in one chunk is no fragmentation, and the program leaves it out of its sums.
    rows[_matched_whole(rows), 20] = 0
    signature = _signature(segments, case="lc", tok="ptb+norm" if e2e else "norm", version=1.5)
    return Statistics(["meteor"], rows, _meteor_score, signature)


def _matched_whole(rows: np.ndarray) -> np.ndarray:
    stages = rows[..., 4:20].reshape(*rows.shape[:-1], 4, 4)
    matches = stages[..., 0].sum(-1) + stages[..., 2].sum(-1), stages[..., 1].sum(-1) + stages[..., 3].sum(-1)
    return (matches[0] == rows[..., 0]) & (matches[1] == rows[..., 1]) & (rows[..., 20] == 1)


def _meteor_score(sums: np.ndarray) -> list[float]:
    """METEOR of summed statistics (Denkowski and Lavie, 2014): weighted matches, length, and how they are broken up."""
    delta, stages = _METEOR_DELTA, sums[4:20].reshape(4, 4)
    content, function = stages[:, :2].T @ _METEOR_WEIGHTS, stages[:, 2:].T @ _METEOR_WEIGHTS
    matches = delta * content + (1 - delta) * function
    lengths = delta * (sums[:2] - sums[2:4]) + (1 - delta) * sums[2:4]
    if not (matches > 0).all():
        return [0.0]
    precision, recall = matches / lengths
    mean = 1 / ((1 - _METEOR_ALPHA) / precision + _METEOR_ALPHA / recall)
    broken = 0 if _matched_whole(sums) else sums[20] / (sums[21:23].sum() / 2)
    return [100 * max(0.0, mean * (1 - _METEOR_GAMMA * broken**_METEOR_BETA))]


def cider(segments: Segments, options: dict) -> Statistics:
    """CIDEr-D as the evaluation of COCO captions has it, 0 to 10; weights of n-grams come from all references."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    tokenised, scorer = _ptb(segments), CiderScorer(n=4, sigma=6.0)
    if not any(map("".join, tokenised.references)):  # the scorer needs an n-gram
        return _mean(["cider"], [0.0] * len(segments.hypotheses), _coco_signature(segments), scale=1)
    for hypothesis, references in zip(tokenised.hypotheses, tokenised.references, strict=True):
        scorer += (hypothesis, references)
    _, values = scorer.compute_score()
    return _mean(["cider"], values, _coco_signature(segments), scale=1)


def _coco_rouge(segments: Segments) -> Statistics:
    """ROUGE-L as the evaluation of COCO captions has it: beta 1.2, the best precision and recall of any reference."""
    from pycocoevalcap.rouge.rouge import Rouge

    tokenised, scorer = _ptb(segments), Rouge()
    values = [
        scorer.calc_score([hypothesis], references)
        for hypothesis, references in zip(tokenised.hypotheses, tokenised.references, strict=True)
    ]
    return _mean(["rougeL"], values, _coco_signature(segments))


def _coco_signature(segments: Segments) -> str:
    version = importlib.metadata.version("pycocoevalcap")
    return _signature(segments, case="lc", tok="ptb", stem="no", version=f"pycocoevalcap-{version}")


# ROUGE ----------------------------------------------------------------------------------------------------------------


def rouge(segments: Segments, options: dict) -> Statistics:
    """Return the mean F of rouge-score over the segments; of several references the best, or their mean, per type.

    Options: `tokens`, rouge-score's (a to z and 0 to 9) or `unicode`; `perl`, the stems of ROUGE-1.5.5.
    """
    if options.get("protocol") in E2E:
        return _coco_rouge(segments)
    types, tokens = options.get("types", ROUGE_TYPES), options.get("tokens", "rouge-score")
    stemmer, perl = options.get("stemmer", tokens == "rouge-score"), options.get("perl", False)
    several = options.get("references", "best")
    if not (isinstance(types, list) and types and isinstance(stemmer, bool) and several in ("best", "mean")):
        raise UserError(
            "rouge: types is a list such as [rouge1, rougeL], stemmer is true or false, and references is best or mean"
        )
    if tokens not in ("rouge-score", "unicode") or not isinstance(perl, bool):
        raise UserError("rouge: tokens is rouge-score or unicode, and perl is true or false")
    if perl and {"tokens", "stemmer"} & set(options):
        raise UserError("rouge: perl fixes tokens and stemmer; leave these out")
    stem = "perl" if perl else "porter" if stemmer else "no"
    rows_of = functools.partial(_rouge_rows, types, tokens, stem, np.max if several == "best" else np.mean)
    try:
        rows_of([("", [""])])
    except (TypeError, ValueError) as error:
        raise _options_error("rouge", options, error) from None
    rows = _rows(rows_of, segments, "rouge")
    parts = {"refs": several, "agg": "mean", "case": "lc", "tok": tokens, "stem": stem}
    if perl:
        parts["stem"] = f"wordnet2.0+porter1980(py-rouge-{importlib.metadata.version('py-rouge')})"
    if "rougeLsum" in types:
        parts["sent"] = ".?!" if tokens == "rouge-score" else "unicode"
    return _mean(types, rows, _signature(segments, **parts, version=importlib.metadata.version("rouge-score")))


def _rouge_rows(types: list[str], tokens: str, stem: str, of_several: Callable, pairs: list) -> list:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rows = RougeScorer(types, tokenizer=_rouge_tokenizer(tokens, stem)), []
    sentences = functools.partial(_SENTENCE_END[tokens].sub, "\n")
    for hypothesis, references in pairs:
        found = [scorer.score(sentences(text), sentences(hypothesis)) for text in references]
        rows.append([of_several([scores[name].fmeasure for scores in found]) for name in types])
    return rows


@functools.cache
def _rouge_tokenizer(tokens: str, stem: str):
    """A tokeniser for rouge-score that remembers the stems it has seen: stemming takes most of the time."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score import tokenize
    from rouge_score.tokenizers import Tokenizer

    porter = PorterStemmer(PorterStemmer.ORIGINAL_ALGORITHM if stem == "perl" else PorterStemmer.NLTK_EXTENSIONS)
    known = _irregular_forms() if stem == "perl" else {}

    @functools.cache
    def stemmed(word: str) -> str:
        if stem == "no" or len(word) <= 3:
            return word
        return known.get(word) or porter.stem(word)

    class Remembering(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            words = unicode_words(text) if tokens == "unicode" else tokenize.tokenize(text, None)
            return list(map(stemmed, words))

    return Remembering()


def _irregular_forms() -> dict[str, str]:
    """WordNet 2.0's irregular forms, in which ROUGE-1.5.5 looks a word up before it stems it; py-rouge has the list.

    Only the file is read: the package's module is called `rouge`, as those of other packages are.
    """
    path = importlib.metadata.distribution("py-rouge").locate_file("rouge/wordnet_key_value.txt")
    with open(path, encoding="utf-8") as file:
        return dict(line.rstrip("\n").split("|") for line in file)


# One sentence a line, as rougeLsum expects it; to the other types a line break is a space.
_SENTENCE_END = {
    "rouge-score": regex.compile(r"(?<=[.?!])\s+"),
    "unicode": regex.compile(r"(?<=[.?!।॥۔؟])\s+|(?<=[。．？！])\s*"),
}
# Scripts that put no space between words. Each of their characters, with its marks, is a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORDS = regex.compile(rf"(?V1)[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+")


def unicode_words(text: str) -> list[str]:
    """Return the runs of letters, marks and digits of any script, in lower case and in compatibility form (NFKC)."""
    joined = text.replace("\u200c", "").replace("\u200d", "")  # they shape letters within a word
    return _WORDS.findall(unicodedata.normalize("NFKC", joined).lower())


# BERTScore ------------------------------------------------------------------------------------------------------------


def bertscore(segments: Segments, options: dict) -> Statistics:
    """F of BERTScore with a model from a directory; of several references the best counts. Nothing is downloaded."""
    model, layer = options.get("model"), options.get("layer")
    if not (isinstance(model, str) and os.path.isfile(os.path.join(model, "config.json")) and isinstance(layer, int)):
        raise UserError("bertscore needs the options model, a directory with config.json, and layer, such as 17")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    # Empty texts score 0 there; bert-score cannot encode them with newer versions of transformers.
    kept = [index for index, text in enumerate(segments.hypotheses) if text.strip()]
    values = np.zeros(len(segments.hypotheses))
    try:
        from bert_score import BERTScorer

        scorer = BERTScorer(model_type=model, num_layers=layer, nthreads=segments.threads)
        if kept:
            chosen = [segments.hypotheses[index] for index in kept], [segments.references[index] for index in kept]
            values[kept] = scorer.score(*chosen)[2].numpy()
    except (ImportError, OSError, ValueError, AssertionError, KeyError, AttributeError, OverflowError) as error:
        raise _options_error("bertscore", options, error) from None
    parts = {"model": os.path.basename(os.path.normpath(model)), "layer": layer, "idf": "no"}
    signature = _signature(segments, **parts, version=importlib.metadata.version("bert-score"))
    return _mean(["bertscore"], values, signature)


# What a metric does not see -------------------------------------------------------------------------------------------
# A tokeniser made for English can leave nothing of another script, or take a sentence for a word. The score is then 0,
# or close to it, even where hypothesis and reference are the same.

_LETTERS = regex.compile(r"[\p{L}\p{M}\p{N}]")
_PLAIN = regex.compile(r"[A-Za-z0-9]")
_SENTENCE_OF_ONE_WORD = regex.compile(rf"(?:[{_UNSPACED}]\p{{M}}*){{4,}}")
_NOT_LATIN = regex.compile(r"(?V1)[\p{L}--\p{Latin}]")
_TOKENISED = 100  # hypotheses that end in " .": sacrebleu's threshold


def notices(metric: str, segments: Segments, options: dict) -> list[str]:
    """Return sentences that say why a score is low for another reason than the hypotheses; [] in most cases.

    Each reference is compared with itself: the words that it has both as a hypothesis and as a reference are what a
    perfect hypothesis can match.
    """
    options, total = _without(options, "groups"), sum(map(len, segments.references))
    protocol = options.get("protocol")
    advice = f"the protocol {protocol} is for English; use chrf" if protocol else METRICS[metric].advice
    found, states = [], _states(metric, segments, options)
    for state, problem in _PROBLEMS.items():
        # Single letters are lost in English, too: accents of a few names.
        if len(examples := states.get(state, [])) > (total / 10 if state == "damaged" else 0):
            found.append(f"{len(examples):,} of {total:,} references {problem}, such as {examples[0][:40]!r}; {advice}")
    if metric == "bleu" and not protocol:
        found += _bleu_notices(segments, options)
    if metric == "meteor":
        texts = [text for references in segments.references for text in references]
        if number := sum(2 * len(_NOT_LATIN.findall(text)) > _letters(text) for text in texts if not text.isascii()):
            found.append(
                f"{number:,} of {total:,} references are not in Latin letters, but METEOR's stems, synonyms and "
                "function words are those of English; use chrf"
            )
    if metric == "cider" and len(segments.references) == 1:
        found.append("CIDEr of a single example is always 0: no n-gram is rarer than another")
    return found


def _bleu_notices(segments: Segments, options: dict) -> list[str]:
    found, order = [], options.get("max_ngram_order", 4)
    texts = [text for references in segments.references for text in references]
    short = not any(text.count(" ") >= order for text in texts)
    if short and not options.get("effective_order") and max(map(len, _bleu_words(texts, options, ""))) < order:
        found.append(
            f"no reference has {order} words, so BLEU is 0 for any hypothesis; set max_ngram_order or use chrf"
        )
    ends = sum(text.endswith(" .") for text in segments.hypotheses)
    if ends >= _TOKENISED and not options.get("force") and options.get("tokenize") != "none":
        found.append(
            f"{ends:,} of {len(segments.hypotheses):,} hypotheses end in ' .' as tokenised text does, but BLEU "
            "tokenises by itself; give detokenised text, or hide this notice with the option force: true"
        )
    return found


def _states(metric: str, segments: Segments, options: dict) -> dict[str, list[str]]:
    """The references that are lost, unsplit or damaged, by these names; only texts that may be are looked at."""
    texts = [text for references in segments.references for text in references]
    doubtful = [text for text in texts if not (text.isascii() and _PLAIN.search(text))]
    words, states = METRICS[metric].words, {}
    if words and doubtful:
        sides = Segments(doubtful, [[text] for text in doubtful])
        if protocol := options.get("protocol"):
            sides = prepared(protocol, metric, sides)
        as_hypotheses, as_references = (
            words(side, options, segments.java_memory)
            for side in (sides.hypotheses, [first for first, *_ in sides.references])
        )
        for text, *both in zip(doubtful, as_hypotheses, as_references, strict=True):
            states.setdefault(_state(text, *both), []).append(text)
    return states


_PROBLEMS = {
    "lost": "lose most or all of their text when they are split into words",
    "unsplit": "have no spaces between words and are compared as whole sentences",
    "damaged": "lose some of their letters",
}


def _state(text: str, as_hypothesis: list[str], as_reference: list[str]) -> str:
    """What becomes of a text that is scored against itself: a key of `_PROBLEMS`, or "fine"."""
    common = list((Counter(as_hypothesis) & Counter(as_reference)).elements())
    whole = max(_letters(unicodedata.normalize("NFKC", text)), _letters("".join(as_reference)))
    kept = _letters("".join(common))
    if not common or 2 * kept < whole:
        return "lost"
    if 2 * sum(_letters(word) for word in common if _SENTENCE_OF_ONE_WORD.search(word)) > whole:
        return "unsplit"
    return "damaged" if kept < whole else "fine"


def _letters(text: str) -> int:
    return len(_LETTERS.findall(text))


def _bleu_words(texts: list[str], options: dict, memory: str) -> list[list[str]]:
    from sacrebleu.metrics import BLEU

    if (protocol := options.get("protocol")) in E2E:
        return _mteval_tokens(texts, protocol == "e2e-python")
    metric = BLEU(**(_multi_bleu(protocol) if protocol else options))
    return [metric._preprocess_segment(text).split() for text in texts]


def _nist_words(texts: list[str], options: dict, memory: str) -> list[list[str]]:
    return _mteval_tokens(texts, options.get("protocol") == "e2e-python")


def _ter_words(texts: list[str], options: dict, memory: str) -> list[list[str]]:
    from sacrebleu.metrics import TER

    if "protocol" in options:
        return [text.lower().split() for text in texts]
    metric = TER(**options)
    return [metric._preprocess_segment(text).split() for text in texts]


def _rouge_words(texts: list[str], options: dict, memory: str) -> list[list[str]]:
    if "protocol" in options:
        return _ptb_words(texts, options, memory)
    return list(map(_rouge_tokenizer(options.get("tokens", "rouge-score"), "no").tokenize, texts))


def _ptb_words(texts: list[str], options: dict, memory: str) -> list[list[str]]:
    return [text.split() for text in java_tools.ptb_tokens(tuple(texts), memory)]


def _meteor_words(texts: list[str], options: dict, memory: str) -> list[list[str]]:
    return _ptb_words(texts, options, memory) if options.get("protocol") in E2E else [text.split() for text in texts]


def _bertscore_words(texts: list[str], options: dict, memory: str) -> list[list[str]]:
    """The subwords of BERTScore's model without those it does not know."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    return [[piece for piece in tokenizer.tokenize(text) if piece != tokenizer.unk_token] for text in texts]


def _without(options: dict, name: str) -> dict:
    return {key: value for key, value in options.items() if key != name}


# ----------------------------------------------------------------------------------------------------------------------


def _java(options: dict) -> str | None:
    return java_tools.unavailable()


def _needs_of_rouge(options: dict) -> str | None:
    if options.get("protocol") in E2E:
        return java_tools.unavailable()
    if options.get("perl") is True and not any(importlib.metadata.distributions(name="py-rouge")):
        return "needs the package py-rouge for its option perl; install it with `make setup-scores`"
    return None


def _bert_score(options: dict) -> str | None:
    found = importlib.util.find_spec("bert_score")
    return None if found else "needs the package bert-score; install it with `pip install bert-score`"


METRICS: dict[str, Metric] = {
    "bleu": Metric(
        bleu,
        ("lowercase", "tokenize", "smooth_method", "smooth_value", "max_ngram_order", "effective_order", "force"),
        words=_bleu_words,
        advice="set the option tokenize (zh, ja-mecab, char ...) or use chrf",
    ),
    "nist": Metric(nist, words=_nist_words),
    "meteor": Metric(meteor, missing=_java, words=_meteor_words),
    "rouge": Metric(
        rouge,
        ("types", "stemmer", "references", "tokens", "perl"),
        _needs_of_rouge,
        _rouge_words,
        "set the option tokens: unicode, or use chrf",
    ),
    "cider": Metric(cider, missing=_java, words=_ptb_words),
    "ter": Metric(
        ter,
        ("normalized", "no_punct", "asian_support", "case_sensitive"),
        words=_ter_words,
        advice="set the options normalized and asian_support, or use chrf",
    ),
    "chrf": Metric(
        _sacrebleu("chrf", "CHRF", functools.partial(_sacrebleu_rows, "CHRF")),
        ("char_order", "word_order", "beta", "lowercase", "whitespace", "eps_smoothing"),
    ),
    "bertscore": Metric(
        bertscore, ("model", "layer"), _bert_score, _bertscore_words, "use a model that knows the language"
    ),
}
