"""Encode texts to subword pieces and decode them: for the API, and as the `--bpe` of fairseq's commands."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, cast

from fairseq import file_utils
from fairseq.data import Dictionary, encoders
from omegaconf import DictConfig, OmegaConf

from ..errors import UsageError
from . import vocabulary as vocabularies
from .vocabulary import ByteBPE, SentencePiece, Vocabulary, VocabularyError, clean

RESERVED_SYMBOLS = ("<s>", "<pad>", "</s>")  # added by a task; no text contains them
# value of `--bpe` -> the options that name its files
FILES = {
    "gpt2": ("gpt2_encoder_json", "gpt2_vocab_bpe"),
    "hf_byte_bpe": ("bpe_vocab", "bpe_merges"),
    "sentencepiece": ("sentencepiece_model",),
}
# Values of `--post-process` (`--remove-bpe`) besides `none`.
POST_PROCESSES = ("sentencepiece", "wordpiece", "letter", "silence", "_EOW", "subword_nmt", "@@ ", "@@")


class Subwords:
    """A vocabulary whose pieces are in a dictionary, with fairseq's interface of a BPE: `encode` and `decode`.

    Without a vocabulary a text consists of subwords of the dictionary, separated by spaces.
    """

    def __init__(self, vocabulary: Vocabulary | None, dictionary: Dictionary):
        self._vocabulary, self._dictionary = vocabulary, dictionary

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of a text, all of them in the dictionary.

        Raises:
            VocabularyError: the text cannot be encoded.
        """
        pieces = self._vocabulary.encode(text) if self._vocabulary else clean(text).split()
        special = {*RESERVED_SYMBOLS, *getattr(self._dictionary, "appended", ())}
        for piece in pieces:
            if piece not in self._dictionary or piece in special:
                remedy = "use the base's vocabulary" if self._vocabulary else "name the base's vocabulary with --bpe"
                raise VocabularyError(f"has the piece {piece!r}, which is not in the base's dict.txt; {remedy}")
        return pieces

    def text(self, pieces: list[str]) -> str:
        """Return the text of a hypothesis, on one line.

        Raises:
            VocabularyError: a piece is not in the vocabulary.
        """
        return self._vocabulary.decode(pieces) if self._vocabulary else " ".join(pieces)

    def encode(self, text: str) -> str:
        """Return the pieces of a line of input, separated by spaces: for fairseq.

        Raises:
            UsageError: the line cannot be encoded.
        """
        try:
            return " ".join(self.pieces(text))
        except VocabularyError as error:
            raise UsageError(f"the text {shorten(text)!r} {error}") from None

    def decode(self, pieces: str) -> str:
        """Return the text of a line of output: for fairseq, which writes `<unk>` as `<<unk>>` in references.

        Raises:
            UsageError: a piece is not in the vocabulary.
        """
        if self._vocabulary is None:
            return pieces
        try:
            return self.text(pieces.replace("<<unk>>", "<unk>").split())
        except VocabularyError as error:
            raise UsageError(str(error)) from None


def read_vocabulary(place: Path, dictionary: Dictionary, leading_space: bool) -> Subwords:
    """Return the vocabulary of a folder or of a sentencepiece model's file.

    Raises:
        UsageError: the vocabulary is missing or damaged.
    """
    try:
        return Subwords(vocabularies.read_vocabulary(place, dictionary.symbols, leading_space), dictionary)
    except VocabularyError as error:
        raise UsageError(str(error)) from None


def shorten(text: str) -> str:
    """Return the beginning of a text, for a message."""
    return text if len(text) <= 40 else f"{text[:40]}..."


def build_bpe(
    options: DictConfig | Namespace | str | None, dictionary: Dictionary, leading_space: bool, post_process: str | None
):
    """Return the encoder that `--bpe` names: `Subwords` for byte BPE and sentencepiece, else fairseq's own.

    Args:
        options: fairseq's configuration of the `--bpe`, or a namespace with all options.
        leading_space: whether a text in byte BPE begins as it would within a line.
        post_process: `--post-process`, which fairseq applies to the pieces before it decodes them.

    Raises:
        UsageError: a file is missing or damaged, or an option would give other tokens or texts than the workflow has.
    """
    if isinstance(options, DictConfig):
        given = cast(dict[str, Any], OmegaConf.to_container(options))
        name = given.get("_name")
    else:
        given = vars(options) if isinstance(options, Namespace) else {"bpe": options}
        name = given.get("bpe")
    if post_process == "sentencepiece" or name in FILES and post_process in POST_PROCESSES:
        raise UsageError(
            f"--post-process (--remove-bpe) {post_process!r} gives other texts than the vocabulary's own decoder; "
            "leave it out, and name the vocabulary with --bpe"
        )
    if name is None:
        return Subwords(None, dictionary)
    if name not in FILES:
        return encoders.build_bpe(options)
    if given.get("sentencepiece_enable_sampling"):
        raise UsageError("--sentencepiece-enable-sampling gives a text other tokens each time; leave it out")
    if given.get("bpe_add_prefix_space") and not leading_space:
        raise UsageError("--bpe-add-prefix-space: the texts of a BART begin without a space; leave it out")
    defaults = encoders.gpt2_bpe.GPT2BPEConfig() if name == "gpt2" else None
    files = [_file(option, given.get(option) or str(getattr(defaults, option, "???"))) for option in FILES[name]]
    try:
        if name == "sentencepiece":
            return Subwords(SentencePiece(files[0]), dictionary)
        return Subwords(ByteBPE(files[0], files[1], leading_space, dictionary.symbols), dictionary)
    except VocabularyError as error:
        raise UsageError(str(error)) from None


def _file(option: str, path: str) -> Path:
    """Return the path of the file that an option names; a URL is downloaded."""
    flag = f"--{option.replace('_', '-')}"
    if path == "???":
        raise UsageError(f"{flag} is missing; name the file of the base's vocabulary")
    try:
        return Path(file_utils.cached_path(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {path} cannot be read ({error})") from None
