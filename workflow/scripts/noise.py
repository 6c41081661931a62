"""Turn documents into BART's denoising pairs: a corrupted source, and the clean document as target, in subword text.

Each document is corrupted in one of two ways (the probabilities are options):

* Sentence infilling: one whole segment becomes a single `<mask>`, mostly one of the document's `focus` segments if it
  has any (a lead, a description: what downstream tasks ask for). Now and then another segment is lightly infilled.
* Text infilling as in BART (Lewis et al. 2020, section 2.2): spans of Poisson(3) tokens, 30 % of all tokens, become one
  `<mask>` each; an empty span inserts one. Now and then the segments are permuted first.

BART itself permutes all sentences and has no sentence infilling. Those defaults suit a base that has to learn quickly
to write a segment from the others: on the demo's world, two layers do after 1,200 updates of 16 documents.

Every document has a random generator of its own, seeded by --seed and its line: the number of workers changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bpe
from common import UserError, atomic_open, batched, progress, read_lines, run_main, worker_pool
from documents import check_document, held_out

MASK = "<mask>"
BATCH = 64  # documents per task of a worker
MOST_MASKED = 0.5  # beyond, there may be fewer gaps between kept tokens than spans


@dataclass(frozen=True)
class Noise:
    """How documents are corrupted; see `build_parser` for what each number means."""

    sentence_probability: float = 0.6
    focus_probability: float = 0.6
    light_probability: float = 0.15
    light_ratio: float = 0.15
    mask_ratio: float = 0.3
    span_mean: float = 3.0
    permute_probability: float = 0.15


def poisson(rng: random.Random, mean: float) -> int:
    """A Poisson-distributed number (Knuth's method: fit for small means)."""
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def infill(rng: random.Random, tokens: list[str], ratio: float, span_mean: float) -> list[str]:
    """Replace `ratio` (at most a half) of the tokens, at least one, by a mask per span; never longer than the input."""
    budget = max(1, round(ratio * len(tokens)))
    spans, removed, insertions = [], 0, 0
    while removed < budget:
        length = min(poisson(rng, span_mean), budget - removed)
        if length:
            spans.append(length)
        elif insertions < removed - len(spans):
            insertions += 1
        removed += length
    # The kept tokens leave gaps, those at both ends included; spans in distinct gaps never touch each other.
    kept = len(tokens) - removed
    lengths = spans + [0] * insertions
    masks = dict(zip(rng.sample(range(kept + 1), len(lengths)), lengths, strict=True))
    position = 0
    result = []
    for gap in range(kept + 1):
        if gap in masks:
            result.append(MASK)
            position += masks[gap]
        if gap < kept:
            result.append(tokens[position])
            position += 1
    return result


def corrupt(rng: random.Random, segments: list[list[str]], focus: list[int], noise: Noise) -> list[str]:
    """The source for a document of tokenised segments; `focus` are the indexes of those to mask rather than others."""
    if len(segments) > 1 and rng.random() < noise.sentence_probability:
        candidates = focus if focus and rng.random() < noise.focus_probability else range(len(segments))
        masked = rng.choice(candidates)
        source = []
        for index, segment in enumerate(segments):
            if index == masked:
                segment = [MASK]
            elif rng.random() < noise.light_probability:
                segment = infill(rng, segment, noise.light_ratio, noise.span_mean)
            source += segment
        return source
    if len(segments) > 2 and rng.random() < noise.permute_probability:
        segments = rng.sample(segments, len(segments))
    return infill(rng, [token for segment in segments for token in segment], noise.mask_ratio, noise.span_mean)


def split_long(tokens: list[str], limit: int) -> Iterator[list[str]]:
    """Parts of at most `limit` tokens, cut before the start of a word where there is one; nothing is lost."""
    while len(tokens) > limit:
        cut = next((i for i in range(limit, 0, -1) if tokens[i].startswith("\u2581")), limit)
        yield tokens[:cut]
        tokens = tokens[cut:]
    yield tokens


def pack(segments: list[list[str]], focus: list[int], limit: int) -> Iterator[tuple[list[list[str]], list[int]]]:
    """Documents of whole segments with at most `limit` tokens each, and their focus; only longer segments are split."""
    parts, chosen, size = [], [], 0
    for index, segment in enumerate(segments):
        for part in split_long(segment, limit):
            if size + len(part) > limit:
                yield parts, chosen
                parts, chosen, size = [], [], 0
            if index in focus:
                chosen.append(len(parts))
            parts.append(part)
            size += len(part)
    yield parts, chosen


class Corrupter:
    """Documents' lines -> denoising pairs, in worker processes."""

    def __init__(self, documents: Path, model: Path, seed: int, max_tokens: int, noise: Noise):
        self.documents, self.seed, self.max_tokens, self.noise = documents, seed, max_tokens, noise
        self.vocabulary = bpe.sentencepiece(model)
        if MASK not in self.vocabulary:
            raise UserError(f"{model}: the model has no {MASK} symbol; make it with learn_vocabulary.py")

    def __call__(self, numbered_line: tuple[int, str]) -> list[tuple[str, str]]:
        """The (source, target) pairs of one document, as subword text; more than one only if it is too long."""
        number, line = numbered_line
        where = f"{self.documents}, line {number}"
        try:
            row = check_document(json.loads(line), where)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        rng = random.Random(f"{self.seed}/{number}")
        segments = [bpe.encode(self.vocabulary, segment, f"{where}: a segment") for segment in row["segments"]]
        pairs = []
        for parts, focus in pack(segments, row.get("focus", []), self.max_tokens):
            source = corrupt(rng, parts, focus, self.noise)
            pairs.append((" ".join(source), " ".join(token for part in parts for token in part)))
        return pairs


_corrupter: Corrupter  # of a worker process


def _start_worker(*arguments) -> None:
    global _corrupter
    _corrupter = Corrupter(*arguments)


def _corrupt_batch(numbered_lines: list[tuple[int, str]]) -> list[list[tuple[str, str]]]:
    return [_corrupter(numbered_line) for numbered_line in numbered_lines]


def all_pairs(arguments: tuple, count: int, workers: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(index of the document, its pairs) in the order of the documents."""
    Corrupter(*arguments)  # a bad model fails here, not in every worker
    lines = progress(read_lines(arguments[0]), "noise", count)
    with worker_pool(workers, _start_worker, arguments) as call:
        batches = call(_corrupt_batch, batched(lines, BATCH))
        yield from enumerate(pairs for batch in batches for pairs in batch)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True, metavar="FILE", help="documents.jsonl")
    parser.add_argument("--spm", type=Path, required=True, metavar="FILE", help="spm.model of learn_vocabulary.py")
    parser.add_argument(
        "--output-dir", type=Path, required=True, metavar="DIR", help="gets {train,valid}.{source,target}"
    )
    parser.add_argument("--seed", type=int, default=1, help="what the noise is drawn with [%(default)s]")
    parser.add_argument(
        "--valid", type=int, default=200, metavar="N", help="documents kept for validation, evenly spread [%(default)s]"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=254,
        metavar="N",
        help="longest target in pieces; longer documents are cut between segments [%(default)s, for 256 positions]",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes; the output is the same [%(default)s]"
    )
    noise = parser.add_argument_group("noise", "the defaults are explained above")
    for name, help_text in (
        ("sentence_probability", "that a document of two segments or more gets sentence infilling, not text infilling"),
        ("focus_probability", "that the segment masked is a focus segment, if there is one"),
        ("light_probability", "that a segment beside the masked one is infilled as well"),
        ("light_ratio", "share of its tokens that is then masked"),
        ("mask_ratio", "share of the tokens that text infilling masks (BART: 0.3)"),
        ("span_mean", "mean length of a span (BART: Poisson(3))"),
        ("permute_probability", "that text infilling permutes more than two segments first (BART: 1)"),
    ):
        default = getattr(Noise, name)
        flag = "--" + name.replace("_", "-")
        noise.add_argument(flag, type=float, default=default, metavar="X", help=f"{help_text} [%(default)s]")
    return parser


def _checked(options: argparse.Namespace) -> Noise:
    noise = Noise(**{name: vars(options)[name] for name in Noise.__dataclass_fields__})
    for name, value in vars(noise).items():
        most = {"span_mean": 100.0, "mask_ratio": MOST_MASKED, "light_ratio": MOST_MASKED}.get(name, 1.0)
        if not 0 <= value <= most or (name == "span_mean" and value == 0):
            raise UserError(f"--{name.replace('_', '-')} {value}: must lie between 0 and {most}")
    for name, least in (("valid", 1), ("max_tokens", 8), ("workers", 1)):
        if vars(options)[name] < least:
            raise UserError(f"--{name.replace('_', '-')} {vars(options)[name]}: at least {least} is needed")
    return noise


def main(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    noise = _checked(options)
    count, valid = held_out(options.documents, options.valid)
    arguments = (options.documents, options.spm, options.seed, options.max_tokens, noise)
    with contextlib.ExitStack() as stack:
        files = {
            (split, side): stack.enter_context(atomic_open(options.output_dir / f"{split}.{side}"))
            for split in ("train", "valid")
            for side in ("source", "target")
        }
        for index, pairs in all_pairs(arguments, count, options.workers):
            split = "valid" if index in valid else "train"
            for source, target in pairs:
                files[split, "source"].write(source + "\n")
                files[split, "target"].write(target + "\n")


if __name__ == "__main__":
    run_main(main)
