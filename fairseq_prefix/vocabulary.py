"""Text -> subword pieces as a base's dictionary has them, and back; exactly as the workflow encodes and decodes."""

from __future__ import annotations

import re
from pathlib import Path

from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import Encoder, get_encoder

from .errors import UsageError

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BYTE_BPE = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # fairseq's names, and Hugging Face's
NUMBER = re.compile("[0-9]{1,18}")
# What a model may produce although no text encodes to it: it stands for no text.
SILENT = re.compile("<s>|<pad>|</s>|<mask>|madeupword[0-9]+")


class ByteBPE:
    """GPT-2's byte BPE: a piece is the decimal number of a token, and nothing is unknown.

    With `leading_space` a text begins as it would within a line: GPT-2's do, and BART's do not.
    """

    def __init__(self, encoder: Encoder, leading_space: bool):
        self._encoder = encoder
        self._before = " " if leading_space else ""

    def encode(self, text: str) -> list[str]:
        return [str(number) for number in self._encoder.encode(self._before + text)]

    def decode(self, pieces: list[str]) -> str:
        """Text of the pieces; `<unk>`, which no text encodes to but a model may produce, stands for itself."""
        texts, numbers = [], []
        for piece in pieces:
            if NUMBER.fullmatch(piece) and int(piece) in self._encoder.decoder:
                numbers.append(int(piece))
            elif not SILENT.fullmatch(piece):
                texts += [self._encoder.decode(numbers), piece]
                numbers = []
        return "".join([*texts, self._encoder.decode(numbers)])


class SentencePiece:
    """A sentencepiece model; a character that it does not know becomes the piece `<unk>`."""

    def __init__(self, path: Path):
        try:
            import sentencepiece
        except ImportError:
            raise UsageError(f"{path} needs the package sentencepiece; pip install sentencepiece") from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError):
            raise UsageError(f"{path} is not a sentencepiece model") from None
        self._pieces = [self._model.id_to_piece(index) for index in range(len(self._model))]
        self._known = set(self._pieces)
        for index, piece in enumerate(self._pieces):
            from_text = not (self._model.is_control(index) or self._model.is_unknown(index))
            if from_text and (piece in SPECIAL_SYMBOLS or piece.split() != [piece]):
                raise UsageError(f"{path}: text can become the piece {piece!r}, which fairseq takes for something else")

    def encode(self, text: str) -> list[str]:
        return [self._pieces[index] for index in self._model.encode(text)]

    def decode(self, pieces: list[str]) -> str:
        """Text of the pieces; `<unk>` becomes the model's own sign for it."""
        return self._model.decode([piece for piece in pieces if piece in self._known and not SILENT.fullmatch(piece)])


def read_vocabulary(place: Path, dictionary: Dictionary, leading_space: bool) -> ByteBPE | SentencePiece:
    """The vocabulary of a folder, or of a sentencepiece model's file.

    Raises:
        UsageError: nothing is there, or it is damaged.
    """
    if place.is_file():
        return SentencePiece(place)
    if (place / "spm.model").exists():
        return SentencePiece(place / "spm.model")
    for names in BYTE_BPE:
        tokens, merges = (place / name for name in names)
        if tokens.exists() and merges.exists():
            return ByteBPE(_read_byte_bpe(tokens, merges, dictionary), leading_space)
    raise UsageError(
        f"{place} holds no vocabulary (spm.model, or encoder.json with vocab.bpe, or vocab.json with merges.txt); "
        "say in which folder it is"
    )


def _read_byte_bpe(tokens: Path, merges: Path, dictionary: Dictionary) -> Encoder:
    try:
        encoder = get_encoder(str(tokens), str(merges))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{tokens} and {merges} are no byte BPE of GPT-2's kind ({error})") from None
    if "<s>" not in encoder.encoder:
        return encoder
    # A BART's vocab.json of Hugging Face has the numbers of fairseq's dictionary, whose words are GPT-2's numbers.
    words = {token: dictionary[number] for token, number in encoder.encoder.items()}
    numbers = {token: int(word) for token, word in words.items() if word.isdecimal()}
    return Encoder(numbers, list(encoder.bpe_ranks))
