"""Start a prefix from the frozen base's activations of real words (paper, section 7.4)."""

from __future__ import annotations

import argparse
from math import ceil

import torch
from torch import Tensor

from ..errors import UsageError


def encode(text: str | None, args: argparse.Namespace, task) -> list[int]:
    """Return the token ids of `--prefix-init-text`.

    Raises:
        UsageError: there is no text, or a word of it is not in the dictionary.
    """
    if not text:
        raise UsageError("--prefix-init words requires --prefix-init-text TEXT")
    bpe, dictionary = task.build_bpe(args), task.source_dictionary
    subwords = bpe.encode(text) if bpe is not None else text
    ids = dictionary.encode_line(subwords, add_if_not_exist=False, append_eos=False).tolist()
    if not ids or dictionary.unk() in ids:
        unknown = [word for word in subwords.split() if dictionary.index(word) == dictionary.unk()]
        raise UsageError(
            f"--prefix-init-text: {' '.join(unknown[:3])!r} is not in the dictionary; "
            "pass --bpe with the base's vocabulary"
        )
    return ids


@torch.no_grad()
def activations(model, words: list[int]) -> dict[str, Tensor]:
    """Return the keys and values that the frozen base computes for real words, site -> P x (L*2*H*d).

    The words are repeated to the length of the longest prefix and read as one text, so that every virtual token has an
    activation of its own.

    Args:
        model: a model with a prefix; its family reads the text (`read_words`).
        words: token ids.
    """
    longest = max(shape.length for shape in model.prefix.geometry.values())
    text = _repeated(words, min(longest, model.word_room()))
    was_training = model.training
    model.eval()
    with model.prefix_disabled():
        read = model.read_words(text)  # site -> L x 2 x H x T x d
    model.train(was_training)
    return {
        site: read[site].permute(3, 0, 1, 2, 4).flatten(1)[_repeated(range(len(text)), shape.length)]
        for site, shape in model.prefix.geometry.items()
    }


def _repeated(items, length: int) -> list:
    """Return the first `length` items of endless repetitions."""
    return (list(items) * ceil(length / len(items)))[:length]
