"""fairseq-preprocess through binarise: what went in comes out, and a wrong dictionary never gets that far."""

import struct

import numpy as np
import pytest
from binarise import check_binary, main, read_index
from common import UserError

WORDS = ["the", "cat", "sat", "▁dog"]


@pytest.fixture
def data(tmp_path):
    """A function that writes subword text (file name -> text) and a dictionary, and returns the arguments."""

    def write(**texts):
        folder = tmp_path / "voc"
        folder.mkdir()
        for name, text in texts.items():
            (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
        lines = [f"{word} 1" for word in WORDS] + ["<mask> 0"]
        (folder / "dict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return ["--input-dir", str(folder), "--dict", str(folder / "dict.txt"), "--output-dir", str(tmp_path / "bin")]

    return write


GOOD = {
    "train_source": "the cat sat\n<mask> ▁dog\ncat\n",
    "train_target": "cat\nthe the the\nsat <unk>\n",
    "valid_source": "the\n",
    "valid_target": "cat\n",
}


def examples(prefix):
    sizes, element_type = read_index(prefix.with_name(prefix.name + ".idx"))
    tokens = np.fromfile(f"{prefix}.bin", dtype=element_type)
    return [list(map(int, part)) for part in np.split(tokens, np.cumsum(sizes)[:-1])]


def test_what_went_in_comes_out(data, tmp_path):
    pytest.importorskip("fairseq")
    main([*data(**GOOD), "--splits", "train", "valid", "--workers", "2"])
    the, cat, sat, dog, mask = range(4, 9)
    eos, unk = 2, 3
    assert examples(tmp_path / "bin" / "train.source-target.source") == [
        [the, cat, sat, eos],
        [mask, dog, eos],
        [cat, eos],
    ]
    assert examples(tmp_path / "bin" / "train.source-target.target") == [[cat, eos], [the] * 3 + [eos], [sat, unk, eos]]
    assert examples(tmp_path / "bin" / "valid.source-target.source") == [[the, eos]]
    made = [
        f"{split}.source-target.{side}.{kind}"
        for split in ("train", "valid")
        for side in ("source", "target")
        for kind in ("bin", "idx")
    ]
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == sorted(
        ["dict.source.txt", "dict.target.txt", *made]
    )
    for side in ("source", "target"):
        assert (tmp_path / "bin" / f"dict.{side}.txt").read_text() == (tmp_path / "voc" / "dict.txt").read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train_source": "the cat\nbird bird\nthe\n"},
            "train.source: 2 tokens .1 different, such as 'bird'. are not in",
        ),
        ({"train_target": "the\n</s>\ncat\n"}, "train.target: 1 tokens .1 different, such as '</s>'. are not in"),
        ({"train_target": "the\n\ncat\n"}, "train.target, line 2: the line is empty"),
        ({"valid_target": "cat\ncat\n"}, "valid.source has 1 lines and valid.target 2"),
        ({"valid_source": "", "valid_target": ""}, "valid.source: no lines"),
    ],
)
def test_refusals_leave_nothing(data, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        main([*data(**GOOD | changed), "--splits", "train", "valid"])
    assert not (tmp_path / "bin").exists()


def test_missing_split_and_bad_dictionary(data, tmp_path):
    argv = data(**GOOD)
    with pytest.raises(UserError, match="test.source: cannot be read"):
        main(argv)
    (tmp_path / "voc" / "dict.txt").write_text("the 1\ncat\n")
    with pytest.raises(UserError, match="dict.txt, line 2: not a word and a count"):
        main([*argv, "--splits", "train"])


def test_failure_of_fairseq_is_one_sentence_and_leaves_nothing(data, tmp_path, monkeypatch):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho some line\necho RuntimeError: no space\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(stub))
    with pytest.raises(UserError, match=r"fairseq-preprocess failed \(.*RuntimeError: no space"):
        main([*data(**GOOD), "--splits", "train"])
    assert list((tmp_path / "bin").iterdir()) == []


def write_binary(prefix, *rows):
    tokens = np.array([token for row in rows for token in row], dtype=np.uint16)
    sizes = np.array([len(row) for row in rows], dtype=np.int32)
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens.tobytes())
    header = struct.pack("<9sQBQ", b"MMIDIDX\0\0", 1, 8, len(rows))
    prefix.with_name(prefix.name + ".idx").write_bytes(
        header + sizes.tobytes() + np.zeros(len(rows), np.int64).tobytes()
    )
    return prefix


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[4, 2]], "made 1 examples of 2 lines"),
        ([[4, 2], [5, 2]], "made 2 examples of 2 lines, or changed some"),
        ([[4, 2], [3, 5, 2]], "1 tokens became <unk> where the text has 0"),
    ],
)
def test_lost_examples_and_unknown_tokens_are_noticed(tmp_path, rows, message):
    (tmp_path / "text").write_text("the\nthe cat\n")
    lengths = np.array([2, 3])
    check_binary(write_binary(tmp_path / "good", [4, 2], [4, 5, 2]), tmp_path / "text", lengths)
    with pytest.raises(UserError, match=message):
        check_binary(write_binary(tmp_path / "bad", *rows), tmp_path / "text", lengths)


def test_text_without_pairs(data, tmp_path):
    pytest.importorskip("fairseq")
    main([*data(train_text="the cat\nsat\n", valid_text="cat\n"), "--monolingual", "--splits", "train", "valid"])
    the, cat, sat, eos = 4, 5, 6, 2
    assert examples(tmp_path / "bin" / "train") == [[the, cat, eos], [sat, eos]]
    assert examples(tmp_path / "bin" / "valid") == [[cat, eos]]
    assert (tmp_path / "bin" / "dict.txt").exists()
