"""Generate the demo's text: pretraining documents, a summarisation task and a table-to-text task (see world.py).

    python workflow/scripts/make_demo.py documents --seed 1 --count 32000 --output documents.jsonl
    python workflow/scripts/make_demo.py summary --seed 1 --train 2000 --valid 100 --test 200 --output-dir data/summary

`topics` is the summarisation task with other kinds of news in its test than in training (world.NEW_TOPICS).
Every line is drawn from its own generator, seeded by (seed, what, index): a larger count only appends.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import world
from common import UserError, progress, run_main, write_jsonl


def _generator(*key: object) -> random.Random:
    return random.Random("/".join(map(str, key)))


def summary_example(rng: random.Random, split: str) -> tuple[str, str, str]:
    """(body, lead in the house style, kind of event)"""
    item = world.news(rng, split != "train", world.NEWS_STYLE)
    return " ".join(item.body), item.lead, item.kind


def topics_example(rng: random.Random, split: str) -> tuple[str, str, str]:
    """As of the summarisation task, of new topics in `test` and of the others elsewhere."""
    while True:
        example = summary_example(rng, split)
        if (example[2] in world.NEW_TOPICS) == (split == "test"):
            return example


def table_example(rng: random.Random, split: str) -> tuple[str, str, None]:
    """(linearised record, description in the house style, no group)"""
    record = world.lodging(rng, split != "train")
    return world.linearise(rng, record), world.describe_in_house_style(record), None


TASKS: dict[str, Callable] = {"summary": summary_example, "table": table_example, "topics": topics_example}


def examples(task: str, split: str, count: int, seed: int) -> Iterator[dict]:
    """`count` examples with distinct sources; `valid` and `test` are about held-out names only."""
    seen = set()
    for index in range(count):
        rng = _generator(seed, task, split, index)
        source = None
        while source is None or source in seen:
            source, target, group = TASKS[task](rng, split)
        seen.add(source)
        yield {"id": f"{split}-{index}", "source": source, "references": [target], "group": group}


def _splits(task: str, counts: dict[str, int], seed: int) -> dict[str, list[dict]]:
    """The examples of each split; those of valid that test has as well are drawn anew with the next index."""
    test = list(examples(task, "test", counts["test"], seed))
    in_test = {row["source"] for row in test}
    valid = [row for row in examples(task, "valid", counts["valid"] + len(test), seed) if row["source"] not in in_test]
    train = progress(examples(task, "train", counts["train"], seed), f"{task} examples", counts["train"])
    return {"train": list(train), "valid": valid[: counts["valid"]], "test": test}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kind", required=True)
    documents = commands.add_parser("documents", help="pretraining documents, one a line: segments, and which to mask")
    documents.add_argument("--seed", type=int, default=1, help="which documents are drawn [%(default)s]")
    documents.add_argument("--count", type=int, default=32000, help="how many [%(default)s]")
    documents.add_argument("--output", type=Path, required=True, metavar="FILE", help="documents.jsonl")
    for task in TASKS:
        command = commands.add_parser(task, help=f"the {task} task: train.jsonl, valid.jsonl, test.jsonl")
        command.add_argument("--seed", type=int, default=1, help="which examples are drawn [%(default)s]")
        for split, count in (("train", 2000), ("valid", 100), ("test", 200)):
            command.add_argument(f"--{split}", type=int, default=count, help="how many examples [%(default)s]")
        command.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="where the splits go")
    return parser


def main(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    counts = {key: vars(options)[key] for key in ("count", "train", "valid", "test") if key in options}
    for key, count in counts.items():
        if count < 1:
            raise UserError(f"--{key} {count}: at least 1 is needed")
    if options.kind == "documents":
        indexes = progress(range(options.count), "documents")
        write_jsonl(options.output, (world.document(_generator(options.seed, "documents", i)) for i in indexes))
        return
    for split, rows in _splits(options.kind, counts, options.seed).items():
        write_jsonl(options.output_dir / f"{split}.jsonl", rows)


if __name__ == "__main__":
    run_main(main)
