"""The real Snakefile with the real fairseq: a small random mBART and its vocabulary, from raw data to a score."""

import json
import random
import subprocess
import sys

import pytest
import sentencepiece
import tiny
import world
import yaml
from conftest import REPOSITORY, SCRIPTS, archive, example
from fairseq.data import Dictionary

from fairseq_prefix.__main__ import main

SPLITS = {"train": 40, "valid": 6, "test": 7}
DECODING = {"beam": 3, "max-len-b": 12, "min-len": 2}
TASK = {
    "reader": "jsonl",
    "options": {"source": "source", "target": "references"},
    "inputs": {split: {"path": f"{split}.jsonl"} for split in SPLITS},
    "metrics": {"bleu": {}},
    "generate": {**DECODING, "batch-size": 4},
}
MODEL = {
    "architecture": "mbart_tiny",
    "vocabulary": "sentencepiece",
    "base": {"archive": {"path": "mbart.tar.gz"}},
    "data": {"max-source-tokens": 60},
    "train": {"source-tag": "de_DE", "target-tag": "ro_RO", "batch-size": 8, "max-update": 4, "num-workers": 0},
    "generate": {"num-workers": 0},
    "methods": {"prefix": {"train": {"lr": 0.1, "prefix-length": 3, "prefix-mid-dim": 16}}},
}
PLACED = {
    **MODEL,
    "base": {"files": {name: {"path": f"placed/{name}"} for name in ("config.json", "pytorch_model.bin", "spm.model")}},
}
RUN = "runs/toy/toy/prefix/1"


def sentences(count: int, seed: int) -> list[str]:
    """Return texts of the made-up world, the same for the same seed."""
    return [world.document(random.Random(1000 * seed + number))["segments"][0] for number in range(count)]


def write_mbart(folder):
    """Write mbart.tar.gz, of the form of fairseq's mbart.cc25, and its vocabulary alone, of Hugging Face's."""
    (folder / "placed").mkdir()
    spm = folder / "placed" / "spm.model"
    with open(spm, "wb") as file:  # <unk> <s> </s> and then pieces, as in mBART's own
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(300, 1)), model_writer=file, vocab_size=400, minloglevel=2
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    pieces = [processor.id_to_piece(index) for index in range(3, len(processor))]
    symbols = Dictionary()
    for piece in pieces:
        symbols.add_symbol(piece)
    tiny.save_base(folder / "base", symbols=symbols, arch="full_mbart_tiny", scale=0.2)
    dictionary = "".join(f"{piece} 1\n" for piece in pieces)  # without language tags
    members = {"model.pt": (folder / "base" / "model.pt").read_bytes(), "dict.txt": dictionary.encode()}
    members["sentence.bpe.model"] = spm.read_bytes()
    archive(folder / "mbart.tar.gz", [(f"mbart.cc25/{name}", data) for name, data in members.items()])
    for name in ("config.json", "pytorch_model.bin"):
        (folder / "placed" / name).write_text("{}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the whole workflow has run, warm as in `make demo`."""
    folder = tmp_path_factory.mktemp("mbart")
    write_mbart(folder)
    for seed, (split, count) in enumerate(SPLITS.items()):
        texts = zip(sentences(count, seed), sentences(count, seed + 9), strict=True)
        rows = [example(number, *pair) for number, pair in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    presets = {"tasks/toy": TASK, "models/toy": MODEL, "models/placed": PLACED}
    presets["config"] = {"tasks": ["toy"], "models": ["toy"], "methods": ["prefix"], "seeds": [1]}
    for name, values in presets.items():
        path = folder / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
    targets = ["results/toy/bleu.txt", "results/toy/data.txt", "bases/placed/dict.txt", "bases/placed/config.json"]
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    command = [sys.executable, str(SCRIPTS / "warm.py"), *snakemake, *targets]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_an_archive_of_mbart_runs_from_data_to_score(finished):
    hypotheses = (finished / RUN / "hypotheses.txt").read_text().split("\n")[:-1]
    assert len(hypotheses) == SPLITS["test"] and len({*hypotheses}) > 1
    assert not any("[" in text or "<" in text for text in hypotheses), "language tags belong to no text"
    score = json.loads((finished / RUN / "bleu.json").read_text())["metrics"]["bleu"]["scores"]["bleu"]
    assert f" {score:.2f} [" in (finished / "results" / "toy" / "bleu.txt").read_text()


def test_the_languages_of_the_preset_are_recorded_with_the_prefix(finished, capsys):
    main(["inspect", "--json", f"{finished / RUN}/prefix.safetensors"])
    conventions = json.loads(capsys.readouterr().out)["conventions"]
    assert (conventions["source_tag"], conventions["target_tag"]) == ("de_DE", "ro_RO")


def test_the_command_generates_the_same_texts_from_the_export(finished):
    lines = (finished / "data" / "toy" / "test.jsonl").read_text().splitlines()
    command = [sys.executable, "-m", "fairseq_prefix", "generate", "--base-model", f"{finished}/bases/toy"]
    command += ["--prefix", f"toy={finished / RUN}/prefix.safetensors"]
    command += [part for option, value in DECODING.items() for part in (f"--{option}", str(value))]
    texts = "".join(json.loads(line)["source"] + "\n" for line in lines)
    result = subprocess.run(command, cwd=REPOSITORY, input=texts, capture_output=True, text=True)
    assert result.stdout == (finished / RUN / "hypotheses.txt").read_text(), result.stderr


def test_the_dictionary_of_a_hugging_face_base_is_written_from_its_vocabulary(finished):
    placed, unpacked = ((finished / "bases" / name / "dict.txt").read_text() for name in ("placed", "toy"))
    assert placed == unpacked and placed.count("\n") == 397
