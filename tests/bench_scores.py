"""Times and peak memory of the scores on real outputs, beside the straightforward use of the packages they build on.

Run by `make bench-scores`; it needs the real data beside the repository, and takes some minutes.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable

from test_published import REPOSITORY, read, webnlg_prepared

sys.path.insert(0, str(REPOSITORY / "workflow" / "scripts"))

from metrics import Segments, statistics  # noqa: E402
from significance import intervals  # noqa: E402
from table import aligned  # noqa: E402

FOLDER = REPOSITORY.parent / "shared" / "data"


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the CPUs, which say more on a machine that others use as well."""
    start, before = time.perf_counter(), os.times()
    function()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def ours(metric: str, hypotheses: list[str], references: list[list[str]], threads: int, options: dict) -> None:
    intervals(statistics(metric, Segments(hypotheses, references, threads), options))


def plain_rouge(hypotheses: list[str], references: list[list[str]]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        scorer.score_multi(texts, hypothesis)


def plain_ter(hypotheses: list[str], references: list[list[str]]) -> None:
    from sacrebleu.metrics import TER

    TER().corpus_score(hypotheses, [[(texts + [None, None])[n] for texts in references] for n in range(3)])


def main() -> None:
    xsum = FOLDER / "references" / "xsum"
    gold = [[text] for text in read(xsum / "gold-test-sentences.txt.gz")]
    summaries = read(xsum / "convs2s-test-output.txt.gz"), gold
    webnlg = webnlg_prepared(FOLDER, "GKB_Unimelb")
    rows = [["what", "seconds", "CPU seconds"]]
    for what, function in (
        ("ROUGE, 11,334 summaries: rouge-score, no intervals", lambda: plain_rouge(*summaries)),
        ("  ours with intervals, 1 process", lambda: ours("rouge", *summaries, 1, {})),
        ("  ours with intervals, 2 processes", lambda: ours("rouge", *summaries, 2, {})),
        ("TER, 1,862 texts, up to 3 references: sacrebleu, no intervals", lambda: plain_ter(*webnlg)),
        ("  ours as sacrebleu with intervals, 1 process", lambda: ours("ter", *webnlg, 1, {})),
        ("  ours as tercom with intervals, 1 process", lambda: ours("ter", *webnlg, 1, {"protocol": "webnlg"})),
        ("  ours as tercom with intervals, 2 processes", lambda: ours("ter", *webnlg, 2, {"protocol": "webnlg"})),
    ):
        rows.append([what, *(f"{value:.1f}" for value in seconds(function))])
    print("\n".join(aligned(rows, left=1)))
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"\npeak memory: {peaks[0]:.0f} MB, of a further process at most {peaks[1]:.0f} MB")


if __name__ == "__main__":
    main()
