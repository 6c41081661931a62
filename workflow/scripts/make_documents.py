"""Cut real text into documents to pretrain a base on.

    python workflow/scripts/make_documents.py --input novels.tar.gz --output documents.jsonl --limit-words 2000000

Input is UTF-8 text with one paragraph a line: .txt or .txt.gz files, or tar archives of .txt files, which are streamed
and never extracted. A document is a run of consecutive sentences of one text, of at most --max-words words; paragraphs
may meet in it, since a line of dialogue alone would teach little. A sentence longer than that stands alone, whole.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from common import UserError, decode_lines, open_tar, progress, read_lines, run_main, write_jsonl

# A sentence ends with . ! or ? and any closing quotes or brackets, where white space and a capital or digit follow,
# possibly after an opening quote. Not so after a title or an initial (`_ABBREVIATION`), nor in "Really?" said she.
_SENTENCE_END = re.compile(r"""(?<=[.!?])(["'”’»)\]]*)\s+(?=["'“‘«(\[]*[^\W_a-z])""")
_ABBREVIATION = re.compile(
    r"""(?:^|[\s("'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Rev|Esq|Hon|Prof|Capt|Col|Gen|Lieut|Lt|Messrs|Mme|Mlle|vol|No|viz|etc|i\.e|e\.g)\.$"""
)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; joined by single spaces they are the paragraph again (white space apart)."""
    paragraph = " ".join(paragraph.split())
    found, start = [], 0
    for end in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : end.end(1)]
        if not _ABBREVIATION.search(sentence):
            found.append(sentence)
            start = end.end()
    return [*found, paragraph[start:]] if paragraph[start:] else found


def paragraphs(paths: Iterable[Path]) -> Iterator[tuple[int, str]]:
    """(number of the text, paragraph) for each line of the input files, in order.

    Raises:
        UserError: a file or member that is missing, damaged, not UTF-8 or not a .txt (named).
    """
    number = 0
    for path in paths:
        if path.name.endswith((".txt", ".txt.gz")):
            yield from ((number, line) for _, line in read_lines(path))
            number += 1
        elif path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
            with open_tar(path) as members:
                for name, _, file in members:
                    if not name.endswith(".txt"):
                        raise UserError(f"{path}: member {name!r} is not a .txt file; leave it out of the archive")
                    yield from ((number, line) for _, line in decode_lines(file, f"{path}: {name}"))
                    number += 1
        else:
            raise UserError(f"{path}: neither .txt nor .txt.gz nor a tar archive of .txt files")


def documents(paths: Iterable[Path], max_words: int) -> Iterator[list[str]]:
    """Runs of consecutive sentences of one text with at most `max_words` words (or a single longer sentence)."""
    for _, text in groupby(paragraphs(paths), key=itemgetter(0)):
        document, words = [], 0
        for _, paragraph in text:
            for sentence in sentences(paragraph):
                length = len(sentence.split())
                if document and words + length > max_words:
                    yield document
                    document, words = [], 0
                document.append(sentence)
                words += length
        if document:
            yield document


def count_words(document: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in document)


def sample(found: Iterable[list[str]], limit: int, total: int) -> Iterator[list[str]]:
    """About `limit` of the `total` words, in whole documents spread evenly over the input."""
    seen = kept = 0
    for document in found:
        if kept * total <= seen * limit:
            yield document
            kept += count_words(document)
        seen += count_words(document)


def _rows(found: Iterable[list[str]], paths: list[Path]) -> Iterator[dict]:
    empty = True
    for document in found:
        empty = False
        yield {"segments": document, "focus": []}
    if empty:
        raise UserError(f"{', '.join(map(str, paths))}: there is no text in it")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", type=Path, action="extend", nargs="+", required=True, metavar="FILE", help=".txt, .txt.gz, .tar.gz"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="documents.jsonl")
    parser.add_argument("--max-words", type=int, default=100, metavar="N", help="of a document [%(default)s]")
    parser.add_argument(
        "--limit-words", type=int, metavar="N", help="keep about N words, evenly spread (reads the input twice) [all]"
    )
    return parser


def main(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    for name in ("max_words", "limit_words"):
        if (value := vars(options)[name]) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    found = documents(options.input, options.max_words)
    if options.limit_words is not None:
        counting = progress(documents(options.input, options.max_words), "counting")
        total = sum(count_words(document) for document in counting)
        found = sample(found, min(options.limit_words, total), total)
    write_jsonl(options.output, _rows(progress(found, "documents"), options.input))


if __name__ == "__main__":
    run_main(main)
