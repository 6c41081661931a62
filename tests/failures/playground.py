"""The workflow over a made-up world: the finished tree that every case starts from, and what counts as the same tree.

Two small models are pretrained, a BART on a text with noise and a GPT-2 on made-up documents; a third is unpacked from
an archive and a fourth laid in place, and neither of these two is real.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "workflow" / "scripts"

PRETRAINING = {
    **{"optimizer": "adam", "lr": 1e-3, "batch-size": 8, "max-update": 24, "save-interval-updates": 5},
    **{"keep-interval-updates": 1, "no-epoch-checkpoints": True, "log-interval": 2, "num-workers": 0},
    **{"required-batch-size-multiple": 1},
}
TUNING = {"batch-size": 4, "max-update": 24, "warmup-updates": 2, "num-workers": 0, "log-interval": 2}
TUNING |= {"save-interval-updates": 5, "keep-interval-updates": 1}
METHODS = {
    "prefix": {"train": {"lr": 2e-3, "prefix-length": 3, "prefix-mid-dim": 16}},
    "finetune": {"train": {"lr": 1e-4}},
}
BART = {
    "architecture": "bart_tiny",
    "vocabulary": "sentencepiece",
    "base": {
        "pretrained": {
            "dataset": "toy_text",
            "inputs": {"text": {"file": "novel.txt"}},
            "documents": {"max-words": 20},
            "vocabulary": {"size": 340},
            "noise": {"valid": 5},
            "seed": 1,
            "train": {"task": "conditional_generation", "criterion": "prefix_cross_entropy", **PRETRAINING},
        }
    },
    "data": {"max-source-tokens": 100},
    "train": TUNING,
    "generate": {"batch-size": 8, "num-workers": 0},
    "methods": METHODS,
}
GPT2 = {
    **BART,
    "architecture": "gpt2_tiny",
    "base": {
        "pretrained": {
            "demo": {"kind": "documents", "seed": 1},
            "documents": {"count": 150},
            "vocabulary": {"size": 420},
            "text": {"valid": 10},
            "seed": 1,
            "train": {"task": "language_modeling", "tokens-per-sample": 64, **PRETRAINING},
        }
    },
}
ARCHIVED = {
    "architecture": "bart_tiny",
    "vocabulary": "gpt2",
    "base": {"archive": {"file": "archived.tar.gz"}},
}
PLACED = {
    "architecture": "gpt2_small",
    "vocabulary": "gpt2",
    "base": {"files": {name: {"path": f"mine/{name}"} for name in ("config.json", "model.safetensors")}},
}
TASK = {
    "dataset": "toy",
    "reader": "jsonl",
    "options": {"source": "source", "target": "references"},
    "inputs": {split: {"file": f"{split}.jsonl"} for split in ("train", "valid", "test")},
    "metrics": {"bleu": {}, "rouge": {}},
    "generate": {"beam": 2, "max-len-b": 12},
}
DEMO_TASK = {key: TASK[key] for key in ("reader", "options", "metrics", "generate")}
DEMO_TASK |= {"demo": {"kind": "table", "seed": 1}}
STUDY = {"title": "Length", "question": "How long?", "paper": "200.", "x": ["prefix-length"]}
STUDY |= {"methods": ["prefix~prefix-length=2", "prefix~prefix-length=3"], "models": ["toy"]}
CONFIG = {"tasks": ["toy"], "models": ["toy"], "methods": ["base", "prefix", "finetune"], "seeds": [1]}
CONFIG |= {"mirror": ["mirror"], "studies": {"mine": ["toy"]}}

RUN = "runs/toy/toy"
PREFIX = f"{RUN}/prefix/1"
SPLITS = ("train", "valid", "test")
PAIRS = [f"{split}.{side}" for split in SPLITS for side in ("source", "target")]
BINARISED = [
    f"{split}.source-target.{side}.{end}" for split in SPLITS for side in ("source", "target") for end in ("bin", "idx")
]
DICTIONARIES = ["dict.source.txt", "dict.target.txt"]


@dataclass
class Stage:
    """What a rule makes, and the folders that it needs besides the finished tree."""

    outputs: list[str]
    inputs: list[str] = field(default_factory=list)


def _in(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{name}" for name in names]


STAGES = {
    "fetch": Stage(["resources/data/toy/train.jsonl"]),
    "make_demo_task": Stage(_in("resources/demo/made", "train.jsonl", "valid.jsonl", "test.jsonl")),
    "prepare": Stage(
        _in("data/toy", "train.jsonl", "valid.jsonl", "test.jsonl", "data.json"),
        _in("resources/data/toy", "train.jsonl"),
    ),
    "draw_subset": Stage(
        _in("data/toy@6-1", "train.jsonl", "valid.jsonl", "test.jsonl", "data.json"),
        _in("data/toy", "train.jsonl", "data.json"),
    ),
    "encode": Stage(
        _in("data/toy/toy", "train.source", "train.target"), ["data/toy/train.jsonl", "bases/toy/spm.model"]
    ),
    "binarise": Stage(
        _in("data/toy/toy/bin", *BINARISED, *DICTIONARIES),
        ["data/toy/toy/train.source", "data/toy/toy/valid.target", "bases/toy/dict.txt"],
    ),
    "make_documents": Stage(["bases/toy/pretrain/documents.jsonl"], ["resources/data/toy_text/novel.txt"]),
    "make_demo_documents": Stage(["bases/other/pretrain/documents.jsonl"]),
    "learn_vocabulary": Stage(_in("bases/toy", "spm.model", "dict.txt"), ["bases/toy/pretrain/documents.jsonl"]),
    "add_noise": Stage(
        _in("bases/toy/pretrain", *PAIRS[:4]), _in("bases/toy", "pretrain/documents.jsonl", "spm.model")
    ),
    "encode_documents": Stage(
        _in("bases/other/pretrain", "train.text", "valid.text"), ["bases/other/pretrain/documents.jsonl"]
    ),
    "binarise_text": Stage(
        _in("bases/other/pretrain/bin", "train.bin", "train.idx", "valid.bin", "valid.idx", "dict.txt"),
        ["bases/other/pretrain/train.text"],
    ),
    "binarise_pretraining": Stage(
        _in("bases/toy/pretrain/bin", *BINARISED[:8], *DICTIONARIES), ["bases/toy/pretrain/train.source"]
    ),
    "unpack_base": Stage(_in("bases/archived", "model.pt", "dict.txt"), ["resources/bases/archived/archived.tar.gz"]),
    "place_base_file": Stage(["bases/placed/model.safetensors"]),
    "place_base_dictionary": Stage(["bases/placed/dict.txt"]),
    "pretrain": Stage(
        _in("bases/toy", "model.pt", "pretrain/run.json"),
        _in(
            "bases/toy/pretrain/bin",
            "train.source-target.source.bin",
            "train.source-target.target.idx",
            "dict.source.txt",
        ),
    ),
    "pretrain_language_model": Stage(
        _in("bases/other", "model.pt", "pretrain/run.json"), _in("bases/other/pretrain/bin", "train.bin", "valid.idx")
    ),
    "leave_untuned": Stage(_in(f"{RUN}/base/1", "checkpoint.pt", "run.json"), ["bases/toy/model.pt"]),
    "train_prefix": Stage(
        _in(PREFIX, "checkpoint.pt", "run.json"),
        [
            "bases/toy/model.pt",
            *_in("data/toy/toy/bin", "train.source-target.source.bin", "valid.source-target.target.idx"),
        ],
    ),
    "train_finetune": Stage(_in(f"{RUN}/finetune/1", "checkpoint.pt", "run.json"), ["bases/toy/dict.txt"]),
    "check_runs": Stage(["data/toy/checked/toy.json"], ["data/toy/toy/bin/train.source-target.source.bin"]),
    "export_prefix": Stage([f"{PREFIX}/prefix.safetensors"], [f"{PREFIX}/checkpoint.pt"]),
    "import_prefix": Stage([f"{PREFIX}/imported.pt"], [f"{PREFIX}/prefix.safetensors"]),
    "generate": Stage(
        [f"{RUN}/finetune/1/generate.txt"],
        [f"{RUN}/finetune/1/checkpoint.pt", "data/toy/toy/bin/test.source-target.source.bin"],
    ),
    "hypotheses": Stage([f"{PREFIX}/hypotheses.txt"], [f"{PREFIX}/generate.txt", "data/toy/test.jsonl"]),
    "score": Stage([f"{PREFIX}/bleu.json"], [f"{PREFIX}/hypotheses.txt", "data/toy/test.jsonl"]),
    "table": Stage(_in("results/toy", "bleu.txt", "bleu.tsv"), [f"{PREFIX}/bleu.json", f"{PREFIX}/run.json"]),
    "costs": Stage(_in("results/toy", "costs.txt", "costs.tsv"), [f"{PREFIX}/run.json"]),
    "describe": Stage(_in("results/toy", "data.txt", "data.tsv"), ["data/toy/valid.jsonl"]),
    "study": Stage(
        [f"results/studies/mine/toy.{end}" for end in ("txt", "tsv", "svg", "png")],
        [f"{RUN}/prefix~prefix-length=2/1/bleu.json"],
    ),
    "report": Stage(["results/studies/report.html"], ["results/studies/mine/toy.txt"]),
}
TARGETS = [path for stage in STAGES.values() for path in stage.outputs]
RECORDED = ("arch", "flags", "seed", "versions", "base_fingerprint", "base_parameters")  # of run.json, what is no time
RECORDED += ("trained_parameters", "stored_parameters")
TRAININGS = ("pretrain", "pretrain_language_model", "train_prefix", "train_finetune")


def build(folder: Path) -> None:
    """Write configuration and raw files, and run everything once."""
    for kind, presets in {
        "models": {"toy": BART, "other": GPT2, "archived": ARCHIVED, "placed": PLACED},
        **{"tasks": {"toy": TASK, "made": DEMO_TASK}, "studies": {"mine": STUDY}},
    }.items():
        for name, preset in presets.items():
            _write(folder / "configs" / kind / f"{name}.yaml", yaml.safe_dump(preset))
    _write(folder / "configs" / "config.yaml", yaml.safe_dump(CONFIG))
    rng = random.Random(1)
    places = ("Ayr", "Elgin", "Oban", "Wick")
    sentences = [f"The {n} ships of {rng.choice(places)} sailed on day {rng.randrange(30)}." for n in range(150)]
    _write(folder / "mirror/toy_text/novel.txt", "\n".join(sentences) + "\n")
    for split, count in (("train", 40), ("valid", 8), ("test", 8)):
        rows = []
        for number in range(count):
            ship, place = rng.randrange(150), rng.choice(places)
            source = f"The ship {ship} of {place}, day {rng.randrange(30)}, {split} {number}."
            rows.append({"id": str(number), "source": source, "references": [f"Ship {ship} sailed."], "group": None})
        _write(folder / f"mirror/toy/{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        _write(folder / "mirror/gpt2_bpe" / name, f"{name} 1\n")
        _write(folder / "resources/gpt2_bpe" / name, f"{name} 1\n")
    for name in ("config.json", "model.safetensors"):
        _write(folder / "mine" / name, name * 5000)
    (folder / "mirror/bases/archived").mkdir(parents=True)
    with tarfile.open(folder / "mirror/bases/archived/archived.tar.gz", "w:gz") as archive:
        for name, content in (("model.pt", rng.randbytes(300_000)), ("dict.txt", b"a 1\nb 1\n")):
            member = tarfile.TarInfo(f"archived/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    result = snakemake(folder, *TARGETS, "results/toy/scores.txt")
    if result.returncode:
        sys.exit(f"the undisturbed run failed:\n{result.stdout}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def start(folder: Path, *targets: str) -> subprocess.Popen:
    """Snakemake in the folder, in a session of its own, everything that it says in one stream."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "1"]
    command += ["--notemp", "--profile", str(REPOSITORY / "profiles" / "default"), *targets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PREFIX_MIRROR", None)
    with open(folder / "snakemake.log", "w") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def snakemake(folder: Path, *targets: str) -> subprocess.CompletedProcess:
    """Run Snakemake to its end; it takes away the lock of one that was killed itself."""
    status = start(folder, *targets).wait()
    return subprocess.CompletedProcess(targets, status, (folder / "snakemake.log").read_text(errors="replace"))


def copy(template: Path, folder: Path, stage: Stage) -> None:
    """Lay a copy of the finished tree in the folder, without what the stage makes and its second names."""
    if folder.exists():
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(template, folder, dirs_exist_ok=True)
    for path in stage.outputs:
        (folder / path).unlink(missing_ok=True)
        (folder / path).with_name(f".{Path(path).name}").unlink(missing_ok=True)
        if path.endswith("run.json"):
            shutil.rmtree((folder / path).parent / ".trained", ignore_errors=True)


def fingerprint(path: Path) -> str:
    """What must be the same in a file: its bytes, but for measured times and for how torch packs tensors."""
    if path.suffix == ".pt":
        try:
            state = torch.load(path, map_location="cpu", weights_only=False)
        except Exception:  # not torch's: the made-up archive's, or a damaged one
            return hashlib.sha256(path.read_bytes()).hexdigest()
        digest = hashlib.sha256()
        for name, tensor in sorted(state["model"].items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()
    if path.name == "run.json":
        record = json.loads(path.read_text())
        return json.dumps({key: record[key] for key in RECORDED})
    if path.name == "curve.tsv":  # its last column is the speed
        return str([line.rpartition("\t")[0] for line in path.read_text().splitlines()])
    if path.stem == "costs":
        return str(len(path.read_text().splitlines()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(folder: Path, template: Path, paths: list[str], missing: bool = False) -> list[str]:
    """The files that are not as in the template; with `missing`, absent ones count as well."""
    found = []
    for name in paths:
        path = folder / name
        if not path.exists():
            if missing:
                found.append(f"{name} is missing")
            continue
        try:
            same = fingerprint(path) == fingerprint(template / name)
        except (ValueError, UnicodeDecodeError):
            same = False
        if not same:
            found.append(name)
    return found


def seconds(folder: Path, output: str) -> float:
    """How long the job that made a file took, as Snakemake noted it."""
    note = folder / ".snakemake" / "metadata" / base64.urlsafe_b64encode(output.encode()).decode()
    record = json.loads(note.read_text())
    return record["endtime"] - record["starttime"]
