"""Texts from the API and the command: those of the workflow's own path, whoever shares the batch; what is refused."""

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import binarise
import bpe
import encode
import hypotheses
import learn_vocabulary
import methods
import numpy
import prepare
import pytest
import tiny
import torch
from conftest import REPOSITORY
from fairseq import options
from fairseq.data import Dictionary
from fairseq_cli import generate as fairseq_generate
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fairseq_prefix.api as api
from fairseq_prefix.__main__ import main
from fairseq_prefix.errors import UsageError
from fairseq_prefix.files.checkpoint import configuration, write_checkpoint
from fairseq_prefix.files.loading import EXPORT_KEY, load_tensors
from fairseq_prefix.files.vocabulary import read_vocabulary
from fairseq_prefix.methods.bank import PrefixBank
from fairseq_prefix.toolkit.task import ConditionalGenerationTask

TEXTS = [
    "the cat sat on the mat",
    "a café, 12 + 3 < 4 and/or 5 > 4; " * 3,  # longer than what one of the prefixes reads
    "under the milk jug",
    "  we put\u00a0a box  ",
    "日本 <s> cat </s> <mask> <unk>",
    "x",
    "the the the cat cat sat sat on on",
]
FLAGS = {"beam": 3, "lenpen": 0.8, "max_len_b": 12, "min_len": 2, "no_repeat_ngram_size": 3}
KINDS = ("bart-spm", "bart-bytes", "gpt2-bytes")
# By task: longest source, and the prefix.
PREFIXES = {
    "bart": {
        "short": (9, {"prefix_length": 2, "prefix_sites": "encoder,cross"}),
        "v1.1": (40, {"prefix_length": 5, "prefix_cross_length": 3}),
    },
    "gpt2": {
        "short": (9, {"prefix_length": 2}),
        "v1.1": (40, {"prefix_length": 5}),
        "infix": (40, {"prefix_length": 3, "prefix_position": "infix"}),
    },
}


class World:
    """A random base with its vocabulary beside it, and prefixes for it as the workflow leaves them."""

    def __init__(self, folder, kind, spm_model, byte_bpe):
        self.folder, self.base = folder, folder / "base"
        self.family, vocabulary = kind.split("-")
        self.base.mkdir()
        if vocabulary == "spm":
            shutil.copy(spm_model, self.base / "spm.model")
            (self.base / "dict.txt").write_text(learn_vocabulary.dictionary(spm_model.read_bytes()), encoding="utf-8")
            self.options = ["--spm", str(self.base / "spm.model")]
        else:
            for file in byte_bpe:
                shutil.copy(file, self.base)
            write_numbers(self.base / "dict.txt", json.loads(byte_bpe[0].read_text()))
            self.options = ["--encoder-json", str(byte_bpe[0]), "--vocab-bpe", str(byte_bpe[1])]
            self.options += ["--leading-space"] if self.family == "gpt2" else []
        self.symbols = Dictionary.load(str(self.base / "dict.txt"))
        arch = f"full_{self.family}_tiny"
        tiny.save_base(self.base, symbols=self.symbols, arch=arch, scale=0.1)
        self.prefixes = {}
        for seed, (name, (longest, given)) in enumerate(PREFIXES[self.family].items()):
            self.prefixes[name] = self.make_prefix(folder / f"{name}.safetensors", longest, seed, **given)

    def make_prefix(self, path, longest, seed=0, base=None, **given):
        """A prefix as large as the base's own keys, exported."""
        base, arch = str(base or self.base), f"prefix_{self.family}_tiny"
        make_task = tiny.make_lm_task if self.family == "gpt2" else tiny.make_task
        args = tiny.make_args(arch, base_model=base, prefix_reparam="flat", **given)
        model = methods.strengthen(make_task(self.symbols, max_source_tokens=longest).build_model(args), seed)
        cfg = configuration(vars(args), {"max_source_tokens": longest}, base)
        write_checkpoint(f"{path}.pt", cfg, model.state_dict())
        main(["export", f"{path}.pt", str(path)])
        return path

    def load(self, *names, **given):
        model = api.load(self.base, **given)
        for name in names or self.prefixes:
            model.add(name, self.prefixes[name])
        return model

    def workflow(self, name, texts, **flags):
        """hypotheses.txt as the workflow's scripts make it with one prefix."""
        folder = self.folder / f"workflow.{name}.{len(os.listdir(self.folder))}"
        folder.mkdir()
        raw = folder / "raw.jsonl"
        raw.write_text("".join(json.dumps({"source": text, "target": "the"}) + "\n" for text in texts))
        prepare.prepare("jsonl", {"test": raw}, {"source": "source", "target": "target"}, folder)
        files_of = ["--input", f"{folder}/test.jsonl", "--output-prefix", f"{folder}/test"]
        encode.main([*files_of, "--split", "test", *self.options])
        files_of = ["--input-dir", str(folder), "--dict", f"{self.base}/dict.txt", "--output-dir", f"{folder}/bin"]
        binarise.main([*files_of, "--splits", "test"])
        main(["import", str(self.prefixes[name]), f"{folder}/imported.pt", "--base-model", str(self.base)])
        task = "conditional_lm" if self.family == "gpt2" else "conditional_generation"
        arguments = [f"{folder}/bin", "--path", f"{folder}/imported.pt", "--gen-subset", "test", "--task", task]
        arguments += ["--max-source-tokens", str(PREFIXES[self.family][name][0]), "--batch-size", "4"]
        for flag, value in flags.items():
            arguments += [f"--{flag.replace('_', '-')}", str(value)]
        with open(folder / "generate.txt", "w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
            fairseq_generate.main(options.parse_args_and_arch(options.get_generation_parser(), arguments))
        lines = (folder / "generate.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "generate.txt").write_text("".join(line for line in lines if line.startswith("H-")), encoding="utf-8")
        files_of = ["--generated", f"{folder}/generate.txt", "--examples", f"{folder}/test.jsonl"]
        hypotheses.main([*files_of, "--output", f"{folder}/hypotheses.txt", *self.options])
        return (folder / "hypotheses.txt").read_text(encoding="utf-8").split("\n")[:-1]


def write_numbers(path, tokens):
    """The dict.txt of a byte BPE: its numbers in another order, and a symbol that no text contains."""
    numbers = random.Random(0).sample(sorted(tokens.values()), len(tokens))
    path.write_text("".join(f"{number} 1\n" for number in numbers) + "madeupword0000 0\n")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, spm_model, byte_bpe):
    made = {}

    def world(kind):
        if kind not in made:
            made[kind] = World(tmp_path_factory.mktemp(kind), kind, spm_model, byte_bpe)
        return made[kind]

    return world


@pytest.fixture(scope="module")
def bart(worlds):
    return worlds("bart-spm")


@pytest.fixture(scope="module")
def gpt2(worlds):
    return worlds("gpt2-bytes")


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize("kind", [pytest.param("bart-spm", marks=pytest.mark.slow), *KINDS[1:]])
def test_texts_of_a_mixed_batch_are_those_of_the_workflow_s_files(worlds, kind):
    """Encoded by encode.py, binarised, generated by fairseq-generate and decoded by hypotheses.py, a task at a time."""
    world, names = worlds(kind), ["short", "v1.1"]
    expected = {name: world.workflow(name, TEXTS, **FLAGS) for name in names}
    model, rows = world.load(), [(name, number) for name in names for number in range(len(TEXTS))]
    random.Random(1).shuffle(rows)
    found = model.generate([TEXTS[number] for _, number in rows], [name for name, _ in rows], **FLAGS)
    assert found == [expected[name][number] for name, number in rows]
    assert len({*found}) > len(TEXTS), "the two tasks should write different texts"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_depends_on_no_other_text_of_the_batch(worlds, kind):
    model = worlds(kind).load()
    tasks = [*model.tasks, None]
    rows = [(text, tasks[number % len(tasks)]) for number, text in enumerate(TEXTS * 2)]
    flags = {**FLAGS, "max_len_a": 0.4, "max_len_b": 3}
    together = model.generate(*zip(*rows, strict=True), **flags, batch_size=5)
    alone = [model.generate([text], task, **flags)[0] for text, task in rows]
    assert together == alone and len({*alone}) > len(TEXTS)


def test_the_longest_output_is_that_of_fairseq_generate(gpt2):
    """Positions that the prefix and the longest source leave; nothing is generated for this."""
    for name, (longest, given) in PREFIXES["gpt2"].items():
        task = tiny.make_lm_task(gpt2.symbols, max_source_tokens=longest)
        single = task.build_model(tiny.make_args("prefix_gpt2_tiny", base_model=str(gpt2.base), **given))
        assert gpt2.load(name)._uses[name].room(longest) == task.build_generator([single], Namespace(**FLAGS)).max_len


@pytest.mark.parametrize("kind", KINDS[1:])
def test_zero_leaves_texts_uncut(worlds, kind, tmp_path):
    """And one that does not fit is refused by its number."""
    world = worlds(kind)
    limits = {"uncut": 0, "long": 100, "short": 9}
    model = api.load(world.base)
    for name, longest in limits.items():
        torch.manual_seed(0)
        model.add(name, world.make_prefix(tmp_path / f"{name}.safetensors", longest, prefix_length=4))
    found = {name: model.generate(TEXTS, name, **FLAGS) for name in limits}
    assert found["uncut"] == found["long"] != found["short"]
    with pytest.raises(UsageError, match=r"text 2 has 60[01] tokens, but there is room for \d+; shorten it"):
        model.generate(["x", "x" * 600], "uncut")


def test_prefixes_come_and_go_over_one_base(bart):
    model = bart.load("short")
    weights = model._model.decoder.embed_tokens.weight
    with pytest.raises(UsageError, match="unknown prefix 'v1.1'; expected one of short"):
        model.generate(["the cat"], ["v1.1"])
    before = model.generate(TEXTS, "short", **FLAGS)
    model.add("v1.1", bart.prefixes["v1.1"])
    assert model.tasks == ["short", "v1.1"]
    assert model.generate(TEXTS, "short", **FLAGS) == before != model.generate(TEXTS, "v1.1", **FLAGS)
    model.remove("short")
    assert model.tasks == ["v1.1"] and model._model.decoder.embed_tokens.weight is weights
    with pytest.raises(UsageError, match="unknown prefix 'short'"):
        model.generate(["the cat"], "short")
    assert model.generate([], []) == []


def test_a_checkpoint_of_a_training_is_added_like_its_export(bart):
    model = bart.load("v1.1")
    model.add("checkpoint", f"{bart.prefixes['v1.1']}.pt")
    assert model.generate(TEXTS, "checkpoint", **FLAGS) == model.generate(TEXTS, "v1.1", **FLAGS)


def test_half_precision(bart, gpt2):
    for world in (bart, gpt2):
        model = world.load(dtype="bf16")
        assert model._model.decoder.embed_tokens.weight.dtype == torch.bfloat16
        assert len(model.generate(TEXTS, ["short", "v1.1"] * 3 + [None], **FLAGS)) == len(TEXTS)


# Bases and vocabularies -----------------------------------------------------------------------------------------------


def test_a_base_is_loaded_from_a_file_and_with_a_vocabulary_elsewhere(bart, gpt2, tmp_path):
    expected = {world: world.load().generate(TEXTS, "v1.1", **FLAGS) for world in (bart, gpt2)}
    for world, place in ((bart, bart.base / "spm.model"), (gpt2, gpt2.base)):
        folder = tmp_path / world.family
        folder.mkdir()
        for name in ("model.pt", "dict.txt"):
            shutil.copy(world.base / name, folder)
        model = api.load(folder / "model.pt", vocabulary=place)
        model.add("v1.1", world.prefixes["v1.1"])
        assert model.generate(TEXTS, "v1.1", **FLAGS) == expected[world]
        with pytest.raises(UsageError, match="holds no vocabulary .* say in which folder it is"):
            api.load(folder)


@pytest.fixture(params=["bart", "gpt2"])
def hugging_face(request, tmp_path, byte_bpe):
    """(family, a folder as transformers writes it, with its names of the vocabulary's files)."""
    sys.modules.setdefault("torchaudio", None)  # transformers would load it, and it is not made for every torch
    import transformers

    tokens, folder = json.loads(byte_bpe[0].read_text()), tmp_path / "hugging_face"
    torch.manual_seed(3)
    if request.param == "gpt2":
        tokens["<|endoftext|>"] = len(tokens)
        config = transformers.GPT2Config(
            vocab_size=len(tokens), eos_token_id=len(tokens) - 1, n_embd=128, n_layer=3, n_head=8, n_positions=99
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        write_numbers(folder / "dict.txt", tokens)
    else:
        folder.mkdir()
        write_numbers(folder / "dict.txt", tokens)
        symbols = Dictionary.load(str(folder / "dict.txt"))
        config = transformers.BartConfig(vocab_size=len(symbols) + 1, d_model=96, encoder_layers=1, decoder_layers=3)
        config.encoder_attention_heads = config.decoder_attention_heads = 3
        config.encoder_ffn_dim, config.decoder_ffn_dim, config.max_position_embeddings = 64, 80, 99
        transformers.BartForConditionalGeneration(config).save_pretrained(folder)
        of_number = {str(number): token for token, number in tokens.items()}  # fairseq's numbers stand in vocab.json
        tokens = {of_number.get(symbol, symbol): index for index, symbol in enumerate(symbols.symbols)}
        tokens["<mask>"] = len(symbols)  # which dict.txt leaves out
    (folder / "vocab.json").write_text(json.dumps(tokens))
    shutil.copy(byte_bpe[1], folder / "merges.txt")
    return request.param, folder


def test_a_hugging_face_folder_is_loaded_whatever_its_sizes(hugging_face, byte_bpe):
    family, folder = hugging_face
    model = api.load(folder)
    args = model._model.args
    sizes = (args.decoder_layers, args.decoder_attention_heads, args.decoder_embed_dim, args.max_target_positions)
    assert sizes == ((3, 8, 128, 99) if family == "gpt2" else (3, 3, 96, 99))
    assert len(model.generate(TEXTS, None, beam=2, max_len_b=5)) == len(TEXTS)
    symbols = Dictionary.load(str(folder / "dict.txt")).symbols
    ours = read_vocabulary(folder, symbols, leading_space=family == "gpt2")
    theirs = bpe.ByteBPE(*byte_bpe, leading_space=family == "gpt2")
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.decode(["<s>", "70", "madeupword0000", "<unk>", "71"]) == theirs.decode(["70", "<unk>", "71"])


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_a_base_is_read_once(request, family, monkeypatch):
    """Of a large one that takes seconds and gigabytes."""
    read, calls = load_tensors, []
    world = request.getfixturevalue(family)
    monkeypatch.setattr("fairseq_prefix.files.base.load_tensors", lambda path: calls.append(path.name) or read(path))
    model = world.load("short")
    assert calls == ["model.pt"] and not hasattr(model._task, "base"), "nor kept beside the model"


# Threads --------------------------------------------------------------------------------------------------------------


def in_threads(*functions):
    with ThreadPoolExecutor(len(functions)) as threads:
        return [call.result() for call in [threads.submit(function) for function in functions]]


def test_threads_that_share_a_model_get_the_outputs_of_their_own_tasks(bart, monkeypatch):
    """The first search waits, its prefixes being selected, for another thread to select others."""
    model, selections, both = bart.load(), [], threading.Event()
    expected = [model.generate(TEXTS, name, **FLAGS) for name in ("short", "v1.1")]
    select, step = PrefixBank.select, ConditionalGenerationTask.inference_step

    def note(bank, rows):
        select(bank, rows)
        selections.append(threading.get_ident())
        if len({*selections}) == 2:
            both.set()

    def wait(*given):
        both.wait(timeout=0.5)  # in vain where threads take turns
        return step(*given)

    monkeypatch.setattr(PrefixBank, "select", note)
    monkeypatch.setattr(ConditionalGenerationTask, "inference_step", wait)
    found = in_threads(*(partial(model.generate, TEXTS, name, **FLAGS) for name in ("short", "v1.1")))
    assert found == expected and found[0] != found[1] and both.is_set()


def test_a_prefix_is_removed_when_nothing_is_generated_with_it(bart, monkeypatch):
    model, started, step = bart.load(), threading.Event(), ConditionalGenerationTask.inference_step
    expected = model.generate(TEXTS, "short", batch_size=2, **FLAGS)

    def note(*given):
        started.set()
        return step(*given)

    monkeypatch.setattr(ConditionalGenerationTask, "inference_step", note)
    found, _ = in_threads(
        partial(model.generate, TEXTS, "short", batch_size=2, **FLAGS),
        lambda: started.wait() and model.remove("short"),
    )
    assert found == expected and model.tasks == ["v1.1"]


# What is refused ------------------------------------------------------------------------------------------------------


def test_files_that_do_not_fit_are_refused_in_one_sentence(bart, gpt2, tmp_path):
    model = bart.load("short")
    tiny.save_base(tmp_path / "other", seed=9, symbols=bart.symbols)
    args = tiny.make_args("prompt_bart_tiny", base_model=str(bart.base), prompt_length=3)
    prompt = tiny.make_task(bart.symbols).build_model(args)
    cfg = configuration(vars(args), {"max_source_tokens": 50}, str(bart.base))
    write_checkpoint(str(tmp_path / "prompt.pt"), cfg, prompt.state_dict())
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 64)
    torch.save({"model": World}, tmp_path / "pickle.pt")
    for path, message in {
        bart.make_prefix(tmp_path / "p.safetensors", 9, base=tmp_path / "other", prefix_length=2): (
            "p.safetensors was trained over another base .fingerprint .* a prefix works only with its own base"
        ),
        gpt2.prefixes["short"]: "short.safetensors is of the architecture prefix_gpt2_tiny, but the base is a BART",
        tmp_path / "prompt.pt": "prompt.pt holds a prompt, but only a prefix can be added",
        tmp_path / "none.safetensors": "none.safetensors: no such file",
        tmp_path / "damaged.safetensors": "is damaged",
        tmp_path / "pickle.pt": "holds objects other than tensors, which are never loaded",
        bart.base / "model.pt": "is not a fairseq checkpoint|a whole model",
    }.items():
        with pytest.raises(UsageError, match=message):
            model.add("other", path)
    with pytest.raises(UsageError, match="a prefix 'short' already; remove it first"):
        model.add("short", bart.prefixes["short"])
    assert model.tasks == ["short"]


def test_an_incomplete_dictionary_is_blamed_itself(bart, hugging_face, tmp_path):
    """And not the base, whose fingerprint depends on it."""
    family, folder = hugging_face
    for place in (shutil.copytree(bart.base, tmp_path / "base"), folder):
        lines = (place / "dict.txt").read_text().splitlines(keepends=True)
        (place / "dict.txt").write_text("".join(lines[:-5]))
    with pytest.raises(UsageError, match="dict.txt") as error:
        api.load(tmp_path / "base").add("short", bart.prefixes["short"])
    assert "over another base" not in str(error.value)
    if family == "gpt2":  # whose rows have names
        with pytest.raises(UsageError, match="dict.txt lacks the token"):
            api.load(folder)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("max_source_tokens", "does not record max_source_tokens"),
        ("bos", "none of this plugin's|is damaged"),
        ("separator", "requires --task translation"),
    ],
)
def test_an_addition_that_fails_leaves_nothing(gpt2, tmp_path, lost, message):
    path, model = tmp_path / "p.safetensors", gpt2.load("short")
    with safe_open(gpt2.prefixes["v1.1"], framework="pt") as file:
        header = json.loads(file.metadata()[EXPORT_KEY])
    del header["prefix"]["conventions"][lost]
    save_file(load_file(gpt2.prefixes["v1.1"]), path, {EXPORT_KEY: json.dumps(header)})
    with pytest.raises(UsageError, match=message):
        model.add("other", path)
    with pytest.raises(UsageError, match="must be a non-empty string, not ''"):
        model.add("", gpt2.prefixes["v1.1"])
    assert model.tasks == ["short"] and len(model.generate(["the cat"], "short")) == 1
    model.add("other", gpt2.prefixes["v1.1"])
    assert model.tasks == ["short", "other"]


def test_a_prefix_that_leaves_no_room_for_an_output_is_refused(gpt2, tmp_path):
    path = gpt2.make_prefix(tmp_path / "p.safetensors", 500, prefix_length=3)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[EXPORT_KEY])
    header["prefix"]["conventions"]["max_source_tokens"] = 508
    save_file(load_file(path), path, {EXPORT_KEY: json.dumps(header)})
    with pytest.raises(UsageError, match="3 virtual tokens and a source of 508 tokens leave no room .* 512 positions"):
        gpt2.load("short").add("long", path)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("texts", "tasks", "given", "message"),
    [
        ("the cat", "short", {}, "texts is one text; pass a list"),
        (b"the cat", "short", {}, "texts is one text; pass a list"),
        (None, "short", {}, "texts is None; expected a list"),
        ({"the cat"}, "short", {}, "texts is {'the cat'}; expected a list"),
        ([None], "short", {}, "text 1 is None; expected a str"),
        (["the cat", b"box"], "short", {}, "text 2 is b'box'; expected a str"),
        (["the cat", NAN], "short", {}, "text 2 is nan; expected a str"),
        (["the cat"], ["short", "short"], {}, "there are 1 texts, but 2 tasks"),
        (["the cat"], 5, {}, "tasks is 5; expected a list"),
        (["the cat"], [["short"]], {}, "the task of text 1 is .'short'.; expected a name or None"),
        (["the cat"], "other", {}, "unknown prefix 'other'; expected one of short"),
        (["the cat", " ", "a box"], "short", {}, "text 2 is empty"),
        (["the cat"], "short", {"min_len": 20, "max_len_b": 9}, "min_len is 20, but text 1 may get 9 tokens at most"),
        (["the cat"], "short", {"beam": 0}, "beam is 0; expected a whole number from 1 to"),
        (["the cat"], "short", {"beam": 2.0}, "beam is 2.0; expected a whole number from 1 to"),
        (["the cat"], "short", {"beam": True}, "beam is True; expected a whole number"),
        (["the cat"], "short", {"beam": "4"}, "beam is '4'; expected a whole number"),
        (["the cat"], "short", {"batch_size": -1}, "batch_size is -1; expected a whole number from 1 to"),
        (["the cat"], "short", {"batch_size": None}, "batch_size is None; expected a whole number"),
        (["the cat"], "short", {"max_len_a": NAN}, "max_len_a is nan; expected a number from 0 to"),
        (["the cat"], "short", {"max_len_a": INFINITY}, "max_len_a is inf; expected a number"),
        (["the cat"], "short", {"max_len_b": 10**400}, "max_len_b is 10+.*0+; expected a whole number from 0 to"),
        (["the cat"], "short", {"max_len_b": 9.5}, "max_len_b is 9.5; expected a whole number"),
        (["the cat"], "short", {"min_len": -1}, "min_len is -1; expected a whole number"),
        (["the cat"], "short", {"lenpen": NAN}, "lenpen is nan; expected a number from -10 to 10"),
        (["the cat"], "short", {"lenpen": 1e5}, "lenpen is 100000.0; expected a number from -10 to 10"),
        (["the cat"], "short", {"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1; expected a whole number"),
        (["\ud800"], "short", {}, "text 1 holds half of a surrogate pair"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(with_short, texts, tasks, given, message):
    with pytest.raises(UsageError, match=message):
        with_short.generate(texts, tasks, **given)


@pytest.fixture(scope="module")
def with_short(bart):
    return bart.load("short")


def test_numbers_of_numpy_are_numbers(with_short):
    flags = {
        name: numpy.int32(value) if isinstance(value, int) else numpy.float32(0.8) for name, value in FLAGS.items()
    }
    assert with_short.generate(iter(TEXTS), "short", **flags) == with_short.generate(TEXTS, "short", **FLAGS)


def test_a_blank_text_is_refused_whatever_the_vocabulary(gpt2):
    with pytest.raises(UsageError, match="text 1 is empty"):
        gpt2.load("short").generate([" "], "short")


def test_a_device_whose_package_is_not_there_is_refused_in_one_sentence(monkeypatch):
    def zeros(*_, **__):
        raise ImportError("no module torch_xla")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(UsageError, match="device is 'xla', which is not available here .no module torch_xla"):
        api._check_device("xla")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", None, 99])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(bart, device):
    with pytest.raises(UsageError, match=f"device is {device!r}, which is not available here"):
        api.load(bart.base, device=device)


@torch.inference_mode()
def test_a_model_may_be_loaded_and_used_in_inference_mode(bart):
    assert bart.load("short").generate(TEXTS[:1], "short") == bart.load("short").generate(TEXTS[:1], "short")


def test_a_base_or_vocabulary_that_cannot_be_used_is_refused_in_one_sentence(bart, gpt2, tmp_path, byte_bpe):
    empty, lone, strange = tmp_path / "empty", tmp_path / "lone", tmp_path / "strange"
    for folder in (empty, lone, strange):
        folder.mkdir()
    shutil.copy(bart.base / "model.pt", lone)
    (strange / "config.json").write_text('{"model_type": "t5"}')
    shutil.copy(tiny_safetensors(tmp_path), strange / "model.safetensors")
    (tmp_path / "spm.model").write_bytes(b"nothing")
    for base, given, message in (
        (empty, {}, "holds neither model.pt nor config.json"),
        (lone, {}, "dict.txt: no such file; expected the base's dictionary beside the base"),
        (strange, {}, "model_type is 't5'; expected bart or gpt2 or mbart"),
        (tmp_path / "nowhere", {}, "no such file or folder"),
        (bart.base, {"vocabulary": tmp_path / "spm.model"}, "spm.model: not a sentencepiece model"),
        (bart.base, {"dtype": "fp16"}, "choose 'fp32' or 'bf16', or on a GPU 'fp16'"),
        (bart.base, {"dtype": torch.float32}, "dtype is torch.float32; choose 'fp32'"),
        (bart.base, {"dtype": []}, "dtype is ..; choose 'fp32'"),
        (None, {}, "base is None; expected a path"),
        (bart.base, {"vocabulary": 5}, "vocabulary is 5; expected a path"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            api.load(base, **given)
        assert "--" not in str(error.value), "an application has no options"
    with pytest.raises(
        UsageError, match="text 1 has the piece '.*', which is not in the base's dict.txt; use the base's vocabulary"
    ):
        api.load(bart.base, vocabulary=gpt2.base).generate(["the cat"], None)


def tiny_safetensors(folder):
    save_file({"weight": torch.zeros(2)}, folder / "some.safetensors")
    return folder / "some.safetensors"


# The program around it ------------------------------------------------------------------------------------------------

HOST = """
import logging, signal, sys, warnings
if "configured" in sys.argv:
    logging.basicConfig(level=logging.INFO)
def state():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return [*logging.root.handlers], logging.root.level, handlers, sys.excepthook
before, filters = state(), [*warnings.filters]
import fairseq_prefix.api as prefix
assert state() == before and warnings.filters == filters, "importing"
model = prefix.load(sys.argv[1])
model.add("short", sys.argv[2])
model.generate(["the cat"], "short")
assert state() == before, "using"
try:
    model.generate([None], "short")
except Exception:
    pass
"""


@pytest.mark.parametrize("logging", ["configured", "untouched"])
def test_an_application_keeps_its_log_its_warnings_and_its_signals(bart, logging):
    command = [sys.executable, "-c", HOST, str(bart.base), str(bart.prefixes["short"]), logging]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_commands_say_one_line(bart, tmp_path):
    def command(*arguments):
        command = [sys.executable, "-m", "fairseq_prefix", *map(str, arguments)]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        return result.returncode, result.stdout, result.stderr

    base, path = ("--base-model", bart.base), tmp_path / "p.pt"
    status, output, errors = command("import", bart.prefixes["short"], path, *base)
    assert (status, errors) == (0, "") and re.fullmatch(rf"{path}: [0-9,]+ parameters, [0-9,]+ bytes\n", output)
    message = (
        f"error: {tmp_path} is a folder; expected a file in it, such as checkpoint_best.pt or prefix.safetensors\n"
    )
    assert command("inspect", tmp_path) == (1, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "CHECKPOINT", "nodir/p.safetensors"), "there is no folder .*nodir; create it first"),
        (("export", "CHECKPOINT", "nodir/"), "nodir/"),
        (
            ("export", "CHECKPOINT", "folder.safetensors"),
            "folder.safetensors is a folder; expected the name of the file",
        ),
        (("export", "CHECKPOINT", "p.pt"), "p.pt: expected a name that ends in .safetensors"),
        (("export", ".", "p.safetensors"), "is a folder; expected a file in it"),
        (("import", "EXPORT", "nodir/p.pt", "--base-model", "base"), "there is no folder .*nodir; create it first"),
        (("import", "EXPORT", "p.safetensors", "--base-model", "base"), "a name that does not end in .safetensors"),
        (("import", ".", "p.pt", "--base-model", "base"), "is a folder; expected a file in it"),
        (("inspect", "."), "is a folder; expected a file in it"),
        (("inspect", "nothing.pt"), "nothing.pt: no such file"),
    ],
)
def test_a_path_of_the_wrong_kind_is_refused_and_nothing_is_made(bart, tmp_path, monkeypatch, arguments, message):
    files_of = {"CHECKPOINT": f"{bart.prefixes['short']}.pt", "EXPORT": str(bart.prefixes["short"])}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UsageError, match=message):
        main([files_of.get(argument, argument) for argument in arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


# The command ----------------------------------------------------------------------------------------------------------


def run(world, lines, *names, output=None, **flags):
    """What the command writes for lines (bytes, or a stream of them) with these prefixes."""
    command = ["generate", "--base-model", str(world.base)]
    for name in names:
        command += ["--prefix", f"{name}={world.prefixes[name]}"]
    for flag, value in flags.items():
        command += [f"--{flag.replace('_', '-')}", str(value)]
    output, stdin = output or io.StringIO(), sys.stdin
    sys.stdin = Namespace(buffer=io.BytesIO(lines) if isinstance(lines, bytes) else lines)
    try:
        with contextlib.redirect_stdout(output):
            main(command)
    finally:
        sys.stdin = stdin
    return output.getvalue().split("\n")[:-1]


def test_the_command_answers_each_line_with_the_prefix_that_it_names(bart):
    rows = [(text, ["v1.1", "short"][number % 2]) for number, text in enumerate(TEXTS)]
    lines = "".join(f"{task}\t{text}\r\n" for text, task in rows).encode()
    expected = bart.load().generate(*zip(*rows, strict=True), **FLAGS)
    assert run(bart, lines, "short", "v1.1", **FLAGS) == expected


def test_the_command_reads_plain_lines_where_there_is_one_prefix(bart):
    expected = bart.load().generate(["the cat", "a box"], "short")
    assert run(bart, b"the cat\nshort\ta box", "short") == expected
    assert run(bart, b"", "short") == []


@pytest.mark.parametrize(
    ("names", "bad"),
    [
        (
            ("short", "v1.1"),
            {
                b"the cat": "does not name its task; expected TASK<TAB>text",
                b"": "does not name its task; expected TASK<TAB>text",
                b"short\t ": "has no text; remove the line",
                b"other\tthe cat": ": unknown task 'other'; expected one of short, v1.1",
            },
        ),
        (
            ("short",),
            {
                b"  ": "has no text; remove the line",
                b"other\tthe cat": ": unknown task 'other'; expected one of short",
                b"\xff": "is not UTF-8",
                b"the\0cat": ": text 1 holds a NUL character",
            },
        ),
    ],
)
def test_a_bad_line_is_named_and_costs_no_other_line_its_answer(bart, capsys, names, bad):
    output, good = io.StringIO(), bart.load(*names).generate(["the cat", "a box"], "short")
    lines = [b"short\tthe cat", *bad, b"short\ta box"]
    with pytest.raises(UsageError, match="4 of 6 lines could not be answered; their lines of output are empty"):
        run(bart, b"\n".join(lines), *names, output=output)
    assert output.getvalue().split("\n") == [good[0], "", "", "", "", good[1], ""]
    errors = capsys.readouterr().err
    for number, message in enumerate(bad.values(), 2):
        assert re.search(f"line {number}:? ?{re.escape(message.removeprefix(': '))}", errors)


def test_lines_are_answered_before_more_are_read(bart):
    """A writer that waits for each answer gets it, and what is answered is not lost if the writer dies."""
    output, expected = io.StringIO(), bart.load("short").generate(["the cat", "a box", "the"], "short")

    def writer():
        yield b"the cat\na b"
        assert output.getvalue().split("\n")[:-1] == expected[:1]
        yield b"ox\n"
        assert output.getvalue().split("\n")[:-1] == expected[:2]
        yield b"the\n"
        raise OSError("the writer dies")

    blocks = writer()
    with pytest.raises(OSError, match="the writer dies"):
        run(bart, Namespace(read1=lambda _: next(blocks)), "short", output=output)
    assert output.getvalue().split("\n")[:-1] == expected


def test_many_lines_of_one_read_are_answered_in_parts_and_in_order(bart, monkeypatch):
    texts, sizes, generate = TEXTS * 7, [], api.Model.generate

    @functools.wraps(generate)
    def noting(self, texts, tasks, **options):
        sizes.append(len(texts))
        return generate(self, texts, tasks, **options)

    expected = bart.load("short").generate(texts, "short", **FLAGS)
    monkeypatch.setattr(api.Model, "generate", noting)
    assert run(bart, "".join(f"{text}\n" for text in texts).encode(), "short", batch_size=2, **FLAGS) == expected
    assert sizes == [0, 16, 16, 16, 1]


def test_wrong_options_are_refused_before_a_line_is_read(bart):
    with pytest.raises(UsageError, match="beam is 0"):
        run(bart, Namespace(read1=lambda _: pytest.fail("a line is read")), "short", beam=0)


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_the_command_without_a_traceback(bart, tmp_path):
    command = f"head -c 40000 /dev/zero | tr '\\0' x | fold -w 40 | {sys.executable} -m fairseq_prefix generate"
    command += f" --base-model {bart.base} --prefix short={bart.prefixes['short']} --beam 1 --max-len-b 2 | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_prefix_without_a_name_is_refused(bart):
    with pytest.raises(UsageError, match="--prefix p.safetensors is not of the form NAME=FILE"):
        main(["generate", "--base-model", str(bart.base), "--prefix", "p.safetensors"])


def test_the_page_s_example_is_the_module_s():
    """docs/api.md begins with what the module's docstring shows."""
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in api.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) == 5 and "\n".join(lines) in page
