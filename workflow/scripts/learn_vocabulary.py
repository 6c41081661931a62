"""Learn a sentencepiece BPE vocabulary from documents, and write it as fairseq's dictionary too.

Everything that encoding and decoding need is inside the model, so that this workflow and fairseq's
`--bpe sentencepiece` agree, and decoding gives back the text to the character (any run of white space is one space):

* Punctuation marks are pieces of their own (`user_defined_symbols`); BPE otherwise learns pieces such as `6,` and a
  small model has to learn every number anew before each mark.
* No Unicode normalisation, except that any white space is a space: fairseq splits lines of pieces at white space.
* Characters that the documents lack fall back to bytes, so that no text has an unknown piece.
* `<mask>` is a control symbol: no text is ever encoded to it.

The result is the same bytes for the same documents, sentencepiece version and options.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from common import UserError, atomic_open, progress, run_main
from documents import read_documents

PUNCTUATION = tuple(".,;!?()\"'-…’‘“”–—")
# Ids of fairseq's first four symbols, so that a piece's id in the model and in fairseq's dictionary agree on them.
SPECIAL = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
BYTES = 256
RULES = "white_space.tsv"


def white_space_rules() -> str:
    """A sentencepiece normalisation table that makes a space of each character that Python takes for white space."""
    spaces = (code for code in range(sys.maxunicode + 1) if chr(code).isspace() and code != 0x20)
    return "".join(f"{code:X}\t20\n" for code in spaces)


def learn(segments: Iterator[str], size: int) -> bytes:
    """Train the model on texts; `size` counts every piece, the special ones and the 256 bytes included.

    Raises:
        UserError: there is no text, or `size` is too small for its characters or too large for its words.
    """
    failures = []

    def noting_failures():  # an exception inside sentencepiece's loop would come out as an unreadable RuntimeError
        try:
            yield first
            yield from segments
        except UserError as error:
            failures.append(error)

    model = io.BytesIO()
    first = next(segments, None)  # opens the file that `segments` reads, before the working directory changes
    if first is None:
        raise UserError("there is no text in the documents to learn a vocabulary from")
    # The model keeps the name of the table: a temporary path in it would make every model differ.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path(RULES).write_text(white_space_rules(), encoding="utf-8")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=noting_failures(),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                character_coverage=0.99995,  # the rarest characters are left to the bytes
                byte_fallback=True,
                user_defined_symbols=list(PUNCTUATION),
                control_symbols=["<mask>"],
                normalization_rule_tsv=RULES,
                max_sentence_length=1 << 30,  # longer lines would be left out without a word
                num_threads=1,  # the order in which threads finish must not decide a tie
                minloglevel=2,
                **SPECIAL,
            )
        except (RuntimeError, OSError) as error:
            if not failures:
                reason = str(error).split("] ")[-1].strip()
                raise UserError(f"no vocabulary of {size} pieces from these documents: {reason}") from None
    if failures:
        raise failures[0]
    return model.getvalue()


def dictionary(model: bytes) -> str:
    """fairseq's dict.txt of a model: a line per piece in the order of ids, `<mask>` last.

    fairseq adds the four special symbols by itself. It uses the counts for nothing but the order; here they are all 1,
    and 0 for `<mask>`, which BART's own dictionaries carry in the last row.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(index) for index in range(len(processor))]
    pieces = [piece for piece in pieces if piece not in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    return "".join(f"{piece} 1\n" for piece in pieces) + "<mask> 0\n"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True, metavar="FILE", help="documents.jsonl")
    parser.add_argument(
        "--size",
        type=int,
        required=True,
        metavar="N",
        help="pieces in all: 2400 suits the demo, 4000 and more real text",
    )
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="gets spm.model and dict.txt")
    return parser


def main(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    least = len(SPECIAL) + 1 + len(PUNCTUATION) + BYTES
    if options.size <= least:
        raise UserError(f"--size {options.size}: more than {least} are needed, which are special symbols and bytes")
    documents = progress(read_documents(options.documents), "vocabulary")
    model = learn((segment for document in documents for segment in document["segments"]), options.size)
    with atomic_open(options.output_dir / "spm.model", "wb") as file:
        file.write(model)
    with atomic_open(options.output_dir / "dict.txt") as file:
        file.write(dictionary(model))


if __name__ == "__main__":
    run_main(main)
