"""The options that name a subword vocabulary. fairseq_prefix/files/vocabulary.py encodes and decodes texts."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from common import UserError, vocabulary

ByteBPE, SentencePiece, Vocabulary = vocabulary.ByteBPE, vocabulary.SentencePiece, vocabulary.Vocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a vocabulary: --spm, or --encoder-json with --vocab-bpe."""
    group = parser.add_argument_group("vocabulary", "either --spm, or --encoder-json with --vocab-bpe")
    group.add_argument("--encoder-json", type=Path, metavar="FILE", help="gpt2: tokens and their numbers")
    group.add_argument("--vocab-bpe", type=Path, metavar="FILE", help="gpt2: the merges")
    group.add_argument("--leading-space", action="store_true", help="gpt2: a space before every text")
    group.add_argument("--spm", type=Path, metavar="FILE", help="sentencepiece: the model")


def from_arguments(args: argparse.Namespace) -> Vocabulary:
    """Return the vocabulary that `add_arguments` options name.

    Raises:
        UserError: they name none, or its files are unusable.
    """
    if args.spm and args.leading_space:
        raise UserError("--leading-space is for GPT-2's vocabulary; sentencepiece's texts begin alike everywhere")
    if args.spm and not (args.encoder_json or args.vocab_bpe):
        return sentencepiece(args.spm)
    if args.encoder_json and args.vocab_bpe and not args.spm:
        with _user_errors():
            return ByteBPE(args.encoder_json, args.vocab_bpe, args.leading_space)
    raise UserError("name one vocabulary: --spm (sentencepiece), or --encoder-json and --vocab-bpe (gpt2)")


def sentencepiece(model: Path) -> SentencePiece:
    """Return the vocabulary of a sentencepiece model.

    Raises:
        UserError: the file is not one.
    """
    with _user_errors():
        return SentencePiece(model)


def encode(subwords: Vocabulary, text: str, where: str) -> list[str]:
    """Return the pieces of a text.

    Args:
        where: the text's place and name, with which a message begins.

    Raises:
        UserError: it cannot be encoded.
    """
    with _user_errors(f"{where} "):
        return subwords.encode(text)


def decode(subwords: Vocabulary, pieces: list[str], where: str) -> str:
    """Return the text of the pieces, on one line; `where` as for `encode`.

    Raises:
        UserError: a piece is not one of the vocabulary.
    """
    with _user_errors(f"{where}: "):
        return subwords.decode(pieces)


@contextlib.contextmanager
def _user_errors(place: str = "") -> Iterator[None]:
    try:
        yield
    except vocabulary.VocabularyError as error:
        raise UserError(f"{place}{error}") from None
