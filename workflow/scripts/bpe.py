"""Subword vocabularies: text -> pieces as fairseq's dictionaries have them, and back. Nothing here imports torch."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

from common import SPECIAL_SYMBOLS, UserError

_NUMBER = re.compile("[0-9]{1,18}")
# What a model may produce although no text encodes to it: it stands for no text.
_SILENT = re.compile("<s>|<pad>|</s>|<mask>|madeupword[0-9]+")


class GPT2:
    """GPT-2's byte BPE, by fairseq's own encoder: a piece is the decimal number of a token, and nothing is unknown.

    With `leading_space` a text begins as it would within a line, as in the original code for GPT-2 (which also leaves
    a space before each `<|endoftext|>`: left out here). BART's texts begin without.
    """

    def __init__(self, encoder_json: Path, vocab_bpe: Path, leading_space: bool = False):
        try:
            self._encoder = _fairseq_gpt2_utils().get_encoder(str(encoder_json), str(vocab_bpe))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:  # JSON of any form
            raise UserError(f"{encoder_json} and {vocab_bpe}: not a GPT-2 byte BPE ({error})") from None
        self._before = " " if leading_space else ""
        self._words: dict[str, tuple[str, ...]] = {}

    def encode(self, text: str) -> list[str]:
        pieces: list[str] = []
        for word in self._encoder.re.findall(self._encoder.pat, self._before + text):
            known = self._words.get(word)
            if known is None:  # words recur: looking them up whole is several times faster than their bytes
                try:
                    known = self._words[word] = tuple(map(str, self._encoder.encode(word)))
                except KeyError as error:
                    raise UserError(f"the byte BPE has no token {error}; encoder.json does not fit vocab.bpe") from None
            pieces.extend(known)
        return pieces

    def decode(self, pieces: list[str]) -> str:
        """Text of the pieces; `<unk>`, which no text encodes to but a model may produce, stands for itself."""
        texts, numbers = [], []
        for piece in pieces:
            if _NUMBER.fullmatch(piece) and int(piece) in self._encoder.decoder:
                numbers.append(int(piece))
            elif piece == "<unk>":
                texts += [self._encoder.decode(numbers), piece]
                numbers = []
            elif not _SILENT.fullmatch(piece):
                raise UserError(f"{piece!r} is no token of this byte BPE; was another vocabulary used for generation?")
        return "".join([*texts, self._encoder.decode(numbers)])


class SentencePiece:
    """A sentencepiece model; a character that it does not know becomes the piece `<unk>`.

    No text becomes another special symbol: a model that could do so (a user-defined `<mask>`, say) is refused.
    """

    def __init__(self, model: Path):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{model}: not a sentencepiece model ({error})") from None
        self._pieces = [self._model.id_to_piece(index) for index in range(len(self._model))]
        self._known = set(self._pieces)
        for index, piece in enumerate(self._pieces):
            from_text = not (self._model.is_control(index) or self._model.is_unknown(index))
            if from_text and (piece in SPECIAL_SYMBOLS or piece.split() != [piece]):
                raise UserError(
                    f"{model}: text can become the piece {piece!r}, which fairseq takes for something else; "
                    "learn the vocabulary with the special symbols as control symbols"
                )

    def encode(self, text: str) -> list[str]:
        return [self._pieces[index] for index in self._model.encode(text)]

    def decode(self, pieces: list[str]) -> str:
        """Text of the pieces; `<unk>` becomes the model's own sign for it."""
        for piece in pieces:
            if piece not in self._known and not _SILENT.fullmatch(piece):
                raise UserError(f"{piece!r} is no piece of this vocabulary; was another one used for generation?")
        return self._model.decode([piece for piece in pieces if not _SILENT.fullmatch(piece)])


def _fairseq_gpt2_utils():
    """fairseq's module of GPT-2's BPE, loaded from its file: `import fairseq` would import torch, for seconds."""
    package = importlib.util.find_spec("fairseq")
    if package is None:
        raise UserError("fairseq is not installed in this environment; its GPT-2 BPE is needed")
    path = Path(package.submodule_search_locations[0]) / "data" / "encoders" / "gpt2_bpe_utils.py"
    spec = importlib.util.spec_from_file_location("gpt2_bpe_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a vocabulary: --spm, or --encoder-json with --vocab-bpe."""
    group = parser.add_argument_group("vocabulary", "either --spm, or --encoder-json with --vocab-bpe")
    group.add_argument("--encoder-json", type=Path, metavar="FILE", help="gpt2: tokens and their numbers")
    group.add_argument("--vocab-bpe", type=Path, metavar="FILE", help="gpt2: the merges")
    group.add_argument("--leading-space", action="store_true", help="gpt2: a space before every text")
    group.add_argument("--spm", type=Path, metavar="FILE", help="sentencepiece: the model")


def from_arguments(args: argparse.Namespace) -> GPT2 | SentencePiece:
    """The vocabulary that `add_arguments` options name."""
    if args.spm and args.leading_space:
        raise UserError("--leading-space is for GPT-2's vocabulary; sentencepiece's texts begin alike everywhere")
    if args.spm and not (args.encoder_json or args.vocab_bpe):
        return SentencePiece(args.spm)
    if args.encoder_json and args.vocab_bpe and not args.spm:
        return GPT2(args.encoder_json, args.vocab_bpe, args.leading_space)
    raise UserError("name one vocabulary: --spm (sentencepiece), or --encoder-json and --vocab-bpe (gpt2)")
