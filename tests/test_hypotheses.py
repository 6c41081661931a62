"""fairseq-generate's output becomes one line per example in the order of the test set, or an error."""

import json
from contextlib import nullcontext

import bpe
import pytest
from common import UserError, sha256_file
from conftest import example
from hypotheses import main


def h_line(number, pieces, score="-0.5"):
    return f"H-{number}\t{score}\t{' '.join(pieces)}\n"


@pytest.fixture
def run(tmp_path, write_jsonl, byte_bpe):
    """A function (text of the generated file, number of examples) that returns the hypotheses."""

    def call(generated, count, vocabulary=None):
        (tmp_path / "generate.txt").write_bytes(generated.encode("utf-8"))
        examples = write_jsonl("test.jsonl", [example(n, "source", "reference") for n in range(count)])
        files = ["--generated", str(tmp_path / "generate.txt"), "--examples", str(examples)]
        vocabulary = vocabulary or ["--encoder-json", str(byte_bpe[0]), "--vocab-bpe", str(byte_bpe[1])]
        main([*files, "--output", str(tmp_path / "out" / "hypotheses.txt"), *vocabulary])
        return (tmp_path / "out" / "hypotheses.txt").read_bytes().decode("utf-8").split("\n")[:-1]

    return call


def test_order_decoding_and_other_lines(run, byte_bpe):
    encode = bpe.ByteBPE(*byte_bpe).encode
    generated = "2026-01-01 | INFO | H- is no hypothesis\n" + h_line(10, encode("ten")) + "D-10\t-0.5\t1 2\n"
    generated += "".join(f"S-{n}\t1\nT-{n}\t1\n" + h_line(n, encode(f" number {n} é\u2028x")) for n in range(9, -1, -1))
    generated += "Generate test with beam=5: BLEU4 = 0.0\n"
    with pytest.raises(UserError, match="line 1: not of the form"):
        run("H-" + generated, 11)
    assert run(generated, 11) == [*(f"number {n} é x" for n in range(10)), "ten"]


def test_empty_hypothesis_is_an_empty_line(run):
    assert run(h_line(1, []) + h_line(0, ["65"]), 2) == ["b", ""]


def test_a_validation_example_has_the_hypothesis_of_its_first_reference(tmp_path, write_jsonl, byte_bpe):
    encode = bpe.ByteBPE(*byte_bpe).encode
    generated = tmp_path / "generate.txt"
    generated.write_text("".join(h_line(n, encode(text)) for n, text in reversed([*enumerate("abcd")])))
    examples = [example(0, "one", "x", "y", "z"), example(1, "two", "x")]
    files = ["--generated", str(generated), "--examples", str(write_jsonl("valid.jsonl", examples)), "--split", "valid"]
    vocabulary = ["--encoder-json", str(byte_bpe[0]), "--vocab-bpe", str(byte_bpe[1])]
    main([*files, "--output", str(tmp_path / "hypotheses.txt"), *vocabulary])
    assert (tmp_path / "hypotheses.txt").read_text() == "a\nd\n"


def test_newlines_in_a_hypothesis_become_a_space(run, byte_bpe):
    assert run(h_line(0, bpe.ByteBPE(*byte_bpe).encode("\n\ntwo\r\nlines\t")), 1) == ["two lines"]


def test_special_symbols_and_unknown(run, byte_bpe):
    pieces = ["<s>", *bpe.ByteBPE(*byte_bpe).encode("a"), "<mask>", "<unk>", "madeupword0001", "</s>"]
    assert run(h_line(0, pieces), 1) == ["a<unk>"]


def test_literal_special_symbols_survive_from_text_to_hypothesis(run, byte_bpe, spm_model):
    text = "the <unk> cat </s> <mask>"
    assert run(h_line(0, bpe.ByteBPE(*byte_bpe).encode(text)), 1) == [text]
    assert run(h_line(0, bpe.SentencePiece(spm_model).encode(text)), 1, ["--spm", str(spm_model)]) == [text]


def test_sentencepiece_specials(run, spm_model):
    pieces = ["<s>", *bpe.SentencePiece(spm_model).encode("the cat"), "<mask>", "</s>"]
    assert run(h_line(0, pieces), 1, ["--spm", str(spm_model)]) == ["the cat"]


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (h_line(0, ["1"]) + h_line(2, ["1"]), "1 of 3 examples have no hypothesis, such as 1"),
        ("", "3 of 3 examples have no hypothesis, such as 0, 1, 2"),
        ("".join(h_line(n, ["1"]) for n in (0, 1, 2, 3)), "4 hypotheses for the 3 examples"),
        (h_line(0, ["1"]) + h_line(0, ["2"]), "line 2: a second hypothesis for example 0"),
        (h_line(0, ["1"]) + "H-1\t-0.3", "line 2: not of the form"),
        ("".join(h_line(n, ["▁the"]) for n in range(3)), "H-0: '▁the' is not a piece of this vocabulary"),
        ("".join(h_line(n, ["99999"]) for n in range(3)), "'99999' is not a piece of this vocabulary"),
    ],
)
def test_refusals_leave_nothing(run, tmp_path, generated, message):
    with pytest.raises(UserError, match=message):
        run(generated, 3)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_wrong_sentencepiece_model_is_noticed(run, spm_model):
    with pytest.raises(UserError, match="'50118' is not a piece of this vocabulary"):
        run(h_line(0, ["50118"]), 1, ["--spm", str(spm_model)])


def test_hypotheses_of_other_examples_are_refused(run, tmp_path):
    """They would be scored against references that they were not written for."""
    assert run(h_line(0, ["65"]), 1) == ["b"]
    digest = sha256_file(tmp_path / "test.jsonl")
    for recorded, refused in ((digest, False), ("0" * 64, True)):
        (tmp_path / "generate.json").write_text(json.dumps({"examples_sha256": recorded}))
        with (
            pytest.raises(UserError, match="other examples than .* --config replace=True") if refused else nullcontext()
        ):
            run(h_line(0, ["65"]), 1)
