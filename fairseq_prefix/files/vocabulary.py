"""Encode text as subword pieces, and decode pieces, without torch.

The workflow, the API, the `generate` command and fairseq's own commands (through subwords.py) clean, encode and decode
every text here, so that one text has the same tokens everywhere. The workflow's scripts load this file alone
(workflow/scripts/common.py): importing the package imports torch, which takes seconds. So only the standard library is
imported at the top, and nothing of the package.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SENTENCEPIECE = ("sentence.bpe.model", "sentencepiece.bpe.model")  # mBART's: fairseq's name, and Hugging Face's
BYTE_BPE = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # fairseq's names, and Hugging Face's
NUMBER = re.compile("[0-9]{1,18}")
# Pieces that a model may produce and no text encodes to; decoding drops them.
SILENT = re.compile("<s>|<pad>|</s>|<mask>|madeupword[0-9]+")
BEGINNING = re.compile(r"[\s\ufeff]+")


class VocabularyError(ValueError):
    """A text that cannot be encoded, pieces that cannot be decoded, or unusable files: a part of a sentence."""


def single_line(text: str) -> str:
    """Return the text on one line: each run of line breaks and tabs becomes one space, the ends are stripped.

    Line breaks are what `str.splitlines` takes for one, which is more than any tool that reads the text later does; the
    tab separates columns in the output of fairseq. A byte-order mark at the beginning belongs to a file, not to a text.
    """
    line = " ".join(filter(None, text.replace("\t", "\n").splitlines())).rstrip()
    beginning = BEGINNING.match(line)
    return line[beginning.end() :] if beginning else line


def clean(text: str) -> str:
    """Return the text on one line, as everything encodes it.

    Raises:
        VocabularyError: nothing is left, or a character belongs to no text.
    """
    line = single_line(text)
    if not line:
        raise VocabularyError("is empty")
    if "\0" in line:
        raise VocabularyError("holds a NUL character")
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        raise VocabularyError(f"holds half of a surrogate pair (character {error.start + 1})") from None
    return line


class ByteBPE:
    """GPT-2's byte BPE, by fairseq's own encoder: a piece is the decimal number of a token, and nothing is unknown.

    Args:
        tokens: encoder.json, or vocab.json of Hugging Face.
        merges: vocab.bpe, or merges.txt.
        leading_space: whether a text begins as it would within a line, as in the original code for GPT-2 (which also
            leaves a space before each `<|endoftext|>`: left out here). BART's texts begin without.
        symbols: those of the base's dictionary. The vocab.json of a Hugging Face BART has their indices for numbers.

    Raises:
        VocabularyError: the files are not a byte BPE.
    """

    def __init__(self, tokens: Path, merges: Path, leading_space: bool = False, symbols: Sequence[str] | None = None):
        utils = _fairseq_gpt2_utils()
        try:
            self._encoder = utils.get_encoder(str(tokens), str(merges))
            if "<s>" in self._encoder.encoder:
                numbers = _numbers_of_words(self._encoder.encoder, symbols)
                self._encoder = utils.Encoder(numbers, list(self._encoder.bpe_ranks))
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
            IndexError,
        ) as error:  # JSON of any form
            raise VocabularyError(f"{tokens} and {merges}: not a GPT-2 byte BPE ({error})") from None
        self._before = " " if leading_space else ""
        self._words: dict[str, tuple[str, ...]] = {}

    def encode(self, text: str) -> list[str]:
        """Return the pieces of a text, cleaned.

        Raises:
            VocabularyError: it cannot be encoded.
        """
        pieces: list[str] = []
        for word in self._encoder.re.findall(self._encoder.pat, self._before + clean(text)):
            known = self._words.get(word)
            if known is None:  # words recur: looking them up whole is several times faster than their bytes
                try:
                    known = self._words[word] = tuple(map(str, self._encoder.encode(word)))
                except KeyError as error:
                    raise VocabularyError(
                        f"needs the token {error}, which the byte BPE lacks; its two files do not fit each other"
                    ) from None
            pieces.extend(known)
        return pieces

    def decode(self, pieces: Sequence[str]) -> str:
        """Return the text of the pieces, on one line; `<unk>`, which a model may produce, stands for itself.

        Raises:
            VocabularyError: a piece is not one of this vocabulary.
        """
        texts, numbers = [], []
        for piece in pieces:
            if NUMBER.fullmatch(piece) and int(piece) in self._encoder.decoder:
                numbers.append(int(piece))
            elif piece == "<unk>":
                texts += [self._encoder.decode(numbers), piece]
                numbers = []
            elif not SILENT.fullmatch(piece):
                raise _foreign(piece)
        return single_line("".join([*texts, self._encoder.decode(numbers)]))


class SentencePiece:
    """A sentencepiece model; a character that it does not know becomes the piece `<unk>`.

    No text becomes another special symbol: a model that could do so (a user-defined `<mask>`, say) is refused.

    Raises:
        VocabularyError: the file is not such a model.
    """

    def __init__(self, path: Path):
        try:
            import sentencepiece
        except ImportError:
            raise VocabularyError(f"{path} needs the package sentencepiece; pip install sentencepiece") from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise VocabularyError(f"{path}: not a sentencepiece model ({error})") from None
        self._pieces = [self._model.id_to_piece(index) for index in range(len(self._model))]
        self._known = set(self._pieces)
        for index, piece in enumerate(self._pieces):
            from_text = not (self._model.is_control(index) or self._model.is_unknown(index))
            if from_text and (piece in SPECIAL_SYMBOLS or piece.split() != [piece]):
                raise VocabularyError(
                    f"{path}: text can become the piece {piece!r}, which fairseq takes for something else; "
                    "learn the vocabulary with the special symbols as control symbols"
                )

    def __contains__(self, piece: str) -> bool:
        return piece in self._known

    def encode(self, text: str) -> list[str]:
        """Return the pieces of a text, cleaned.

        Raises:
            VocabularyError: it cannot be encoded.
        """
        pieces = [self._pieces[index] for index in self._model.encode(clean(text))]
        if not pieces:
            raise VocabularyError("is empty in this vocabulary")
        return pieces

    def decode(self, pieces: Sequence[str]) -> str:
        """Return the text of the pieces, on one line; `<unk>` becomes the model's own sign for it.

        Raises:
            VocabularyError: a piece is not one of this vocabulary.
        """
        for piece in pieces:
            if piece not in self and not SILENT.fullmatch(piece):
                raise _foreign(piece)
        return single_line(self._model.decode([piece for piece in pieces if not SILENT.fullmatch(piece)]))


Vocabulary = ByteBPE | SentencePiece


def read_vocabulary(place: Path, symbols: Sequence[str], leading_space: bool) -> Vocabulary:
    """Return the vocabulary of a folder, or of a sentencepiece model's file.

    Raises:
        VocabularyError: nothing is there, or it is damaged.
    """
    if place.is_file():
        return SentencePiece(place)
    if (place / "spm.model").exists():
        return SentencePiece(place / "spm.model")
    for names in BYTE_BPE:
        tokens, merges = (place / name for name in names)
        if tokens.exists() and merges.exists():
            return ByteBPE(tokens, merges, leading_space, symbols)
    for name in SENTENCEPIECE:
        if (place / name).exists():
            return SentencePiece(place / name)
    raise VocabularyError(
        f"{place} holds no vocabulary (spm.model, or encoder.json with vocab.bpe, or vocab.json with merges.txt); "
        "say in which folder it is"
    )


def _numbers_of_words(indices: dict[str, int], symbols: Sequence[str] | None) -> dict[str, int]:
    """token -> GPT-2's number: the word of a BART's dictionary at the index that Hugging Face's vocab.json gives.

    `<mask>` is there too, after all words of fairseq's dict.txt.
    """
    if symbols is None:
        raise ValueError("its numbers are indices of a BART's dict.txt; use GPT-2's own encoder.json")
    words = {token: symbols[index] if index < len(symbols) else "<unk>" for token, index in indices.items()}
    return {token: int(word) for token, word in words.items() if word.isdecimal()}


def _foreign(piece: str) -> VocabularyError:
    return VocabularyError(f"{piece!r} is not a piece of this vocabulary; was another one used for generation?")


def _fairseq_gpt2_utils() -> ModuleType:
    """fairseq's module of GPT-2's BPE, loaded from its file: `import fairseq` would import torch."""
    package = importlib.util.find_spec("fairseq")
    if package is None or not package.submodule_search_locations:
        raise VocabularyError("fairseq is not installed in this environment; its GPT-2 BPE is needed")
    path = Path(package.submodule_search_locations[0]) / "data" / "encoders" / "gpt2_bpe_utils.py"
    loader = SourceFileLoader("gpt2_bpe_utils", str(path))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module
