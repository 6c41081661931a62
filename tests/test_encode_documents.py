"""The text of a language model: the documents in order, none lost, and the same held out as for denoising."""

import json

import encode_documents
import noise
import pytest
import sentencepiece
from common import UserError
from conftest import write_world


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("material"), 1100)


def options(material, output, *more):
    return [
        *("--documents", str(material / "documents.jsonl"), "--spm", str(material / "spm.model")),
        *("--output-dir", str(output), *map(str, more)),
    ]


def test_every_document_is_a_line_and_those_held_out_are_denoisings(material, tmp_path):
    encode_documents.main(options(material, tmp_path, "--valid", 40, "--workers", 2))
    texts = [" ".join(json.loads(line)["segments"]) for line in (material / "documents.jsonl").read_text().splitlines()]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(material / "spm.model"))
    lines = {split: (tmp_path / f"{split}.text").read_text().splitlines() for split in ("train", "valid")}
    decoded = {split: [processor.decode_pieces(line.split()) for line in found] for split, found in lines.items()}
    noise.main(options(material, tmp_path, "--valid", 40))
    assert lines["valid"] == (tmp_path / "valid.target").read_text().splitlines()
    assert lines["train"] == (tmp_path / "train.target").read_text().splitlines()
    assert len(decoded["valid"]) == 40
    rest = iter(decoded["train"])
    held = set(decoded["valid"])
    assert [next(rest) if text not in held else text for text in texts] == texts


def test_too_few_documents_are_refused(material, tmp_path):
    with pytest.raises(UserError, match="--valid 1100 leaves none of 1100 documents to train on"):
        encode_documents.main(options(material, tmp_path, "--valid", 1100))
    assert not list(tmp_path.iterdir())


def test_a_bad_vocabulary_is_one_sentence_however_many_workers(material, tmp_path):
    (material / "bad.model").write_text("no model")
    argv = [argument.replace("spm.model", "bad.model") for argument in options(material, tmp_path, "--workers", 2)]
    with pytest.raises(UserError, match="bad.model: not a sentencepiece model"):
        encode_documents.main(argv)
