"""The vocabulary: text survives encoding, special symbols cannot be written by text, damage is named."""

import json
import random

import learn_vocabulary
import pytest
import sentencepiece
import world
from common import UserError

SIZE = 900


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    rows = [world.document(random.Random(index)) for index in range(1500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learn(documents, folder, size=SIZE):
    learn_vocabulary.main(["--documents", str(documents), "--size", str(size), "--output-dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def vocabulary(documents, tmp_path_factory):
    return learn(documents, tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def processor(vocabulary):
    return sentencepiece.SentencePieceProcessor(model_file=str(vocabulary / "spm.model"))


def test_the_same_documents_give_the_same_bytes(documents, vocabulary, tmp_path):
    again = learn(documents, tmp_path)
    for name in ("spm.model", "dict.txt"):
        assert (again / name).read_bytes() == (vocabulary / name).read_bytes(), name


def test_decoding_gives_back_the_text_of_the_world(processor):
    for index in range(2000, 2300):
        for text in world.document(random.Random(index))["segments"]:
            pieces = processor.encode(text, out_type=str)
            assert processor.decode_pieces(pieces) == text
            assert "".join(pieces).replace("\u2581", " ").strip() == text  # as fairseq decodes


@pytest.mark.parametrize(
    "text",
    [
        "<mask> and </s>, <s>, <pad> or <unk>; <0x41>",
        "“Café” – £5.50, ½ (naïve) 文字 🦢 don't 'quote' …",
        "6,000 crowns: 40-year-old, 3.5.",
    ],
)
def test_any_text_comes_back_without_unknown_or_special_pieces(processor, text):
    pieces = processor.encode(text, out_type=str)
    assert processor.decode_pieces(pieces) == text
    ids = processor.encode(text)
    assert processor.unk_id() not in ids
    assert not {"<s>", "<pad>", "</s>", "<unk>", "<mask>"} & set(pieces)


def test_no_white_space_stays_inside_a_piece_where_fairseq_would_split(processor):
    text = "two\u00a0words\u2028and\x85more\x1cor\u3000less  still\r\nhere\tend"
    pieces = processor.encode(text, out_type=str)
    assert " ".join(pieces).split() == pieces
    assert processor.decode_pieces(pieces) == "two words and more or less still here end"


def test_punctuation_never_joins_a_piece(processor):
    pieces = [processor.id_to_piece(index) for index in range(learn_vocabulary.SPECIAL["unk_id"] + 2, len(processor))]
    marks = set(learn_vocabulary.PUNCTUATION)
    assert marks <= set(pieces)
    assert not [piece for piece in pieces if len(piece) > 1 and marks & set(piece) and not processor.is_byte(
        processor.piece_to_id(piece))]  # fmt: skip


def test_fairseq_reads_the_dictionary_with_the_models_own_pieces(vocabulary, processor):
    lines = (vocabulary / "dict.txt").read_text(encoding="utf-8").splitlines()
    pieces = [line.rsplit(" ", 1)[0] for line in lines]
    assert len(set(pieces)) == len(pieces) and not {"<s>", "<pad>", "</s>", "<unk>"} & set(pieces)
    assert lines[-1] == "<mask> 0"
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    assert [processor.id_to_piece(index) for index in range(4)] == specials
    assert pieces[:-1] == [processor.id_to_piece(index) for index in range(5, len(processor))]
    assert len(processor) == SIZE


@pytest.mark.parametrize("size", [100, 280, 50000])
def test_an_impossible_size_is_one_sentence_and_writes_nothing(documents, tmp_path, size):
    with pytest.raises(UserError, match=str(size)) as failure:
        learn(documents, tmp_path / "out", size)
    assert "\n" not in str(failure.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected a JSON object"),
        ('{"segments": []}', 'line 2: a document needs "segments"'),
        ('{"segments": ["x", " "]}', "line 2: segment 1 is empty"),
        ('{"segments": ["x", 3]}', "line 2: segment 1 is not a text"),
        ('{"segments": ["\\ud800"]}', "line 2: segment 0 holds half of a surrogate"),
        ('{"segments": ["x"], "focus": [1]}', 'line 2: "focus" must be'),
        ("", "line 2: not JSON"),
    ],
)
def test_a_bad_document_is_named(tmp_path, line, message):
    path = tmp_path / "documents.jsonl"
    path.write_text('{"segments": ["One text."]}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        learn(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_documents_at_all_is_said(tmp_path):
    (tmp_path / "documents.jsonl").write_text("")
    with pytest.raises(UserError, match="there is no text"):
        learn(tmp_path / "documents.jsonl", tmp_path / "out")
