"""What every test shares: the scripts on the path, the real data where it is present, a made-up byte BPE."""

import io
import json
import os
import random
import signal
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "workflow" / "scripts"
sys.path[:0] = [str(SCRIPTS), str(REPOSITORY)]
# In the background of a script Ctrl-C is ignored, also by what the tests start, which is to know it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def shared_data():
    """A function from a name below ../shared/data to its path; the test is skipped where the file is absent."""

    def find(name: str) -> Path:
        path = REPOSITORY.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"the real data {path.name} is not beside this repository")
        return path

    return find


@pytest.fixture
def stand_in(tmp_path_factory, monkeypatch):
    """A function that puts a shell script in the place of a command, first on the path."""
    folder = tmp_path_factory.mktemp("programs")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.fixture(scope="module")
def hooks():
    """fairseq as its own commands have it with `--user-dir fairseq_prefix`, during the tests of a module."""
    from fairseq_prefix.toolkit.hooks import changes

    with pytest.MonkeyPatch.context() as patch:
        for owner, name, wrap in changes():
            patch.setattr(owner, name, wrap(getattr(owner, name)))
        yield


def write_world(folder: Path, count: int) -> Path:
    """documents.jsonl with this many documents of the made-up world, and spm.model learnt from them."""
    import learn_vocabulary
    import world

    rows = [world.document(random.Random(index)) for index in range(count)]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn_vocabulary.main(
        ["--documents", str(folder / "documents.jsonl"), "--size", "900", "--output-dir", str(folder)]
    )
    return folder


@pytest.fixture(scope="session")
def byte_bpe(tmp_path_factory):
    """(encoder.json, vocab.bpe) of a made-up byte BPE in GPT-2's format: all 256 bytes and a few merges."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "c"), ("a", "t"), ("Ġc", "at"), ("u", "n"), ("un", "k")]
    folder = tmp_path_factory.mktemp("byte_bpe")
    encoder = {symbol: index for index, symbol in enumerate(alphabet + ["".join(pair) for pair in merges])}
    (folder / "encoder.json").write_text(json.dumps(encoder))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.bpe").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "encoder.json", folder / "vocab.bpe"


@pytest.fixture
def write_jsonl(tmp_path):
    """A function (name, rows) that writes JSON lines below tmp_path and returns the path."""

    def write(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def example(number: int, source: str, *references: str, group: str | None = None) -> dict:
    """A prepared example as data/{task}/{split}.jsonl has it."""
    return {"id": str(number), "source": source, "references": list(references), "group": group}


def archive(path: Path, members: list, mode: str = "w:gz") -> Path:
    """Write a tar archive; a member is (TarInfo or name, bytes)."""
    with tarfile.open(path, mode) as tar:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def learn_small_spm(text: list[str], model_writer) -> None:
    """Write a small sentencepiece model of these sentences, with `<mask>` as a control symbol."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20),
        model_writer=model_writer,
        model_type="bpe",
        vocab_size=64,
        character_coverage=1.0,
        hard_vocab_limit=False,
        control_symbols=["<mask>"],
        minloglevel=2,
    )


@pytest.fixture(scope="session")
def spm_model(tmp_path_factory):
    """Path of a small sentencepiece model with `<mask>` as a control symbol; it knows no character beyond Latin-1."""
    pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("spm") / "spm.model"
    text = ["the cat sat on the mat", "a café, 12 + 3 < 4 and/or 5 > 4", "under the milk jug we put a box"]
    with open(path, "wb") as file:
        learn_small_spm(text, file)
    return path
