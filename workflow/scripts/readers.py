"""Readers of the official releases: one function per form, from raw files to examples.

A reader takes `inputs` (a dict from input key to path) and `options` (a dict) and returns a dict from split (train,
valid, test) to an iterable of `Example`. It says where each example stands, so that `prepare` can name the place of
what is wrong with its text; what every data set needs (one line per text, nothing empty, no duplicate ids) is done
there, once. A new data set is one more function and one more entry in `READERS`.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from common import UserError, open_tar, progress, read_json, read_jsonl, read_lines

SPLITS = ("train", "valid", "test")


class Example(NamedTuple):
    """One example as a release has it; `where` is its place for error messages (file and line, archive and member)."""

    where: str
    id: str
    source: str
    references: list[str]
    group: str | None = None


Splits = dict[str, Iterable[Example]]


def _check_inputs(inputs: dict[str, Path], *names: str) -> None:
    if set(inputs) != set(names):
        given = ", ".join(sorted(inputs)) or "none"
        raise UserError(f"this reader needs the inputs {', '.join(names)}; given: {given}")


def _check_options(options: dict, *names: str) -> None:
    for name in options:
        if name not in names:
            raise UserError(f"unknown option {name!r} for this reader; it knows: {', '.join(names) or 'none'}")


# E2E ------------------------------------------------------------------------------------------------------------------

# Attribute of the meaning representation -> its name in the linearisation, in the order of the original prefix-tuning.
# The original also tokenised the text ("family - friendly"); here it stays natural, as BART's and GPT-2's BPE saw it.
E2E_ATTRIBUTES = {
    "name": "name",
    "eatType": "Type",
    "food": "food",
    "priceRange": "price",
    "customer rating": "customer rating",
    "area": "area",
    "familyFriendly": "family friendly",
    "near": "near",
}


def read_e2e(inputs: dict[str, Path], options: dict) -> Splits:
    """E2E NLG challenge: three CSV files with the columns mr and ref.

    Training keeps its rows; validation and test have one example per meaning representation, with all its references,
    in the order of first appearance, as the official evaluation groups them.
    """
    _check_inputs(inputs, *SPLITS)
    _check_options(options)
    return {
        "train": _e2e_rows(inputs["train"], "train"),
        "valid": _grouped(_e2e_rows(inputs["valid"], "valid")),
        "test": _grouped(_e2e_rows(inputs["test"], "test")),
    }


def _e2e_rows(path: Path, split: str) -> Iterator[Example]:
    for number, (where, row) in enumerate(_csv_rows(path, "mr", "ref"), 1):
        for column in ("mr", "ref"):
            if not row[column].strip():
                raise UserError(f"{where}: the column {column} is empty")
        yield Example(where, f"{split}-{number}", linearise_e2e(row["mr"], where), [row["ref"]])


def linearise_e2e(mr: str, where: str) -> str:
    """`name[X], eatType[Y]` -> `name : X | Type : Y`, in the fixed order of `E2E_ATTRIBUTES`."""
    if not re.fullmatch(r"[^\[\],]+\[[^\[\]]+\](, *[^\[\],]+\[[^\[\]]+\])*", mr.strip()):
        raise UserError(f"{where}: not a meaning representation of the form name[X], food[Y]: {mr!r}")
    values: dict[str, str] = {}
    for key, value in re.findall(r"([^\[\],]+)\[([^\[\]]+)\]", mr):
        key = key.strip()
        if key not in E2E_ATTRIBUTES:
            raise UserError(f"{where}: unknown attribute {key!r}; known are {', '.join(E2E_ATTRIBUTES)}")
        if key in values:
            raise UserError(f"{where}: the attribute {key!r} stands twice")
        values[key] = value.strip()
    return " | ".join(f"{name} : {values[key]}" for key, name in E2E_ATTRIBUTES.items() if key in values)


def _csv_rows(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line where the row begins, {column: field}) of a CSV file with a header; quoting is checked."""
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    header: list[str] | None = None
    begin = 1
    while True:
        where = f"{path}, line {begin}"
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(f"{where}: malformed CSV, the row that begins here has a wrong quote ({error})") from None
        begin = reader.line_num + 1
        if header is None:
            header = row
            if missing := [column for column in columns if column not in header]:
                raise UserError(f"{path}, line 1: no column {' or '.join(missing)}; found {', '.join(header)}")
        elif len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields where the header has {len(header)}")
        else:
            yield where, dict(zip(header, row, strict=True))
    if header is None:
        raise UserError(f"{path}: the file is empty")


def _grouped(examples: Iterable[Example]) -> list[Example]:
    """One example per source, with the references of all its rows, in the order of first appearance."""
    first: dict[str, Example] = {}
    for example in examples:
        known = first.setdefault(example.source, example)
        if known is not example:
            known.references.extend(example.references)
    return list(first.values())


# XSUM -----------------------------------------------------------------------------------------------------------------

# The page's furniture that the release left in some articles. These lines, and only where they stand alone, are what
# the common distribution of XSUM removes; a reader that removes more or less has another data set.
XSUM_BOILERPLATE = {
    "Share this with",
    "Email",
    "Facebook",
    "Messenger",
    "Twitter",
    "Pinterest",
    "WhatsApp",
    "Linkedin",
    "LinkedIn",
    "Copy this link",
    "These are external links and will open in a new window",
}
_XSUM_MARKER = re.compile(r"^\[(?:SN|XSUM)\]([A-Z-]+)\[(?:SN|XSUM)\]$")
_XSUM_MAX_BYTES = 4_000_000  # of one article; the longest real one is far below


def read_xsum_raw(inputs: dict[str, Path], options: dict) -> Splits:
    """XSUM as released: `archive` (tar.gz with one {id}.summary or {id}.data per article) and `splits` (JSON of ids).

    The archive is streamed once and never extracted. Its order is not that of the splits, so the articles are kept
    deflated in memory until their turn: about a third of a gigabyte for all 226,711.
    """
    _check_inputs(inputs, "archive", "splits")
    _check_options(options)
    splits = _xsum_splits(inputs["splits"])
    articles = _xsum_articles(inputs["archive"], {id_ for ids in splits.values() for id_ in ids})
    for split, ids in splits.items():
        if missing := [id_ for id_ in ids if id_ not in articles]:
            raise UserError(
                f"{inputs['archive']}: {len(missing)} of the {len(ids)} articles of the {split} split are not in it, "
                f"such as {', '.join(missing[:3])}; use the archive that belongs to {inputs['splits']}"
            )
    return {
        split: (_xsum_example(f"{inputs['archive']}, article {id_}", id_, articles[id_]) for id_ in ids)
        for split, ids in splits.items()
    }


def _xsum_splits(path: Path) -> dict[str, list[str]]:
    """Ids of each split; an id that stands twice anywhere is an error."""
    value = read_json(path)
    names = {"train": "train", "valid": "validation", "test": "test"}
    lists = [value.get(name) for name in names.values()] if isinstance(value, dict) else [None]
    if not all(isinstance(ids, list) and all(isinstance(id_, str) for id_ in ids) for ids in lists):
        raise UserError(f"{path}: expected an object with the lists of ids train, validation and test")
    splits = dict(zip(names, lists, strict=True))
    seen: dict[str, str] = {}
    for split, ids in splits.items():
        for id_ in ids:
            if id_ in seen:
                raise UserError(f"{path}: the id {id_} stands in {seen[id_]} and again in {split}")
            seen[id_] = split
    return splits


def _xsum_articles(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """Deflated files of the wanted ids; other members of the archive are passed over."""
    articles: dict[str, bytes] = {}
    with open_tar(path) as members, progress(None, "articles", total=len(wanted)) as bar:
        for name, member, file in members:
            id_, _, suffix = name.rpartition("/")[2].rpartition(".")
            if suffix not in ("summary", "data") or id_ not in wanted:
                continue
            if id_ in articles:
                raise UserError(f"{path}: the article {id_} stands twice in the archive (again as {name})")
            if member.size > _XSUM_MAX_BYTES:
                raise UserError(f"{path}: member {name} has {member.size} bytes, more than any article")
            articles[id_] = zlib.compress(file.read(), 1)
            bar.update()
    return articles


def _xsum_example(where: str, id_: str, deflated: bytes) -> Example:
    try:
        text = zlib.decompress(deflated).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start + 1})") from None
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if marker := _XSUM_MARKER.match(line):
            lines = sections.setdefault(marker[1], [])
        elif line not in XSUM_BOILERPLATE and line.strip():
            lines.append(line)
    summary = sections.get("FIRST-SENTENCE", sections.get("INTRODUCTION"))
    if summary is None or "RESTBODY" not in sections:
        raise UserError(f"{where}: not an XSUM article; it lacks a section FIRST-SENTENCE (INTRODUCTION) or RESTBODY")
    topic = xsum_topic("".join(sections.get("URL", [])))
    return Example(where, id_, "\n".join(sections["RESTBODY"]), ["\n".join(summary)], topic)


def xsum_topic(url: str) -> str | None:
    """`http://web.archive.org/web/2015/http://www.bbc.co.uk/news/uk-wales-34` -> `news/uk`; None where it says nothing.

    News articles say their topic before the first hyphen of the last part, the others in the second part of the path.
    """
    address = urlsplit("".join(url.strip().rpartition("http")[1:]))  # the last one, inside the Wayback Machine's
    section, *rest = [part for part in address.path.split("/") if part] or [""]
    if not (address.netloc and section.isalpha()):
        return None
    topic = rest[0].partition("-")[0] if section == "news" and rest else rest[0] if len(rest) > 1 else ""
    return f"{section}/{topic}" if topic and not topic.isdigit() else section


# JSON lines -----------------------------------------------------------------------------------------------------------


def read_jsonl_splits(inputs: dict[str, Path], options: dict) -> Splits:
    """JSON lines (plain or .gz), one file per split, one example per line.

    Options name the fields: `source` (a text, or a list of sentences that are joined by a space), `target` (a text, or
    a list of references), and optionally `id` (otherwise the line's number) and `group`. The first two default to
    "source" and "target".
    """
    _check_inputs(inputs, *SPLITS)
    _check_options(options, "source", "target", "id", "group")
    fields = {"source": "source", "target": "target", "id": None, "group": None} | options
    return {split: _jsonl_examples(inputs[split], split, fields) for split in SPLITS}


def _jsonl_examples(path: Path, split: str, fields: dict[str, str | None]) -> Iterator[Example]:
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        if missing := [name for name in fields.values() if name and name not in row]:
            raise UserError(f"{where}: no field {missing[0]!r}; found {', '.join(row)}")
        if fields["id"] and not isinstance(row[fields["id"]], str | int):
            raise UserError(
                f"{where}: the field {fields['id']!r} is neither a text nor a number; without the option id, "
                "examples are numbered"
            )
        yield Example(
            where,
            str(row[fields["id"]]) if fields["id"] else f"{split}-{number}",
            " ".join(_texts(row, fields["source"], where)),
            _texts(row, fields["target"], where),
            row[fields["group"]] if fields["group"] else None,
        )


def _texts(row: dict, name: str, where: str) -> list[str]:
    """The text or list of texts of a field, as a list."""
    texts = row[name] if isinstance(row[name], list) else [row[name]]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: the field {name!r} is neither a text nor a list of texts")
    return texts


READERS = {"e2e": read_e2e, "xsum_raw": read_xsum_raw, "jsonl": read_jsonl_splits}
