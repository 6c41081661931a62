"""Published scores of other people's systems against ours: on the real outputs where they are, on made-up ones always.

`python tests/test_published.py` prints the whole table. METEOR, ROUGE-L of E2E and CIDEr need Java (make test-scores).
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "workflow" / "scripts"))

import java_tools  # noqa: E402
from metrics import SEEN, Segments, Statistics, statistics, unavailable  # noqa: E402

THREADS = 2
SPLITS = {"all": "all", "old": "seen", "new": "unseen"}
TEAMS = {"Baseline": "baseline_sorted", "GKB_Unimelb": "melbourne", "UPF-TALN": "upf-forge"}
JAVA = {("e2e", "meteor"), ("e2e", "rouge"), ("e2e", "cider"), ("webnlg", "meteor"), ("dart", "meteor")}


class Line(NamedTuple):
    """One published figure, and ours in the same unit; `digits` is what was published."""

    data: str
    system: str
    score: str
    published: float
    ours: float
    digits: int

    @property
    def equal(self) -> bool:
        return round(self.ours, self.digits) == round(self.published, self.digits)


def read(path: Path) -> list[str]:
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as file:
        return file.read().removesuffix("\n").split("\n")


# E2E: BLEU, NIST, METEOR, ROUGE-L and CIDEr of ten outputs on the development set -------------------------------------


def e2e_references(folder: Path) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    with open(folder / "e2e" / "devset.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["mr"], []).append(row["ref"])
    return list(groups.values())


def e2e(folder: Path, metrics: tuple[str, ...], systems: slice = slice(None)) -> Iterator[Line]:
    references = e2e_references(folder)
    published = [line.split("\t") for line in read(folder / "references" / "e2e_dev" / "scores.tsv")]
    columns, rows = published[0], published[1:][systems]
    outputs = [read(folder / "references" / "e2e_dev" / row[0]) for row in rows]
    for metric in metrics:
        if metric == "meteor":  # its segments do not depend on each other, and the program takes long to start
            scored = at_once(metric, outputs, references, "e2e")
        else:
            scored = [statistics(metric, Segments(texts, references), {"protocol": "e2e"}) for texts in outputs]
        column = columns.index({"rouge": "rouge_l"}.get(metric, metric))
        unit = 1 if metric in ("nist", "cider") else 100
        for row, part in zip(rows, scored, strict=True):
            yield Line("E2E dev", row[0].removesuffix(".txt"), metric, float(row[column]), part.scores()[0] / unit, 4)


def at_once(metric: str, outputs: list[list[str]], references: list[list[str]], protocol: str) -> list[Statistics]:
    """The statistics of several systems, of which the metric sees all segments in one go."""
    together = Segments([text for texts in outputs for text in texts], references * len(outputs), THREADS)
    whole, size = statistics(metric, together, {"protocol": protocol}), len(references)
    return [whole.subset(range(start, start + size)) for start in range(0, size * len(outputs), size)]


# WebNLG 2017: BLEU, METEOR and TER of three systems, over all, seen and unseen categories -----------------------------


def webnlg_entries(folder: Path) -> tuple[list[list[str]], list[str]]:
    """(references, category) of every entry of the official test set."""
    root = xml.etree.ElementTree.parse(folder / "webnlg2017" / "test" / "testdata_with_lex.xml").getroot()
    entries = list(root.iter("entry"))
    return [[lex.text for lex in entry.findall("lex")] for entry in entries], [
        entry.get("category") for entry in entries
    ]


def webnlg_prepared(folder: Path, team: str) -> tuple[list[str], list[list[str]]]:
    """What the official scripts had prepared: hypotheses, and references with missing ones left out."""
    base = folder / "references" / "webnlg"
    files = [read(base / "references" / f"gold-all-cat-reference{number}.lex") for number in range(3)]
    references = [[text for text in texts if text] for texts in zip(*files, strict=True)]
    return read(base / f"{team}_all-cat.txt"), references


def webnlg_published(folder: Path, team: str, split: str, metric: str) -> float | None:
    names = {"bleu": f"bleu3ref-{team}_{split}-cat", "ter": f"ter3ref-{team}-{split}-cat"}
    path = folder / "references" / "webnlg" / "published" / f"{names.get(metric, f'meteor-{team}-{split}-cat')}.txt"
    pattern = {"bleu": r"BLEU = ([\d.]+)", "meteor": r"Final score:\s+([\d.]+)", "ter": r"Total TER: ([\d.]+)"}[metric]
    return float(re.search(pattern, path.read_text()).group(1)) if path.exists() else None


def webnlg(folder: Path, metrics: tuple[str, ...], teams: tuple[str, ...] = tuple(TEAMS)) -> Iterator[Line]:
    raw_references, categories = webnlg_entries(folder)
    raw = [read(folder / "references" / "webnlg" / "submissions" / f"{TEAMS[team]}.txt") for team in teams]
    members = {
        "all": list(range(len(categories))),
        "old": [index for index, category in enumerate(categories) if category in SEEN],
        "new": [index for index, category in enumerate(categories) if category not in SEEN],
    }
    for metric in metrics:
        if metric == "meteor":
            scored = at_once(metric, raw, raw_references, "webnlg")
        else:
            scored = [
                statistics(metric, Segments(texts, raw_references, THREADS), {"protocol": "webnlg"}) for texts in raw
            ]
        for team, whole in zip(teams, scored, strict=True):
            for split, indexes in members.items():
                if (published := webnlg_published(folder, team, split, metric)) is not None:
                    unit, digits = (1, 2) if metric == "bleu" else (100, 12)
                    ours = whole.subset(indexes).scores()[0] / unit
                    yield Line("WebNLG 2017", f"{team}, {SPLITS[split]}", metric, published, ours, digits)


# DART and XSUM --------------------------------------------------------------------------------------------------------

DART_PUBLISHED = {"bleu": (48.56, 1, 2), "meteor": (0.39, 100, 2), "ter": (0.45, 100, 2)}


def dart(folder: Path, metrics: tuple[str, ...]) -> Iterator[Line]:
    base = folder / "references" / "dart"
    files = [read(base / f"all-delex-reference{number}.lex") for number in range(3)]
    references = [[text for text in texts if text] for texts in zip(*files, strict=True)]
    segments = Segments(read(base / "bart-large_dart.txt"), references, THREADS)
    for metric in metrics:
        published, unit, digits = DART_PUBLISHED[metric]
        ours = statistics(metric, segments, {"protocol": "dart"}).scores()[0] / unit
        yield Line("DART test", "BART-large", metric, published, ours, digits)


def xsum(folder: Path, systems: tuple[str, ...] = ("lead", "convs2s"), options: dict | None = None) -> Iterator[Line]:
    base = folder / "references" / "xsum"
    references = [[text] for text in read(base / "gold-test-sentences.txt.gz")]
    for system in systems:
        line = (base / f"{system}-test-output.rouge").read_text().split("\n")[0]
        published = [float(value) for value in line.split(": ")[1].split("/")]
        hypotheses = read(base / f"{system}-test-output.txt.gz")
        scored = statistics("rouge", Segments(hypotheses, references, THREADS), options or {})
        for name, value, ours in zip(
            scored.names, (published[0], published[1], published[3]), scored.scores(), strict=True
        ):
            yield Line("XSUM test, perl" if options else "XSUM test", system, name, value, ours, 2)


# Tests on the real data -----------------------------------------------------------------------------------------------

needs_java = pytest.mark.skipif(bool(java_tools.unavailable()), reason=f"METEOR: it {java_tools.unavailable()}")


@pytest.fixture
def folder(shared_data) -> Path:
    return shared_data("references/e2e_dev/scores.tsv").parents[2]


def check(lines: Iterator[Line], count: int) -> None:
    lines = list(lines)
    assert len(lines) == count
    assert not [line for line in lines if not line.equal]


def test_e2e_bleu_and_nist(folder):
    check(e2e(folder, ("bleu", "nist"), slice(0, 10, 4)), 6)


@pytest.mark.slow
@needs_java
def test_e2e(folder):
    check(e2e(folder, ("bleu", "nist", "meteor", "rouge", "cider")), 50)


def test_webnlg_bleu(folder):
    check(webnlg(folder, ("bleu",)), 9)


@pytest.mark.slow
@needs_java
def test_webnlg_meteor(folder):
    check(webnlg(folder, ("meteor",), ("GKB_Unimelb", "UPF-TALN")), 6)


@pytest.mark.slow
@needs_java
def test_webnlg_meteor_segment_by_segment(folder):
    references, _ = webnlg_entries(folder)
    hypotheses = read(folder / "references" / "webnlg" / "submissions" / "melbourne.txt")
    scored = statistics("meteor", Segments(hypotheses, references), {"protocol": "webnlg"})
    text = (folder / "references" / "webnlg" / "published" / "meteor-GKB_Unimelb-all-cat.txt").read_text()
    published = [float(value) for value in re.findall(r"Segment \d+ score:\s+([\d.E-]+)", text)]
    ours = [scored.subset([index]).scores()[0] / 100 for index in range(len(hypotheses))]
    assert ours == pytest.approx(published, abs=1e-12)


@pytest.mark.slow
def test_webnlg_ter(folder):
    check(webnlg(folder, ("ter",)), 9)


def test_webnlg_ter_of_some_segments(folder):
    """Edits and shifts tried of one system's outputs: both are published, and the second says that all shifts are."""
    from ter import tercom_edits

    hypotheses, references = webnlg_prepared(folder, "Baseline")
    _, categories = webnlg_entries(folder)
    edits = [
        [tercom_edits(hypothesis.split(), text.split()) for text in texts]
        for hypothesis, texts, category in zip(hypotheses, references, categories, strict=True)
        if category not in SEEN
    ]
    text = (folder / "references" / "webnlg" / "published" / "ter3ref-Baseline-new-cat.txt").read_text()
    assert f"({float(sum(min(each.count for each in found) for found in edits))}/" in text
    assert f"Number of shifts tried: {sum(each.tried for found in edits for each in found)}\n" in text


@pytest.mark.parametrize("team", TEAMS)
def test_our_preparation_is_that_of_the_official_files(folder, team):
    from metrics import prepared

    references, _ = webnlg_entries(folder)
    raw = read(folder / "references" / "webnlg" / "submissions" / f"{TEAMS[team]}.txt")
    ours = prepared("webnlg", "ter", Segments(raw, references))
    assert (ours.hypotheses, ours.references) == webnlg_prepared(folder, team)


def test_darts_reference_files_are_its_prepared_texts(folder):
    from metrics import prepared

    root = xml.etree.ElementTree.parse(folder / "dart" / "dart-v1.1.1-full-test.xml").getroot()
    references = [[lex.text or "" for lex in entry.findall("lex")] for entry in root.iter("entry")]
    ours = prepared("dart", "bleu", Segments([""] * len(references), references)).references
    files = [read(folder / "references" / "dart" / f"all-delex-reference{number}.lex") for number in range(3)]
    assert ours == [list(texts) for texts in zip(*files, strict=True)]


def test_dart_bleu(folder):
    check(dart(folder, ("bleu",)), 1)


@pytest.mark.slow
@needs_java
def test_dart(folder):
    check(dart(folder, ("meteor", "ter")), 2)


@pytest.mark.parametrize(
    ("system", "with_rouge_score"), [("lead", (16.01, 1.58, 11.79)), ("convs2s", (30.94, 11.02, 25.05))]
)
def test_xsum_rouge(folder, system, with_rouge_score):
    lines = list(xsum(folder, (system,)))
    assert [round(line.ours, 2) for line in lines] == list(with_rouge_score)
    assert all(0 <= line.published - line.ours < 0.5 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["lead", "convs2s"])
def test_xsum_rouge_with_perls_stems(folder, system):
    """ROUGE-1.5.5 reports a mean of bootstrap samples, which is up to 0.01 off the mean over the examples."""
    if unavailable("rouge", {"perl": True}):
        pytest.skip("the option perl needs py-rouge")
    lines = list(xsum(folder, (system,), {"perl": True}))
    assert all(abs(round(line.ours, 2) - line.published) < 0.0101 for line in lines)
    assert sum(line.equal for line in lines) == {"lead": 3, "convs2s": 2}[system]


# The same on made-up data of the same form ----------------------------------------------------------------------------


@pytest.fixture
def made_up(tmp_path):
    """A folder like the real one, with a system of made-up texts for each data set, whose scores are known by hand."""

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())

    mrs = [("name[Ayr]", "Ayr is near Elgin"), ("name[Ayr]", "Elgin near is Ayr"), ("name[Oban]", "Oban has one pub")]
    write("e2e/devset.csv", "mr,ref\n" + "".join(f'{mr},"{text}"\n' for mr, text in mrs))
    # 12 words in the references, 4 of them twice: log2(6) and log2(12) for a word, half of the pairs have 1 bit
    write("references/e2e_dev/scores.tsv", "file\tlines\tbleu\tnist\nmine.txt\t2\t1.0000\t3.5850\n")
    write("references/e2e_dev/mine.txt", "ayr is near elgin\nOban has one pub\n")
    entries = [
        ("Airport", ["Ayr–Elgin is open.", "Open is Ayr."]),
        ("Artist", ["Óban sang."] * 4),
        ("Food", ["Haggis"]),
    ]
    xml_text = ""
    for number, (category, texts) in enumerate(entries, 1):
        lexes = "".join(f"<lex>{text}</lex>" for text in texts)
        xml_text += f'<entry category="{category}" eid="Id{number}" size="1">{lexes}</entry>'
    write("webnlg2017/test/testdata_with_lex.xml", f"<benchmark><entries>{xml_text}</entries></benchmark>")
    # Every word right, and "sang" and "oban" the other way round
    write("references/webnlg/submissions/melbourne.txt", "ayr - elgin is open .\nSang Oban .\nhaggis haggis\n")
    bleu = "BLEU = 61.48, 100.0/66.7/75.0/100.0 (BP=1.000, ratio=1.2, hyp_len=11, ref_len=10)\n"
    write("references/webnlg/published/bleu3ref-GKB_Unimelb_all-cat.txt", bleu)
    # 0 edits of (6 + 4) / 2 words, 1 shift of 3 words, 1 deletion of 1 word
    write("references/webnlg/published/ter3ref-GKB_Unimelb-all-cat.txt", f"Total TER: {2 / 9} (2.0/9.0)\n")
    write("references/webnlg/published/ter3ref-GKB_Unimelb-new-cat.txt", f"Total TER: {1 / 3} (1.0/3.0)\n")
    write("references/webnlg/published/ter3ref-GKB_Unimelb-old-cat.txt", f"Total TER: {1 / 6} (1.0/6.0)\n")
    write("references/xsum/gold-test-sentences.txt.gz", "Cats sit there\nA dog\n")
    write("references/xsum/lead-test-output.txt.gz", "cat sat there\nnothing alike\n")
    write("references/xsum/lead-test-output.rouge", "f-score >> ROUGE(1/2/3/L/SU4): 33.33/0.00/0.00/33.33/0.00\n")
    return tmp_path


def test_made_up_e2e(made_up):
    check(e2e(made_up, ("bleu", "nist")), 2)


def test_made_up_webnlg(made_up):
    check(webnlg(made_up, ("ter",), ("GKB_Unimelb",)), 3)
    assert [line.system for line in webnlg(made_up, ("bleu",), ("GKB_Unimelb",))] == ["GKB_Unimelb, all"]


def test_made_up_xsum(made_up):
    check(xsum(made_up, ("lead",)), 3)


def test_a_difference_in_the_last_digit_is_seen(made_up):
    path = made_up / "references" / "e2e_dev" / "scores.tsv"
    path.write_text(path.read_text().replace("1.0000", "0.9999"))
    assert [line.equal for line in e2e(made_up, ("bleu", "nist"))] == [False, True]


# The table ------------------------------------------------------------------------------------------------------------


def main() -> None:
    from table import aligned

    folder = REPOSITORY.parent / "shared" / "data"
    missing = java_tools.unavailable()
    kept = {"e2e": ("bleu", "nist", "meteor", "rouge", "cider"), "webnlg": ("bleu", "meteor", "ter")}
    kept["dart"] = kept["webnlg"]
    if missing:
        print(f"without METEOR, CIDEr and E2E's ROUGE-L: each {missing}", file=sys.stderr)
        kept = {data: tuple(m for m in metrics if (data, m) not in JAVA) for data, metrics in kept.items()}
    found = []
    for lines in (
        xsum(folder),
        *([] if unavailable("rouge", {"perl": True}) else [xsum(folder, options={"perl": True})]),
        dart(folder, kept["dart"]),
        e2e(folder, kept["e2e"]),
        webnlg(folder, kept["webnlg"]),
    ):
        part = list(lines)
        found += part
        print("\n".join([*aligned([HEADER, *map(shown, part)], left=3), ""]), flush=True)
    print(f"{sum(line.equal for line in found)} of {len(found)} figures equal to every published digit")


HEADER = ["data", "system", "score", "published", "ours", "difference", "equal"]


def shown(line: Line) -> list[str]:
    digits = min(line.digits, 6)
    figures = [f"{line.published:.{digits}f}", f"{line.ours:.{digits}f}", f"{line.ours - line.published:+.1e}"]
    near = line.data.startswith("XSUM") and abs(line.ours - line.published) < 0.5
    return [line.data, line.system, line.score, *figures, "yes" if line.equal else "within 0.5" if near else "no"]


if __name__ == "__main__":
    main()
