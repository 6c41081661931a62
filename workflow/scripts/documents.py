"""Documents that a base is pretrained on, one per line of documents.jsonl: texts in segments, such as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common import UserError, read_jsonl, read_lines, vocabulary


def read_documents(path: str | Path) -> Iterator[dict]:
    """The documents of a file, checked: {"segments": [text, ...], "focus": [index, ...]}.

    Raises:
        UserError: a line that is not such a document (named).
    """
    for number, row in read_jsonl(path):
        yield check_document(row, f"{path}, line {number}")


def check_document(row: object, where: str) -> dict:
    """Return the row if it is a document, its segments cleaned; otherwise a `UserError` says what is wrong `where`."""
    segments, focus = (row.get("segments"), row.get("focus", [])) if isinstance(row, dict) else (None, None)
    if not isinstance(segments, list) or not segments:
        raise UserError(f'{where}: a document needs "segments", a list of at least one text')
    cleaned = []
    for index, segment in enumerate(segments):
        if not isinstance(segment, str):
            raise UserError(f"{where}: segment {index} is not a text")
        try:
            cleaned.append(vocabulary.clean(segment))
        except vocabulary.VocabularyError as error:
            raise UserError(f"{where}: segment {index} {error}") from None
    if not isinstance(focus, list) or any(type(i) is not int or not 0 <= i < len(segments) for i in focus):
        raise UserError(f'{where}: "focus" must be a list of indexes of segments (0 to {len(segments) - 1})')
    return {**row, "segments": cleaned}


def held_out(path: Path, wanted: int) -> tuple[int, set[int]]:
    """The number of documents, and the indexes of those kept for validation: `wanted`, evenly spread.

    Raises:
        UserError: there are too few.
    """
    count = sum(1 for _ in read_lines(path))
    if count <= wanted:
        raise UserError(f"{path}: --valid {wanted} leaves none of {count} documents to train on")
    return count, {index * count // wanted for index in range(wanted)}
