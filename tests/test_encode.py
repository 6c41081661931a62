"""Subword text: equal to fairseq's own BPE, one line per pair, and no text that becomes a special symbol."""

import subprocess
import sys

import bpe
import pytest
from common import UserError, single_line
from conftest import REPOSITORY, SCRIPTS, example
from encode import main
from imports import imported

TEXTS = [
    "the cat",
    " the  cat\u00a0sat, don't  ",
    "£5 in the café; 12,000 or 3½ — “quoted” 日本 🎉🏽",
    "<s> <pad> </s> <unk> <mask> <|endoftext|> a<unk>b",
    "'sTHE'Llama''s ' s",
    "e\u0301 \u200b\u2028 \x01\x7f",
]


def fairseq_bpe(encoder_json, vocab_bpe):
    gpt2_bpe = pytest.importorskip("fairseq.data.encoders.gpt2_bpe")
    config = gpt2_bpe.GPT2BPEConfig(gpt2_encoder_json=str(encoder_json), gpt2_vocab_bpe=str(vocab_bpe))
    return gpt2_bpe.GPT2BPE(config)


def test_equal_to_fairseq_on_a_made_up_vocabulary(byte_bpe):
    ours, fairseqs = bpe.ByteBPE(*byte_bpe), fairseq_bpe(*byte_bpe)
    for text in TEXTS:
        assert " ".join(ours.encode(text)) == fairseqs.encode(single_line(text))
        assert ours.decode(ours.encode(text)) == single_line(text)


def test_equal_to_fairseq_on_the_real_vocabulary(shared_data):
    paths = shared_data("gpt2_bpe/encoder.json"), shared_data("gpt2_bpe/vocab.bpe")
    ours, fairseqs = bpe.ByteBPE(*paths), fairseq_bpe(*paths)
    lines = shared_data("e2e/devset.csv").read_text(encoding="utf-8").split("\n")[:500]
    for text in TEXTS + [line for line in lines if line]:
        assert " ".join(ours.encode(text)) == fairseqs.encode(single_line(text))
        assert ours.decode(ours.encode(text)) == single_line(text)


def test_a_leading_space_makes_a_text_begin_as_within_a_line(byte_bpe, tmp_path, write_jsonl):
    path = write_jsonl("rows.jsonl", [example(0, "the cat", "a b")])
    fairseqs = fairseq_bpe(*byte_bpe)
    assert encode(byte_bpe, tmp_path, path, "train", "--leading-space") == [
        [fairseqs.encode(" the cat")],
        [fairseqs.encode(" a b")],
    ]
    spaced = bpe.ByteBPE(*byte_bpe, leading_space=True)
    assert spaced.encode("the cat") != bpe.ByteBPE(*byte_bpe).encode("the cat")
    assert spaced.decode(spaced.encode("the cat")) == "the cat"


def encode(byte_bpe, tmp_path, path, split, *more):
    encoder_json, vocab_bpe = byte_bpe
    argv = ["--encoder-json", str(encoder_json), "--vocab-bpe", str(vocab_bpe)]
    main([*argv, "--input", str(path), "--output-prefix", str(tmp_path / "out" / split), "--split", split, *more])
    return [(tmp_path / "out" / f"{split}.{side}").read_text().split("\n")[:-1] for side in ("source", "target")]


def test_lines_per_split(byte_bpe, tmp_path, write_jsonl):
    path = write_jsonl("rows.jsonl", [example(0, "the cat", "a", "b"), example(1, " the", "c")])
    vocabulary = bpe.ByteBPE(*byte_bpe)
    cat, the, a, b, c = (" ".join(vocabulary.encode(text)) for text in ("the cat", " the", "a", "b", "c"))
    for split in ("train", "valid"):
        assert encode(byte_bpe, tmp_path, path, split) == [[cat, cat, the], [a, b, c]]
    assert encode(byte_bpe, tmp_path, path, "test") == [[cat, the], [a, c]]


def test_workers_keep_the_order(byte_bpe, tmp_path, write_jsonl):
    slow = " ".join(f"word{n}" for n in range(200))  # the first batch is the last to be ready
    rows = [example(n, f"{n} {slow}{n}" if n < 256 else f"{n}", f"target {n}", f"other {n}") for n in range(1500)]
    path = write_jsonl("rows.jsonl", rows)
    alone = encode(byte_bpe, tmp_path, path, "train")
    assert len(alone[0]) == 3000
    assert encode(byte_bpe, tmp_path, path, "train", "--workers", "2") == alone


def test_workers_report_a_bad_line_and_leave_nothing(byte_bpe, tmp_path, write_jsonl):
    path = write_jsonl("rows.jsonl", [*(example(n, "a", "b") for n in range(600)), {"id": "600", "source": "a"}])
    for workers in ("1", "2"):
        with pytest.raises(UserError, match="rows.jsonl, line 601: no field 'references'"):
            encode(byte_bpe, tmp_path, path, "train", "--workers", workers)
        assert list((tmp_path / "out").iterdir()) == []


def test_empty_and_malformed_inputs(byte_bpe, tmp_path, write_jsonl):
    with pytest.raises(UserError, match="empty.jsonl: no examples; this task was prepared without a train split"):
        encode(byte_bpe, tmp_path, write_jsonl("empty.jsonl", []), "train")
    with pytest.raises(UserError, match="rows.jsonl, line 1: the target is empty"):
        encode(byte_bpe, tmp_path, write_jsonl("rows.jsonl", [example(0, "a", "")]), "train")
    assert list((tmp_path / "out").iterdir()) == []


# Special symbols ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece"])
def test_special_symbols_in_the_text_stay_text(kind, byte_bpe, spm_model):
    vocabulary = bpe.ByteBPE(*byte_bpe) if kind == "gpt2" else bpe.SentencePiece(spm_model)
    for text in ("a <unk> b", "</s>", "<s> the <mask> cat <pad>"):
        pieces = vocabulary.encode(text)
        assert not set(pieces) & {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
        assert vocabulary.decode(pieces) == text


def test_unknown_characters_are_explicit_and_counted(spm_model, tmp_path, write_jsonl, capsys):
    path = write_jsonl("rows.jsonl", [example(0, "the 猫 sat", "a 猫猫 b")])
    main(
        ["--spm", str(spm_model), "--input", str(path), "--output-prefix", str(tmp_path / "train"), "--split", "train"]
    )
    assert (tmp_path / "train.source").read_text(encoding="utf-8").split().count("<unk>") == 1
    assert "1 unknown source pieces, 1 unknown target pieces" in capsys.readouterr().err


def test_vocabulary_that_makes_a_special_symbol_of_text_is_refused(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    with open(tmp_path / "bad.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 20),
            model_writer=file,
            model_type="bpe",
            vocab_size=20,
            hard_vocab_limit=False,
            user_defined_symbols=["<mask>"],
            minloglevel=2,
        )
    with pytest.raises(UserError, match="bad.model: text can become the piece '<mask>'"):
        bpe.sentencepiece(tmp_path / "bad.model")


def test_bad_vocabularies_are_one_sentence(tmp_path, byte_bpe, write_jsonl):
    (tmp_path / "bad").write_bytes(b"\x00\x01not a vocabulary")
    (tmp_path / "merges").write_text("#version: 0.2\na b\n")
    path = write_jsonl("rows.jsonl", [example(0, "ab", "b")])
    for files, message in (
        (["--spm", tmp_path / "bad"], "bad: not a sentencepiece model"),
        (["--encoder-json", tmp_path / "bad", "--vocab-bpe", byte_bpe[1]], "not a GPT-2 byte BPE"),
        (
            ["--encoder-json", byte_bpe[0], "--vocab-bpe", tmp_path / "merges"],
            "rows.jsonl, line 1: the source needs the token 'ab', which the byte BPE lacks; its two files do not fit",
        ),
    ):
        with pytest.raises(UserError, match=message):
            main([*map(str, files), "--input", str(path), "--output-prefix", str(tmp_path / "x"), "--split", "train"])
    path = write_jsonl("rows.jsonl", [example(0, "a", "b")])
    with pytest.raises(UserError, match="name one vocabulary"):
        main(["--input", str(path), "--output-prefix", str(tmp_path / "train"), "--split", "train"])


@pytest.mark.parametrize(
    "script", ["prepare", "subset", "describe", "encode", "hypotheses", "score", "fetch", "unpack"]
)
def test_scripts_around_training_do_not_import_torch(script, byte_bpe):
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import {script}, bpe; "
    code += f"bpe.ByteBPE({str(byte_bpe[0])!r}, {str(byte_bpe[1])!r}).encode('a'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("script", ["prepare", "describe", "encode", "encode_documents", "noise", "hypotheses"])
def test_the_cleaner_and_encoder_is_an_input_of_every_stage_that_uses_it(script):
    assert REPOSITORY / "fairseq_prefix" / "files" / "vocabulary.py" in imported(REPOSITORY, f"{script}.py")
