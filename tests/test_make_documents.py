"""Real text to documents: sentences, runs of them, samples; archives are streamed and odd ones refused."""

import gzip
import json
import tarfile

import make_documents
import pytest
from common import UserError
from conftest import archive


def make(tmp_path, inputs, *options):
    output = tmp_path / "documents.jsonl"
    make_documents.main(["--input", *map(str, inputs), "--output", str(output), *map(str, options)])
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert all(row["focus"] == [] for row in rows)
    return [row["segments"] for row in rows]


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("One here. Two there! Three?", ["One here.", "Two there!", "Three?"]),
        ("Mr. Gull met Dr. Tern. They left.", ["Mr. Gull met Dr. Tern.", "They left."]),
        ("J. R. Heron wrote it. It sold.", ["J. R. Heron wrote it.", "It sold."]),
        ('"Really?" said she. "Yes." He nodded.', ['"Really?" said she.', '"Yes."', "He nodded."]),
        ("“Well!” “Indeed.” 42 came.", ["“Well!”", "“Indeed.”", "42 came."]),
        ("It cost 3.50 crowns... and more.", ["It cost 3.50 crowns... and more."]),
        ("  Loose \t white   space. Élan!  ", ["Loose white space.", "Élan!"]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences(paragraph, expected):
    assert make_documents.sentences(paragraph) == expected


def test_documents_are_runs_of_whole_sentences_within_the_limit(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text(
        "One two three. Four five.\n\nSix seven eight nine. Ten.\nEleven " + "word " * 12 + "end. Last one.\n"
    )
    documents = make(tmp_path, [text], "--max-words", 6)
    assert documents[:2] == [["One two three.", "Four five."], ["Six seven eight nine.", "Ten."]]
    assert documents[2] == ["Eleven " + "word " * 12 + "end."]  # longer than the limit: alone, whole
    assert documents[3] == ["Last one."]


def test_every_kind_of_input_and_texts_never_meet_in_a_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffFirst text.\r\n".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"Second text.\n"))
    members = [("books/c.txt", b"Third text.\n"), ("books/d.txt", b"Fourth text.")]
    archive(tmp_path / "c.tar.gz", members)
    documents = make(tmp_path, [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.tar.gz")])
    assert documents == [["First text."], ["Second text."], ["Third text."], ["Fourth text."]]


def test_a_limit_keeps_about_so_many_words_from_everywhere_and_always_the_same(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("".join(f"Word {index} and more here.\n" for index in range(1000)))
    documents = make(tmp_path, [text], "--max-words", 5, "--limit-words", 500)
    assert documents == make(tmp_path, [text], "--max-words", 5, "--limit-words", 500)
    assert 500 <= sum(make_documents.count_words(document) for document in documents) <= 505
    numbers = [int(document[0].split()[1]) for document in documents]
    assert numbers == sorted(numbers) and numbers[0] < 20 and numbers[-1] > 980
    everything = make(tmp_path, [text], "--max-words", 5, "--limit-words", 10**9)
    assert len(everything) == 1000


def link(name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../evil.txt", "evil.txt"),
        ("/evil.txt", "evil.txt"),
        (link("evil.txt", tarfile.SYMTYPE), "evil.txt"),
        (link("evil.txt", tarfile.CHRTYPE), "evil.txt"),
        ("picture.png", "'picture.png' is not a .txt file"),
    ],
)
def test_odd_members_of_an_archive_are_refused(tmp_path, member, message):
    archive(tmp_path / "a.tar.gz", [("good.txt", b"Good text.\n"), (member, b"x")])
    with pytest.raises(UserError, match=message):
        make(tmp_path, [tmp_path / "a.tar.gz"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, keep):
    text = "".join(f"Sentence number {index * 7919 % 10007}.\n" for index in range(20000)).encode()
    path = archive(tmp_path / "a.tar.gz", [("a.txt", text)])
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match="a.tar.gz: truncated"):
        make(tmp_path, [path])
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"Good.\nbad \xff byte\n", "a.txt, line 2: not UTF-8"),
        ("a.txt", b"Good.\nnul \0 byte\n", "a.txt, line 2: holds a NUL"),
        ("a.txt", b" \n\n", "no text"),
        ("a.doc", b"Good.\n", "a.doc: neither .txt"),
    ],
)
def test_bad_text_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        make(tmp_path, [tmp_path / name])
    assert not (tmp_path / "documents.jsonl").exists()


def test_bad_bytes_inside_an_archive_name_the_member(tmp_path):
    archive(tmp_path / "a.tar.gz", [("books/a.txt", b"Good.\nbad \xff byte\n")])
    with pytest.raises(UserError, match="a.tar.gz: books/a.txt, line 2: not UTF-8"):
        make(tmp_path, [tmp_path / "a.tar.gz"])


def test_missing_files_and_bad_limits_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="absent.txt: cannot be read"):
        make(tmp_path, [tmp_path / "absent.txt"])
    with pytest.raises(UserError, match="--max-words 0"):
        make(tmp_path, [tmp_path / "absent.txt"], "--max-words", 0)
