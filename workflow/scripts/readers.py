"""Readers of the official releases: one function per form, from raw files to examples.

A reader takes `inputs` (a dict from input key to path) and `options` (a dict) and returns a dict from split (train,
valid, test) to an iterable of `Example`, of `LeftOut` for what the task's protocol does not use, and of `Deferred` for
what is costly to make and therefore made by a process of its own. It says where each example stands, so that `prepare`
can name the place of what is wrong with its text; what every data set needs (one line per text, nothing empty, no
duplicate ids) is done there, once. A new data set is one more function and one more entry in `READERS`.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import re
import tarfile
import xml.sax
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from common import (
    DAMAGED,
    OFFICIAL_REFERENCES,
    SPLITS,
    TarMember,
    UserError,
    json_row,
    open_tar,
    progress,
    read_json,
    read_lines,
    single_line,
)


class Example(NamedTuple):
    """One example as a release has it; `where` is its place for error messages (file and line, archive and member)."""

    where: str
    id: str
    source: str
    references: list[str]
    group: str | None = None


class LeftOut(NamedTuple):
    """A part of the release that the task's protocol does not use. It is counted by its reason, never silently gone."""

    where: str
    reason: str


class Deferred(NamedTuple):
    """An example that is yet to be made: `function(*arguments)` returns it, or None where there is none after all."""

    function: Callable[..., Example | LeftOut | None]
    arguments: tuple


Splits = dict[str, Iterable[Example | LeftOut | Deferred]]


def _check_inputs(inputs: dict[str, Path], *names: str) -> None:
    if set(inputs) != set(names):
        given = ", ".join(sorted(inputs)) or "none"
        raise UserError(f"this reader needs the inputs {', '.join(names)}; given: {given}")


def _check_split_inputs(inputs: dict[str, Path]) -> None:
    """One input per split; a split may be absent."""
    if not inputs or not set(inputs) <= set(SPLITS):
        given = ", ".join(sorted(inputs)) or "none"
        raise UserError(
            f"this reader takes the inputs {', '.join(SPLITS)}, of which some may be absent; given: {given}"
        )


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
    """E2E NLG challenge, original or cleaned: CSV or TSV files with the columns mr and ref.

    Training keeps its rows; validation and test have one example per meaning representation, with all its references,
    in the order of first appearance, as the official evaluation groups them. The option `linearisation` is `original`
    (`linearise_e2e`) or `mr`, the meaning representation as it stands in the release.
    """
    _check_split_inputs(inputs)
    _check_options(options, "linearisation")
    form = options.get("linearisation", "original")
    if form not in ("original", "mr"):
        raise UserError(f"the option linearisation is {form!r}; it can be original or mr")
    rows = {split: _e2e_rows(path, split, as_released=form == "mr") for split, path in inputs.items()}
    return {split: rows[split] if split == "train" else _grouped(rows[split]) for split in rows}


def _e2e_rows(path: Path, split: str, as_released: bool) -> Iterator[Example]:
    for number, (where, row) in enumerate(csv_rows(path, "mr", "ref"), 1):
        for column in ("mr", "ref"):
            if not row[column].strip():
                raise UserError(f"{where}: the column {column} is empty")
        linearised = linearise_e2e(row["mr"], where)  # in any case: it checks the representation as well
        yield Example(where, f"{split}-{number}", row["mr"].strip() if as_released else linearised, [row["ref"]])


def linearise_e2e(mr: str, where: str) -> str:
    """`name[X], eatType[Y]` -> `name : X | Type : Y`, in the fixed order of `E2E_ATTRIBUTES`.

    E2E-cleaned has attributes with several values: each is a pair of its own, in the order of the release.
    """
    if not re.fullmatch(r"[^\[\],]+\[[^\[\]]+\](, *[^\[\],]+\[[^\[\]]+\])*", mr.strip()):
        raise UserError(f"{where}: not a meaning representation of the form name[X], food[Y]: {mr!r}")
    values: dict[str, list[str]] = {}
    for key, value in re.findall(r"([^\[\],]+)\[([^\[\]]+)\]", mr):
        key = key.strip()
        if key not in E2E_ATTRIBUTES:
            raise UserError(f"{where}: unknown attribute {key!r}; known are {', '.join(E2E_ATTRIBUTES)}")
        values.setdefault(key, []).append(value.strip())
    return " | ".join(f"{name} : {value}" for key, name in E2E_ATTRIBUTES.items() for value in values.get(key, []))


def csv_rows(path: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file and line where the row begins, {column: field}) of a CSV or TSV file with a header.

    Raises:
        UserError: a quote is wrong, a column is missing, or a row has not as many fields as the header.
    """
    lines = (line + "\n" for _, line in read_lines(path))
    first = list(itertools.islice(lines, 1))
    delimiter = "\t" if first and "\t" in first[0] else ","
    reader = csv.reader(itertools.chain(first, lines), delimiter=delimiter, strict=True)
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


# Triples: WebNLG and DART ---------------------------------------------------------------------------------------------

Triple = tuple[str, str, str]


@dataclass
class _Entry:
    """An entry of a release: triples, and texts with the comment that each carries (its quality, or its source)."""

    where: str
    id: str
    category: str | None
    triples: list[Triple] = field(default_factory=list)
    texts: list[tuple[str | None, str]] = field(default_factory=list)


def read_webnlg(inputs: dict[str, Path], options: dict) -> Splits:
    """WebNLG 2017: per split one XML file, or a tar archive of them, whose members are taken in natural order.

    One example per entry, with the category as its group. Training and validation have the texts marked good, as in
    the original prefix-tuning (its one reader of this data served both); the test set has the first three texts of each
    entry, marked as they may be and identical or not, which are the references of the official evaluation.

    Options: `linearisation` (original, bars or tags), `references` (how many texts of a test entry; null for all).
    """
    _check_split_inputs(inputs)
    styles = {"original": _webnlg_original, "bars": _linearise_bars, "tags": _linearise_tags}
    linearise, most = _triple_options(options, styles)
    return {split: _webnlg_examples(path, split, linearise, most) for split, path in inputs.items()}


def _webnlg_examples(path: Path, split: str, linearise: Callable, most: int | None) -> Iterator[Example | LeftOut]:
    for entry in _xml_entries(path):
        if split == "test":
            texts = [text for _, text in entry.texts[:most]]
            yield from _beyond(entry, most)
        else:
            texts = [text for comment, text in entry.texts if comment == "good"]
            yield from [LeftOut(entry.where, "text not marked good")] * (len(entry.texts) - len(texts))
        if texts:
            yield Example(entry.where, entry.id, linearise(entry.triples), texts, entry.category)
        else:
            yield LeftOut(entry.where, "entry without a text marked good")


def read_dart(inputs: dict[str, Path], options: dict) -> Splits:
    """DART v1.1.1: one JSON or XML file per split; which of the two is seen from its content.

    One example per entry, also where several entries have the same triples, as in the official evaluation, whose
    references are the first three texts of each test entry. The group is the source of an entry's texts (webnlg, e2e,
    WikiSQL_lily ...) where they agree on one. Empty texts, which the release has, are left out.

    Options: as those of `read_webnlg`.
    """
    _check_split_inputs(inputs)
    styles = {"original": _dart_original, "bars": _dart_original, "tags": _linearise_tags}
    linearise, most = _triple_options(options, styles)
    return {
        split: _dart_examples(path, linearise, most if split == "test" else None, split)
        for split, path in inputs.items()
    }


def _dart_examples(path: Path, linearise: Callable, most: int | None, split: str) -> Iterator[Example | LeftOut]:
    for entry in _json_entries(path, split) if _is_json(path) else _xml_entries(path):
        texts = [text for _, text in entry.texts[:most] if text.strip()]
        yield from _beyond(entry, most)
        yield from [LeftOut(entry.where, "empty text")] * (len(entry.texts[:most]) - len(texts))
        sources = {comment for comment, _ in entry.texts}
        if texts:
            yield Example(
                entry.where, entry.id, linearise(entry.triples), texts, sources.pop() if len(sources) == 1 else None
            )
        else:
            yield LeftOut(entry.where, "entry without a text")


def _beyond(entry: _Entry, most: int | None) -> list[LeftOut]:
    """What the official evaluation does not look at."""
    return [] if most is None else [LeftOut(entry.where, f"text beyond the first {most}")] * len(entry.texts[most:])


def _triple_options(options: dict, styles: dict[str, Callable]) -> tuple[Callable, int | None]:
    """(the function that linearises, the most references of a test example) of a reader's options."""
    _check_options(options, "linearisation", "references")
    style, most = options.get("linearisation", "original"), options.get("references", OFFICIAL_REFERENCES)
    if style not in list(styles):
        raise UserError(f"unknown linearisation {style!r}; there are: {', '.join(styles)}")
    if not (most is None or (type(most) is int and most > 0)):
        raise UserError(f"the option references is {most!r}, not a number above 0 or null")
    return styles[style], most


def _webnlg_original(triples: list[Triple]) -> str:
    """` | S : R : O` for every triple, the first included, underscores and case as they are.

    So the original prefix-tuning trained. Its reader of the test set left the first bar of the first entry out, a slip
    that is not repeated here. A prepared text has no outer spaces: the one before the first bar is not there.
    """
    return "".join(f" | {' : '.join(triple)}" for triple in triples)


def _dart_original(triples: list[Triple]) -> str:
    """`S : r : O | S : r : O` with lower-cased relations: the original prefix-tuning, and LoRA after it."""
    return " | ".join(f"{subject} : {relation.lower()} : {value}" for subject, relation, value in triples)


def _linearise_bars(triples: list[Triple]) -> str:
    """`S : R : O | S : R : O`, with bars between triples only: WebNLG in LoRA's harness."""
    return " | ".join(map(" : ".join, triples))


def _linearise_tags(triples: list[Triple]) -> str:
    """`<H> S <R> R <T> O <H> S ...`, as work with T5 and BART marks triples."""
    return " ".join(f"<H> {subject} <R> {relation} <T> {value}" for subject, relation, value in triples)


def _is_json(path: Path) -> bool:
    first = next((line.strip() for _, line in read_lines(path) if line.strip()), "")
    return first.startswith("[")


def _json_entries(path: Path, split: str) -> Iterator[_Entry]:
    entries = read_json(path)
    for number, value in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        try:
            triples = [(subject, relation, value) for subject, relation, value in value["tripleset"]]
            texts = [(annotation["source"], annotation["text"]) for annotation in value["annotations"]]
            sound = all(isinstance(part, str) for part in (*sum(triples, ()), *sum(texts, ())))
        except (TypeError, KeyError, ValueError):
            sound = False
        if not (sound and triples):
            raise UserError(f"{where}: expected tripleset (lists of three texts) and annotations (source and text)")
        yield _checked(_Entry(where, f"{split}-{number}", None, triples, texts))


def _xml_entries(path: Path) -> Iterator[_Entry]:
    """Entries of an XML file, or of all XML files in a tar archive, in the natural order of their names.

    An entry's id is its eid; in an archive, where each file counts from 1, the file's name stands before it.
    """
    if path.name.endswith(".xml"):
        with open(path, "rb") as file:
            yield from _parse_xml(file, str(path))
        return
    try:
        tarfile.open(path, tarinfo=TarMember).close()
    except tarfile.ReadError:
        raise UserError(f"{path}: neither a file named .xml nor a tar archive (perhaps .gz) of such files") from None
    except (*DAMAGED, OSError) as error:
        raise UserError(f"{path}: truncated or damaged archive ({error}); fetch it again") from None
    files: dict[str, list[_Entry]] = {}
    with open_tar(path) as members:
        for name, _, file in members:
            if name in files:
                raise UserError(f"{path}: the member {name} stands twice in the archive")
            if name.endswith(".xml"):
                files[name] = list(_parse_xml(file, f"{path}, {name}"))
    if not files:
        raise UserError(f"{path}: no XML file in it")
    for name in sorted(files, key=_natural_key):
        for entry in files[name]:
            entry.id = f"{PurePosixPath(name).stem}/{entry.id}"
            yield entry


def _natural_key(name: str) -> list[str | int]:
    """Sorts `a2` before `a10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def _parse_xml(file: BinaryIO, name: str) -> Iterator[_Entry]:
    """Entries of an open XML file that errors call `name`; a DOCTYPE, and with it any entity of its own, is refused."""
    import defusedxml
    import defusedxml.sax

    handler = _EntryHandler(name)
    try:
        defusedxml.sax.parse(file, handler, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise UserError(
            f"{handler.where()}: declares a DOCTYPE or entities, which no release does; the file is refused"
        ) from None
    except xml.sax.SAXParseException as error:
        raise UserError(f"{name}, line {error.getLineNumber()}: malformed XML ({error.getMessage()})") from None
    except (LookupError, ValueError) as error:
        raise UserError(f"{handler.where()}: not to be decoded ({error})") from None
    yield from map(_checked, handler.entries)


def _checked(entry: _Entry) -> _Entry:
    if not entry.texts:
        raise UserError(f"{entry.where}: the entry {entry.id} has no text; use the release with references")
    return entry


class _EntryHandler(xml.sax.ContentHandler):
    """Collects the entries of <benchmark><entries><entry category eid><modifiedtripleset><mtriple>...<lex comment>."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.entries: list[_Entry] = []
        self._name = name
        self._text: list[str] | None = None  # of the mtriple or lex that is open
        self._comment: str | None = None
        self._begin = ""

    def where(self) -> str:
        return f"{self._name}, line {self._locator.getLineNumber()}"

    def startElement(self, name: str, attributes) -> None:
        if self._text is not None:
            raise UserError(f"{self.where()}: <{name}> inside a text; is this another version of the release?")
        if name == "entry":
            if "eid" not in attributes:
                raise UserError(f"{self.where()}: an entry without eid")
            self.entries.append(_Entry(self.where(), attributes["eid"], attributes.get("category")))
        elif name in ("mtriple", "lex"):
            if not self.entries:
                raise UserError(f"{self.where()}: <{name}> outside an entry")
            self._text, self._begin, self._comment = [], self.where(), attributes.get("comment")

    def characters(self, content: str) -> None:
        if self._text is not None:
            self._text.append(content)

    def endElement(self, name: str) -> None:
        if name == "entry" and not self.entries[-1].triples:
            raise UserError(f"{self.entries[-1].where}: the entry {self.entries[-1].id} has no <mtriple>")
        if self._text is None:
            return
        text, self._text = "".join(self._text), None
        if name == "lex":
            self.entries[-1].texts.append((self._comment, text))
        else:
            parts = tuple(part.strip() for part in text.split(" | "))
            if len(parts) != 3 or not all(parts):
                raise UserError(f"{self._begin}: not a triple of the form S | R | O: {text.strip()!r}")
            self.entries[-1].triples.append(parts)


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
_ADDRESS = re.compile(r".*https?://[^/?#\s]+([^?#\s]*)")  # the path of the last one, inside the Wayback Machine's
_XSUM_MAX_BYTES = 4_000_000  # of one article; the longest real one is far below


def read_xsum_raw(inputs: dict[str, Path], options: dict) -> Splits:
    """XSUM as released: `archive` (tar.gz with one {id}.summary or {id}.data per article) and `splits` (JSON of ids).

    The archive is streamed once and never extracted. Its order is not that of the splits, so the articles are kept in
    memory until their turn: 0.7 GB for all 226,711.

    Option `topics`: for each split a list of patterns of topics (`news/uk`, `news/*`; one that begins with a dash takes
    away again), for splits that the training set does not prepare for. A topic comes from the article's address.
    """
    _check_inputs(inputs, "archive", "splits")
    topics = _xsum_topics(options)
    splits = _xsum_splits(inputs["splits"])
    articles = _xsum_articles(inputs["archive"], {id_ for ids in splits.values() for id_ in ids})
    for split, ids in splits.items():
        if missing := [id_ for id_ in ids if id_ not in articles]:
            raise UserError(
                f"{inputs['archive']}: {len(missing)} of the {len(ids)} articles of the {split} split are not in it, "
                f"such as {', '.join(missing[:3])}; use the archive that belongs to {inputs['splits']}"
            )
    return {split: _xsum_deferred(inputs["archive"], ids, articles, topics.get(split)) for split, ids in splits.items()}


def _xsum_deferred(
    archive: Path, ids: list[str], articles: dict[str, bytes], topics: tuple[str, ...] | None
) -> Iterator[Deferred]:
    for id_ in ids:
        yield Deferred(_xsum_example, (f"{archive}, article {id_}", id_, articles.pop(id_), topics))


def _xsum_topics(options: dict) -> dict[str, tuple[str, ...]]:
    _check_options(options, "topics")
    topics = options.get("topics", {})
    sound = isinstance(topics, dict) and set(topics) <= set(SPLITS)
    if not (sound and all(isinstance(patterns, list) and patterns for patterns in topics.values())):
        raise UserError(f"the option topics must give lists of patterns for some of {', '.join(SPLITS)}")
    return {split: tuple(map(str, patterns)) for split, patterns in topics.items()}


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
    """Files of the wanted ids; other members of the archive are passed over."""
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
            articles[id_] = file.read()
            bar.update()
    return articles


def _xsum_example(where: str, id_: str, article: bytes, topics: tuple[str, ...] | None) -> Example | LeftOut:
    try:
        text = article.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start + 1})") from None
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if line.startswith("[") and (marker := _XSUM_MARKER.match(line)):
            lines = sections.setdefault(marker[1], [])
        elif line not in XSUM_BOILERPLATE and line.strip():
            lines.append(line)
    summary = sections.get("FIRST-SENTENCE", sections.get("INTRODUCTION"))
    if summary is None or "RESTBODY" not in sections:
        raise UserError(f"{where}: not an XSUM article; it lacks a section FIRST-SENTENCE (INTRODUCTION) or RESTBODY")
    topic = xsum_topic("".join(sections.get("URL", [])))
    if topics and topic is None:
        return LeftOut(where, "no topic in the article's address")
    if topics and not _matches(topic, topics):
        return LeftOut(where, "topic not in this split")
    if not sections["RESTBODY"]:
        return LeftOut(where, "article without a text")
    return Example(where, id_, "\n".join(sections["RESTBODY"]), ["\n".join(summary)], topic)


def _matches(topic: str, patterns: tuple[str, ...]) -> bool:
    """Whether some pattern takes the topic in and none that begins with a dash takes it away."""
    taken = any(fnmatchcase(topic, pattern) for pattern in patterns if not pattern.startswith("-"))
    return taken and not any(fnmatchcase(topic, pattern[1:]) for pattern in patterns if pattern.startswith("-"))


def xsum_topic(url: str) -> str | None:
    """`http://web.archive.org/web/2015/http://www.bbc.co.uk/news/uk-wales-34` -> `news/uk`; None where it says nothing.

    News articles say their topic before the first hyphen of the last part, the others in the second part of the path.
    """
    address = _ADDRESS.match(url)
    section, *rest = [part for part in address[1].split("/") if part] or [""] if address else [""]
    if not section.isalpha():
        return None
    topic = rest[0].partition("-")[0] if section == "news" and rest else rest[0] if len(rest) > 1 else ""
    return f"{section}/{topic}" if topic and not topic.isdigit() else section


# JSON lines and parquet -----------------------------------------------------------------------------------------------

SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class _Fields:
    """Which fields of a row are what; the options of `read_jsonl_splits`."""

    source: str
    target: str | tuple[str, ...]
    id: str | None
    group: str | None
    split: str | None
    leave_out_empty: bool

    @classmethod
    def of(cls, options: dict) -> _Fields:
        values = {"source": "source", "target": "target", "id": None, "group": None, "split": None}
        values |= {"leave_out_empty": False} | options
        _check_options(options, *cls.__dataclass_fields__)
        target = values["target"]
        if isinstance(target, list) and target and all(isinstance(name, str) for name in target):
            values["target"] = tuple(target)
        elif not isinstance(target, str):
            raise UserError(f"the option target is {target!r}, neither a field's name nor a list of such names")
        for name in ("source", "id", "group", "split"):
            if not isinstance(values[name], str if name == "source" else str | None):
                raise UserError(f"the option {name} is {values[name]!r}, not a field's name")
        if not isinstance(values["leave_out_empty"], bool):
            raise UserError(f"the option leave_out_empty is {values['leave_out_empty']!r}, neither true nor false")
        return cls(**values)

    def names(self) -> list[str]:
        """All of them, without those that are not given."""
        targets = self.target if isinstance(self.target, tuple) else (self.target,)
        return [name for name in (self.source, *targets, self.id, self.group, self.split) if name]


def read_jsonl_splits(inputs: dict[str, Path], options: dict) -> Splits:
    """JSON lines (plain or .gz), one file per split, one example per line.

    Options name the fields: `source` (a text, or a list of sentences that are joined by a space), `target` (a text, or
    a list of references; or a list of names: the references are in all of these fields that a row has), and optionally
    `id` (otherwise the line's number), `group`, and `split` (where splits share a file: only the rows that say theirs
    are taken). The first two default to "source" and "target". With `leave_out_empty` a row whose source is empty is
    left out and counted; otherwise it is an error.
    """
    _check_split_inputs(inputs)
    fields = _Fields.of(options)
    return {split: _jsonl_examples(path, split, fields) for split, path in inputs.items()}


def _jsonl_examples(path: Path, split: str, fields: _Fields) -> Iterator[Deferred]:
    for number, line in read_lines(path):
        yield Deferred(_jsonl_example, (path, split, fields, number, line))


def _jsonl_example(path: Path, split: str, fields: _Fields, number: int, line: str) -> Example | None:
    return _row_example(f"{path}, line {number}", json_row(path, number, line), split, fields, number)


def read_parquet_splits(inputs: dict[str, Path], options: dict) -> Splits:
    """Parquet, one file per split, one example per row, streamed; options as those of `read_jsonl_splits`.

    Raises:
        UserError: pyarrow, which reads the format, is not installed.
    """
    _check_split_inputs(inputs)
    fields = _Fields.of(options)
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "the reader parquet needs pyarrow, which is not installed: pip install pyarrow, or give JSON lines"
        ) from None
    return {split: _parquet_examples(parquet, path, split, fields) for split, path in inputs.items()}


def _parquet_examples(parquet, path: Path, split: str, fields: _Fields) -> Iterator[Deferred]:
    damaged = importlib.import_module("pyarrow").ArrowException
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in fields.names() if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=512, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    row = {name: value for name, value in row.items() if value is not None}
                    yield Deferred(_row_example, (f"{path}, row {number}", row, split, fields, number))
    except (damaged, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise UserError(
            f"{path}: not a parquet file, or a damaged one ({single_line(str(error))}); fetch it again"
        ) from None


def _row_example(where: str, row: dict, split: str, fields: _Fields, number: int) -> Example | LeftOut | None:
    """The example of a row, or None where the row belongs to another split."""
    if fields.split and not _is_of(split, row, fields.split, where):
        return None
    if isinstance(fields.target, str):
        optional, targets = (), [fields.target]
    else:
        optional, targets = fields.target, [name for name in fields.target if name in row]
    if missing := [name for name in fields.names() if name not in row and name not in optional]:
        raise UserError(f"{where}: no field {missing[0]!r}; found {', '.join(row)}")
    if fields.id and not isinstance(row[fields.id], str | int):
        raise UserError(
            f"{where}: the field {fields.id!r} is neither a text nor a number; without the option id, "
            "examples are numbered"
        )
    if not targets:
        raise UserError(f"{where}: none of the fields {', '.join(optional)}; found {', '.join(row)}")
    source = " ".join(_texts(row, fields.source, where))
    if fields.leave_out_empty and not source.strip():
        return LeftOut(where, "empty source")
    return Example(
        where,
        str(row[fields.id]) if fields.id else f"{split}-{number}",
        source,
        [text for name in targets for text in _texts(row, name, where)],
        row[fields.group] if fields.group else None,
    )


def _is_of(split: str, row: dict, name: str, where: str) -> bool:
    value = row.get(name)
    if not any(value in names for names in SPLIT_NAMES.values()):
        known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise UserError(f"{where}: the field {name!r} is {value!r}, which names no split; known are {known}")
    return value in SPLIT_NAMES[split]


def _texts(row: dict, name: str, where: str) -> list[str]:
    """The text or list of texts of a field, as a list."""
    texts = row[name] if isinstance(row[name], list) else [row[name]]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: the field {name!r} is neither a text nor a list of texts")
    return texts


READERS = {
    "dart": read_dart,
    "e2e": read_e2e,
    "jsonl": read_jsonl_splits,
    "parquet": read_parquet_splits,
    "webnlg": read_webnlg,
    "xsum_raw": read_xsum_raw,
}
