"""Dictionaries (dict.txt), and which row of a base's embedding belongs to which symbol."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from fairseq.data import Dictionary
from torch import Tensor

from ..errors import UsageError, first_line
from ..interfaces.family import Base, Family

ABSENT_SYMBOLS = "decoder.absent_symbols"  # mask of the symbols that a decoder-only base does not know


def read_dictionary(path: Path) -> Dictionary:
    """Read a dict.txt.

    Raises:
        UsageError: the file is missing or malformed.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file; expected the base's dictionary beside the base")
    try:
        dictionary = Dictionary.load(str(path))
    except Exception as error:  # fairseq raises that very class for text that is not UTF-8
        raise UsageError(f"{path} is not a fairseq dictionary ({first_line(error)})") from None
    dictionary.path = path
    return dictionary


def read_symbols(folder: Path, family: Family) -> list[str] | None:
    """Return the symbols of a base by the dict.txt in its folder, or None if there is none."""
    path = folder / "dict.txt"
    if not path.exists():
        return None
    dictionary = read_dictionary(path)
    append_symbols(dictionary, family)
    return dictionary.symbols


def append_symbols(dictionary: Dictionary, family: Family) -> None:
    """Append the symbols that this family has after those of dict.txt, where the dictionary lacks them.

    Raises:
        UsageError: the dictionary ends with `<mask>`, which comes after them.
    """
    missing = [symbol for symbol in family.appended if symbol not in dictionary.indices]
    if missing and dictionary.symbols[-1] == "<mask>":
        raise UsageError(f"the dictionary ends with <mask>, but a {family.name} has {missing[0]} before it; remove it")
    for symbol in missing:
        dictionary.add_symbol(symbol)
    dictionary.appended = family.appended  # no text may contain them (subwords.py)


def dictionary_fingerprint(symbols: list[str]) -> str:
    """Return the hex SHA-256 of the symbols in order, without a trailing `<mask>`."""
    return hashlib.sha256("\n".join(without_mask(symbols)).encode()).hexdigest()


def without_mask(symbols: list[str]) -> list[str]:
    """Return the symbols without a trailing `<mask>`, which some dictionaries name and others leave to the task."""
    return symbols[:-1] if symbols[-1] == "<mask>" else symbols


def check_dictionary(base: Base, dictionary: Dictionary) -> None:
    """Compare the dictionary of the data with the base's dict.txt, where the base has one.

    Raises:
        UsageError: they differ.
    """
    if base.symbols is None:
        return
    ours, theirs = without_mask(dictionary.symbols), without_mask(base.symbols)
    for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise UsageError(
                f"the dictionary of the data is not the base's ({base.path.parent}/dict.txt): "
                f"symbol {index} is {our!r} instead of {their!r}; binarise the data with the base's dict.txt"
            )
    if len(ours) > len(theirs):
        raise UsageError(
            f"the dictionary of the data has {len(ours)} symbols, the base's {len(theirs)}; "
            "binarise the data with the base's dict.txt"
        )


def place_rows(state: dict[str, Tensor], base: Base, family: Family, dictionary: Dictionary) -> None:
    """Bring the embedding, and the mask of absent symbols, into the order of this dictionary, in place.

    Raises:
        UsageError: rows and symbols do not correspond.
    """
    rows = state[family.embedding]
    if base.rows is not None:
        state[family.embedding], absent = reordered_rows(rows, base, dictionary)
    else:
        absent = state.get(ABSENT_SYMBOLS, torch.zeros(len(rows), dtype=torch.bool))
        absent, state[family.embedding] = (_fitted(part, base, family, dictionary) for part in (absent, rows))
    if "encoder" not in family.parts:
        state[ABSENT_SYMBOLS] = absent


def reordered_rows(rows: Tensor, base: Base, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """Return the embedding in the dictionary's order, and which symbols the model must never produce: those that the
    base lacks and those that share the row of `</s>`.
    """
    order = base.rows or {}
    end = order["</s>"]
    unknown = [symbol for symbol, row in order.items() if symbol not in dictionary.indices and row != end]
    if unknown:
        name, remedy = _blamed(dictionary)
        raise UsageError(
            f"{base.path} has {len(rows)} embeddings, but {name} lacks the token {unknown[0]}; {remedy}, "
            "which names every token (added ones too)"
        )
    indices = torch.tensor([order.get(symbol, -1) for symbol in dictionary.symbols])
    placed = rows[indices.clamp(min=0)] * indices.ge(0)[:, None]
    absent = indices.eq(-1) | indices.eq(end)
    absent[dictionary.eos()] = False
    return placed, absent


def _fitted(rows: Tensor, base: Base, family: Family, dictionary: Dictionary) -> Tensor:
    """Return the rows for this dictionary, which is the base's or its beginning, with or without `<mask>`.

    BART's pretraining task appends `<mask>` to the symbols of dict.txt, so the embedding has one row more.
    """
    size = len(dictionary)
    if len(rows) < size:
        name, remedy = _blamed(dictionary)
        remedy += "" if base.symbols else " (and put it beside the base)"
        raise UsageError(f"{base.path} has {len(rows)} embeddings, but {name} has {size} symbols; {remedy}")
    named = base.symbols or dictionary.symbols
    if "<mask>" not in (plain := without_mask(named)) and (family.mask_row or base.symbols is None):
        known, symbols = [len(plain), len(plain) + 1], f"{len(plain)} symbols and <mask>"
    else:
        known, symbols = [len(named)], f"{len(named)} symbols"
    if len(rows) not in known:
        raise UsageError(
            f"{base.path} has {len(rows)} embeddings, but its dict.txt names {symbols}; name the others there, in the "
            "order of their rows, or remove them"
        )
    if dictionary.symbols[-1] == "<mask>" and len(rows) > size:
        mask = min(named.index("<mask>") if "<mask>" in named else len(rows), len(rows) - 1)
        return torch.cat([rows[: size - 1], rows[mask : mask + 1]])
    return rows[:size]


def _blamed(dictionary: Dictionary) -> tuple[str, str]:
    """Return what a message calls a dictionary that is not the base's, and the remedy."""
    if path := getattr(dictionary, "path", None):
        return str(path), "expected the complete dict.txt of the base"
    return "the dictionary of the data", "binarise the data with the base's dict.txt"
