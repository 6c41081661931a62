"""Score hypotheses against the references of the test set, all scores from 0 to 100 and each with its signature.

A metric is one function and one entry in `METRICS`; sacrebleu and rouge-score do the counting.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common import UserError, json_object, progress, read_jsonl, read_lines, run_main, sha256_file, write_json


class Result(NamedTuple):
    """Scores by name (0 to 100; TER may exceed it), and the signature that says how they were computed."""

    scores: dict[str, float]
    signature: str


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    hypotheses, references = read_pairs(args.hypotheses, args.examples)
    result = METRICS[args.metric](hypotheses, references, args.options)
    report = {
        "metric": args.metric,
        "scores": result.scores,
        "signature": result.signature,
        "count": len(hypotheses),
        "hypotheses_sha256": sha256_file(args.hypotheses),
        "examples_sha256": sha256_file(args.examples),
    }
    write_json(args.output, report)
    scores = ", ".join(f"{name} {value:.2f}" for name, value in result.scores.items())
    print(scores, result.signature, file=sys.stderr)


def read_pairs(hypotheses_path: Path, examples_path: Path) -> tuple[list[str], list[list[str]]]:
    """(hypotheses, references of each), of equal number and at least one.

    Raises:
        UserError: the numbers differ, or an example has no reference.
    """
    references = []
    for number, row in read_jsonl(examples_path):
        texts = row.get("references")
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise UserError(f"{examples_path}, line {number}: no references")
        references.append(texts)
    hypotheses = [line for _, line in read_lines(hypotheses_path)]
    if not references:
        raise UserError(f"{examples_path}: no examples")
    if len(hypotheses) != len(references):
        raise UserError(
            f"{hypotheses_path} has {len(hypotheses)} lines and {examples_path} {len(references)} examples; "
            "there must be one hypothesis per example, in order"
        )
    return hypotheses, references


def _check_options(metric: str, options: dict, *known: str) -> None:
    for name in options:
        if name not in known:
            raise UserError(f"unknown option {name!r} for {metric}; it knows: {', '.join(known)}")


def _sacrebleu(name: str, class_name: str, *known: str) -> Callable[[list[str], list[list[str]], dict], Result]:
    """The function of a metric of sacrebleu; its options are the arguments of sacrebleu's class."""

    def score(hypotheses: list[str], references: list[list[str]], options: dict) -> Result:
        from sacrebleu import metrics

        _check_options(name, options, *known)
        try:
            metric = getattr(metrics, class_name)(**options)
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            raise UserError(f"the options {json.dumps(options)} do not suit {name} ({error})") from None
        # sacrebleu wants one stream per reference number; None, unlike "", is no reference at all.
        width = max(map(len, references))
        streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(width)]
        # What corpus_score does, in two steps: TER takes minutes, and only between these is there room for a bar.
        statistics = metric._extract_corpus_statistics(progress(hypotheses, name), streams)
        value = metric._aggregate_and_compute(statistics).score
        return Result({name: value}, metric.get_signature().format())

    return score


def rouge(hypotheses: list[str], references: list[list[str]], options: dict) -> Result:
    """Mean F of ROUGE over the examples; of several references the best counts, for each type by itself."""
    from rouge_score.rouge_scorer import RougeScorer

    _check_options("rouge", options, "types", "stemmer")
    types, stemmer = options.get("types", ["rouge1", "rouge2", "rougeL"]), options.get("stemmer", True)
    try:
        scorer = RougeScorer(types, use_stemmer=stemmer)
        scorer.score("", "")
    except (TypeError, ValueError) as error:
        raise UserError(f"the options {json.dumps(options)} do not suit rouge ({error})") from None
    sums = dict.fromkeys(types, 0.0)
    for hypothesis, texts in progress(zip(hypotheses, references, strict=True), "rouge", total=len(hypotheses)):
        best = scorer.score_multi(texts, hypothesis)
        for name in types:
            sums[name] += best[name].fmeasure
    numbers = {len(texts) for texts in references}
    signature = {
        "nrefs": numbers.pop() if len(numbers) == 1 else "var",
        "refs": "max",
        "agg": "mean",
        "case": "lc",
        "tok": "rouge-score",
        "stem": "porter" if stemmer else "no",
        "version": importlib.metadata.version("rouge-score"),
    }
    scores = {name: 100 * value / len(hypotheses) for name, value in sums.items()}
    return Result(scores, "|".join(f"{key}:{value}" for key, value in signature.items()))


METRICS: dict[str, Callable[[list[str], list[list[str]], dict], Result]] = {
    "bleu": _sacrebleu(
        "bleu", "BLEU", "lowercase", "tokenize", "smooth_method", "smooth_value", "max_ngram_order", "effective_order"
    ),
    "chrf": _sacrebleu("chrf", "CHRF", "char_order", "word_order", "beta", "lowercase", "whitespace", "eps_smoothing"),
    "ter": _sacrebleu("ter", "TER", "normalized", "no_punct", "asian_support", "case_sensitive"),
    "rouge": rouge,
}


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric", required=True, choices=sorted(METRICS), help="what to compute")
    parser.add_argument("--hypotheses", required=True, type=Path, help="one detokenised line per example")
    parser.add_argument("--examples", required=True, type=Path, help="the prepared test set (JSON lines)")
    parser.add_argument("--output", required=True, type=Path, help="where the scores are written (JSON)")
    parser.add_argument(
        "--options",
        type=json_object,
        default={},
        metavar="JSON",
        help='options of the metric, such as {"lowercase": true} for bleu or {"stemmer": false} for rouge',
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
