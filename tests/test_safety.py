"""Bad files, one kind a test: nothing in them runs, nothing leaves its folder, and the user reads one sentence."""

import argparse
import gzip
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from argparse import Namespace
from pathlib import Path

import common
import fairseq
import pytest
import report
import table
import tiny
import torch
import yaml
from common import UserError, open_tar, read_jsonl, run_main
from config import Configuration, check, load_yaml
from conftest import REPOSITORY, archive
from fairseq import checkpoint_utils
from flags import EVALUATED, check_flag, known_flags
from make_documents import paragraphs
from prepare import prepare
from readers import READERS
from safetensors.torch import load_file, save_file
from test_table import recorded
from test_training import make_world, start, training
from unpack import unpack

from fairseq_prefix import api
from fairseq_prefix.__main__ import main
from fairseq_prefix.errors import UsageError
from fairseq_prefix.files import loading
from fairseq_prefix.files.base import read_base
from fairseq_prefix.files.checkpoint import configuration, read_tuned, write_checkpoint
from fairseq_prefix.files.export import write as write_export
from fairseq_prefix.files.loading import EXPORT_KEY

pytestmark = pytest.mark.usefixtures("hooks")
CODE = "__import__('os').mkdir('executed')"


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path, monkeypatch):
    """Every gadget here makes a folder `executed` in the working directory."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), "full_bart_tiny")


@pytest.fixture(scope="module")
def checkpoint(world):
    """A good checkpoint of a prefix over the base of `world`."""
    args = tiny.make_args("prefix_bart_tiny", base_model=str(world / "base"), prefix_length=3, prefix_mid_dim=16)
    cfg = configuration(vars(args), {"max_source_tokens": 50}, str(world / "base"))
    write_checkpoint(str(world / "c.pt"), cfg, tiny.make_task().build_model(args).state_dict())
    return world / "c.pt"


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and text.isprintable()
    return text


# Checkpoints ----------------------------------------------------------------------------------------------------------


class Gadget:
    """Pickled, a call of this function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


GADGETS = {
    "os.mkdir": Gadget(os.mkdir, "executed"),
    "os.system": Gadget(os.system, "mkdir executed"),
    "eval": Gadget(eval, CODE),
    "exec": Gadget(exec, CODE),
    "a pickle within": Gadget(pickle.loads, pickle.dumps(Gadget(os.mkdir, "executed"))),
    "torch.load": Gadget(torch.load, "evil.pt"),
}


def write(state, path, form):
    if form == "zip":
        torch.save(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(state))
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("gadget", GADGETS)
def test_a_gadget_anywhere_in_a_checkpoint_does_nothing(checkpoint, tmp_path, gadget, form):
    state = torch.load(checkpoint, weights_only=True)
    state["extra_state"]["x"] = [GADGETS[gadget]]
    path = write(state, tmp_path / "evil.pt", form)
    reading = (
        lambda: main(["inspect", str(path)]),
        lambda: main(["export", str(path), "out.safetensors"]),
        lambda: main(["import", str(path), "out.pt", "--base-model", "base"]),
        lambda: read_base(str(path)),
        lambda: checkpoint_utils.load_checkpoint_to_cpu(str(path)),
    )
    for read in reading:
        with pytest.raises(UsageError) as error:
            read()
        assert "evil.pt cannot be loaded: it " in one_sentence(error)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evil.pt"]


def test_an_environment_variable_does_not_let_fairseq_unpickle(checkpoint, tmp_path, monkeypatch):
    """People set it to make fairseq load its old checkpoints."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = write({"model": Gadget(os.mkdir, "executed")}, tmp_path / "evil.pt", "zip")
    with pytest.raises(UsageError, match="holds objects other than tensors, which are never loaded"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))["model"]
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_two_threads_that_load_leave_the_environment_as_it_was(monkeypatch):
    """The second one begins while the first one loads, and ends after it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    began, first_ended, protected = threading.Event(), threading.Event(), []

    def second():
        with loading.only_tensors():
            began.set()
            first_ended.wait()
            protected.append(os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "0")

    thread = threading.Thread(target=second)
    with loading.only_tensors():
        thread.start()
        began.wait(timeout=0.3)  # in vain where it waits for its turn
    first_ended.set()
    thread.join()
    assert protected == [True] and os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_a_type_that_the_application_trusts_stays_trusted(checkpoint):
    """torch forgets it at the end of a block that adds it; tiny.py is the application here."""
    assert loading.load_tensors(checkpoint)["model"]
    assert argparse.Namespace in torch.serialization.get_safe_globals()


def test_what_loads_a_file_may_load_another_one_meanwhile():
    def load():
        with loading.only_tensors(), loading.only_tensors():
            ended.set()

    ended = threading.Event()
    threading.Thread(target=load, daemon=True).start()
    assert ended.wait(timeout=10)


def test_writing_a_file_does_not_touch_the_umask_of_the_process(tmp_path, monkeypatch):
    """It is one for all threads: of two that set and restore it, the other may restore what the first one set."""
    monkeypatch.setattr(os, "umask", None)
    loading.atomically(tmp_path / "x.pt", lambda path: torch.save({}, path))
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    loading.atomically(tmp_path / "x.safetensors", lambda path: save_file({"x": torch.zeros(2)}, path))
    (tmp_path / "plain").touch()
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["x.pt"] == modes["plain"] and modes["x.safetensors"] == modes["plain.safetensors"]


@pytest.mark.parametrize("name", ["evil.pt", "folder/pytorch_model.bin", "folder/model.pt"])
def test_a_malicious_base_does_nothing(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith(".bin"):
        (tmp_path / "folder" / "config.json").write_text('{"model_type": "gpt2"}')
    write({"model": {"decoder.embed_tokens.weight": Gadget(os.mkdir, "executed")}}, path, "legacy")
    with pytest.raises(UsageError, match="holds objects other than tensors") as error:
        tiny.build("prefix_gpt2_tiny", base_model=str(path.parent if "/" in name else path), prefix_length=1)
    one_sentence(error)


def with_option(state, place, key, value):
    """The checkpoint with an option that says something else, where fairseq looks for it."""
    model = {**vars(state["cfg"]["model"]), "_name": "full_bart_tiny", "arch": "full_bart_tiny", key: value}
    if place == "cfg":
        state["cfg"]["model"] = model
    else:
        state["args"] = Namespace(**model)
    return state


@pytest.mark.parametrize("place", ["cfg", "args"])
@pytest.mark.parametrize(
    "key", ["encoder_xformers_att_config", "adaptive_softmax_cutoff", "decoder_layers", "character_filters"]
)
def test_no_option_of_a_checkpoint_is_evaluated(checkpoint, tmp_path, place, key):
    """fairseq hands these to eval(): tensors alone are no safety."""
    state = with_option(torch.load(checkpoint, weights_only=True), place, key, CODE)
    torch.save(state, tmp_path / "evil.pt")
    with pytest.raises(UsageError, match=f"its option {key} is code .*, which fairseq would run") as error:
        checkpoint_utils.load_model_ensemble([str(tmp_path / "evil.pt")], task=tiny.make_task())
    one_sentence(error)


QUOTED = f"'+str({CODE})+'"  # code, where it comes to stand between quotes
COOKIE = f"# coding: utf-7\n(1,#+AAo-{CODE}#\n)".encode()  # a comment in UTF-8


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activation_fn", "${oc.env:HOME}", "activation_fn refers to another value"),
        ("activation_fn", "${${model.x}:HOME}", "activation_fn refers to another value"),
        ("activation_fn", "\\${model.x}", "activation_fn refers to another value"),
        ("adaptive_softmax_cutoff", "'${model.note}'", "adaptive_softmax_cutoff refers to another value"),
        ("adaptive_softmax_cutoff", "'1,2'", "adaptive_softmax_cutoff is code"),
        ("adaptive_softmax_cutoff", "{[]: 1}", "adaptive_softmax_cutoff is code"),
        ("adaptive_softmax_cutoff", COOKIE, "adaptive_softmax_cutoff is code"),
    ],
)
@pytest.mark.parametrize("place", ["cfg", "args"])
def test_an_option_is_what_stands_there(checkpoint, tmp_path, place, key, value, message):
    """Neither put together of others, nor of the environment, nor text that is decoded in its own way."""
    state = with_option(torch.load(checkpoint, weights_only=True), place, key, value)
    for model in (state["cfg"]["model"], state.get("args")):
        model = vars(model) if isinstance(model, Namespace) else model or {}
        model |= {"note": QUOTED, "x": "oc.env"}
    torch.save(state, tmp_path / "evil.pt")
    with pytest.raises(UsageError, match=f"evil.pt cannot be loaded: its option {message}") as error:
        checkpoint_utils.load_model_ensemble([str(tmp_path / "evil.pt")], task=tiny.make_task())
    one_sentence(error)


@pytest.mark.parametrize("value", [None, "None", 12, "12", "True", "(0.9, 0.98)", "[(256, 3)]", "{'name': 'linear'}"])
def test_options_that_are_plain_values_pass(value):
    loading.check_contents({"model": {"decoder_layers": value, "adam_betas": value}, "note": QUOTED})


def test_every_option_that_fairseq_evaluates_is_known():
    """What its models, modules, tasks, criteria, optimizers and data give to eval(), by its own source."""
    found, folder = set(), Path(fairseq.__file__).parent
    for part in ("models", "modules", "tasks", "criterions", "optim", "data", "distributed", "model_parallel"):
        for path in (folder / part).rglob("*.py"):
            for call in re.findall(r"(?<![.\w])(?:utils\.|options\.)?eval(?:_\w+)?\(\s*([\w.]+)", path.read_text()):
                found.add((call.split(".")[-1], path.name))
    others = {"self", "strip", "uf", "x"}  # of a command line, or of a data set for speech
    unknown = {(name, file) for name, file in found if name not in others and not name.endswith(loading.EVALUATED)}
    assert len(found) > 20 and not unknown


def test_every_flag_that_fairseq_evaluates_is_checked_in_the_configuration():
    flags = known_flags()["train"] | known_flags()["generate"]
    evaluated = {flag for flag in flags if flag.replace("-", "_").endswith(loading.EVALUATED)}
    numbers = {"encoder-layers", "decoder-layers", "cross-self-attention"}  # and a switch: by fairseq's parser
    pipeline = {flag for flag in evaluated if flag.startswith("pipeline-")}  # literals by fairseq's parser
    assert evaluated - numbers - pipeline == {flag for flag in flags if flag.endswith(EVALUATED)}
    for flag in ("adam-betas", "encoder-xformers-att-config"):
        with pytest.raises(UserError, match=f"mine.yaml: {flag}: fairseq would run"):
            check_flag("train", flag, CODE, "mine.yaml")
    check_flag("train", "adam-betas", "(0.9, 0.98)", "mine.yaml")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("adam-betas", "'${common.wandb_project}'", "refers to another value"),
        ("wandb-project", "${oc.env:HOME}", "refers to another value"),
        ("adam-betas", f'"{QUOTED}"', "fairseq would run"),
        ("adam-betas", "{[]: 1}", "fairseq would run"),
    ],
)
def test_a_flag_is_what_stands_there(flag, value, message):
    """fairseq resolves what refers to others after it has read its command line."""
    with pytest.raises(UserError, match=f"mine.yaml: .*{message}") as error:
        check_flag("train", flag, value, "mine.yaml")
    one_sentence(error)


def run_fairseq(*arguments) -> str:
    process = start(*arguments)
    output, _ = process.communicate()
    assert process.returncode != 0 and "Traceback" not in output
    return output.strip().splitlines()[-1]


def test_fairseq_generate_with_a_malicious_checkpoint(world, checkpoint, tmp_path):
    state = with_option(torch.load(checkpoint, weights_only=True), "cfg", "encoder_xformers_att_config", CODE)
    torch.save(state, tmp_path / "evil.pt")
    plugin = ("--user-dir", REPOSITORY / "fairseq_prefix", "--task", "conditional_generation")
    last = run_fairseq("generate", world / "bin", *plugin, "--path", tmp_path / "evil.pt", "--max-source-tokens", 50)
    assert last.startswith("error: ") and last.endswith("which fairseq would run")


@pytest.mark.parametrize("how", ["last", "restore"])
def test_fairseq_train_with_a_malicious_checkpoint(world, tmp_path, how):
    (tmp_path / "save").mkdir()
    path = tmp_path / ("save/checkpoint_last.pt" if how == "last" else "evil.pt")
    write({"model": Gadget(os.mkdir, str(tmp_path / "executed"))}, path, "zip")
    more = () if how == "last" else ("--restore-file", path)
    last = run_fairseq(*training(world, tmp_path / "save", *more))
    assert last == f"error: {path} cannot be loaded: it holds objects other than tensors, which are never loaded"


def test_packed_data_is_not_unpacked_into_memory(checkpoint, tmp_path):
    """200 MB of zeros in 200 kB."""
    torch.save({"model": {"x": torch.zeros(50_000_000)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    for read in (loading.load_tensors, lambda path: checkpoint_utils.load_checkpoint_to_cpu(str(path))):
        with pytest.raises(UsageError, match="bomb.pt cannot be loaded: it holds compressed data"):
            read(tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1).expand(10**12), torch.empty(10**12, device="meta"), torch.zeros(3).to_sparse()]
)
def test_a_tensor_is_not_larger_than_its_file(checkpoint, tmp_path, tensor):
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["prefix.x"] = tensor
    torch.save(state, tmp_path / "large.pt")
    for read in (read_tuned, checkpoint_utils.load_checkpoint_to_cpu):
        with pytest.raises(UsageError, match="its tensor prefix.x is not stored element by element"):
            read(str(tmp_path / "large.pt"))


# Bases ----------------------------------------------------------------------------------------------------------------


def base_with(world, folder, state=(), **options):
    """The base of `world` with other tensors, and with options of its own."""
    model = torch.load(world / "base" / "model.pt", weights_only=True)["model"] | dict(state)
    torch.save({"model": model, "args": Namespace(**options)}, folder / "model.pt")
    return folder


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("decoder_attention_heads", value) for value in ("x", 0, -1, 7, 2.0, True, [2], 10**30)),
        *(("encoder_attention_heads", 7), ("activation_fn", "nonsense"), ("activation_fn", ["gelu"])),
        *(("encoder_normalize_before", 1), ("no_scale_embedding", "yes")),
    ],
)
def test_what_a_base_says_of_itself_makes_a_model(world, tmp_path, option, value):
    options = {"decoder_attention_heads": 2, "encoder_attention_heads": 2, option: value}
    with pytest.raises(UsageError, match=f"its {option} is .*, which no BART can have") as error:
        api.load(base_with(world, tmp_path, **options))
    one_sentence(error)


@pytest.mark.parametrize(
    "state",
    [
        {f"decoder.layers.{layer}.x": torch.zeros(1) for layer in range(600)},
        {f"decoder.layers.{layer}.x": torch.zeros(1) for layer in range(60)},
        {"encoder.layers.0.fc1.weight": torch.zeros(100_000, 1)},
        {"decoder.embed_positions.weight": torch.zeros(100_000, 1)},
        {"decoder.embed_positions.weight": torch.zeros(2, 64)},
        {"encoder.embed_tokens.weight": torch.zeros(65, 10_000)},
    ],
    ids=["600 layers", "60 layers", "inner", "positions", "no positions", "width"],
)
def test_a_model_is_not_larger_than_its_base(world, tmp_path, state):
    """Layers that are a name alone took 1 MB each."""
    with pytest.raises(UsageError, match="model.pt does not hold what its names and shapes claim") as error:
        api.load(base_with(world, tmp_path, state, decoder_attention_heads=2, encoder_attention_heads=2))
    one_sentence(error)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.version", "decoder.absent_symbols"])
def test_a_tensor_that_is_a_number_is_one_sentence(tmp_path, name):
    family = "gpt2" if name == "decoder.absent_symbols" else "bart"
    folder = tiny.save_base(tmp_path / "base", arch=f"full_{family}_tiny")
    state = torch.load(folder / "model.pt", weights_only=True)
    state["model"][name] = torch.tensor(1)
    torch.save(state, folder / "model.pt")
    with pytest.raises(UsageError, match="model.pt: the weights are not those of a (BART|GPT-2)") as error:
        tiny.build(f"prefix_{family}_tiny", base_model=str(folder), prefix_length=1)
    one_sentence(error)


def test_tensors_that_share_a_storage_count_once(world, tmp_path):
    state = torch.load(world / "base" / "model.pt", weights_only=True)["model"]
    layers = {
        name.replace("layers.0", f"layers.{n}"): state[name] for name in state if "layers.0" in name for n in range(50)
    }
    with pytest.raises(UsageError, match="model.pt does not hold what its names and shapes claim"):
        api.load(base_with(world, tmp_path, layers))


# Exports --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(checkpoint, tmp_path, capsys):
    main(["export", str(checkpoint), "p.safetensors"])
    capsys.readouterr()
    return tmp_path / "p.safetensors"


def header_of(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def shifted(header, first, last):
    header["encoder"]["data_offsets"] = [first, last]


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: shifted(header, -8, 0),
        lambda header: shifted(header, 0, 10**15),
        lambda header: shifted(header, *header["decoder"]["data_offsets"]),
        lambda header: header["encoder"].update(shape=[2**40, 2**40]),
        lambda header: header["encoder"].update(dtype="F128"),
        lambda header: header.update({"../../executed": header.pop("encoder")}),
        lambda header: header.update(__metadata__={"fairseq_prefix": "["}),
        lambda header: header.pop("__metadata__"),
    ],
)
def test_a_malicious_export_is_one_sentence(exported, damage):
    header, tensors = header_of(exported)
    damage(header)
    text = json.dumps(header).encode()
    exported.write_bytes(struct.pack("<Q", len(text)) + text + tensors)
    with pytest.raises(UsageError) as error:
        main(["import", str(exported), "out.pt", "--base-model", "base"])
    assert "p.safetensors" in one_sentence(error)


@pytest.mark.parametrize("size", [2**63 - 1, 2**64 - 1, 10**9, 0])
def test_a_header_of_any_length_is_one_sentence(exported, size):
    exported.write_bytes(struct.pack("<Q", size) + exported.read_bytes()[8:])
    with pytest.raises(UsageError, match="is not an export of a prefix"):
        main(["inspect", str(exported)])


def metadata(change):
    return lambda parts: parts["prefix"].update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (metadata({"geometry": {"encoder": {"length": 10**9, "layers": 10**9, "heads": 9, "head_dim": 9}}}), "fit its"),
        (metadata({"geometry": {"../x": {"length": 1}}}), "not the metadata of this plugin"),
        (metadata({"base_fingerprint": "\x1b]0;owned\x07"}), "not the metadata of this plugin"),
        (metadata({"geometry": {}, "conventions": []}), "is damaged"),
        (
            lambda parts: parts["model_args"].update(arch="fconv"),
            "expected the options of a prefix's architecture, got 'fconv'",
        ),
        (
            lambda parts: parts["model_args"].update(arch="--user-dir=/x"),
            "expected the options of a prefix's architecture",
        ),
        (lambda parts: parts["model_args"].update(encoder_xformers_att_config=CODE), "is code"),
        (lambda parts: parts["task"].update(_name="--user-dir=/x"), "expected the options of a known task"),
        (
            lambda parts: parts["task"].update(max_source_tokens="$(mkdir executed)"),
            "expected numbers among the task's options",
        ),
    ],
)
def test_what_an_export_says_of_itself_is_not_believed(exported, change, message):
    header, _ = header_of(exported)
    parts = json.loads(header["__metadata__"][EXPORT_KEY])
    change(parts)
    save_file(load_file(exported), exported, {EXPORT_KEY: json.dumps(parts)})
    with pytest.raises(UsageError, match=message) as error:
        main(["import", str(exported), "out.pt", "--base-model", "base"])
    one_sentence(error)


def test_names_in_an_export_are_no_paths(exported, tmp_path):
    tensors = load_file(exported)
    header, _ = header_of(exported)
    save_file({f"../{name}": tensor for name, tensor in tensors.items()}, exported, header["__metadata__"])
    with pytest.raises(UsageError, match="does not fit its metadata"):
        main(["export", str(exported), str(tmp_path / "again.safetensors")])
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


# Archives and compressed files ----------------------------------------------------------------------------------------


def member(name, kind=tarfile.REGTYPE, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "odd",
    [
        *(member(name) for name in ("../executed", "/tmp/executed", "a/../../executed")),
        *(member("model.pt", kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)),
        member("model.pt", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type}",
)
def test_an_archive_with_an_odd_member_is_refused_whole(tmp_path, odd):
    path = archive(tmp_path / "a.tar", [("a/dict.txt", b"x"), (odd, b"")], "w")
    with pytest.raises(UserError, match="lies outside|is a link or a device") as error:
        unpack(path, {"dict.txt": tmp_path / "out" / "dict.txt"}, 1 << 20)
    one_sentence(error)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tar", "out"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_bomb_stops_at_the_size_allowed(tmp_path, mode):
    path = archive(tmp_path / "bomb.tar", [("model.pt", bytes(20 << 20))], mode)
    assert path.stat().st_size < 40_000
    with pytest.raises(UserError, match="has 20971520 bytes, over 1048576 allowed"):
        unpack(path, {"model.pt": tmp_path / "out" / "model.pt"}, 1 << 20)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_size_that_is_only_declared_is_damage(tmp_path):
    path = archive(tmp_path / "a.tar", [("model.pt", b"x" * 100)], "w")
    with tarfile.open(path) as tar:
        info = tar.next()
    info.size = 8 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + path.read_bytes()[512:])
    with pytest.raises(UserError, match="truncated or damaged archive"):
        unpack(path, {"model.pt": tmp_path / "out" / "model.pt"}, 64 << 30)
    assert list((tmp_path / "out").iterdir()) == []


def test_damage_that_only_bz2_notices_is_one_sentence(tmp_path):
    path = archive(tmp_path / "a.tar.bz2", [("model.pt", os.urandom(3000))], "w:bz2")
    data = bytearray(path.read_bytes())
    data[30:50] = b"\0" * 20
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or damaged archive") as error, open_tar(path) as members:
        list(members)
    one_sentence(error)


def described(kind: bytes, text: bytes, size: int | None = None) -> bytes:
    """What stands before a member in an archive to say more of it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(text) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + text + bytes(-len(text) % 512)


def sparse(**fields) -> bytes:
    info = member("test.xml")
    info.pax_headers = {f"GNU.sparse.{name}": value for name, value in fields.items()}
    return info.tobuf(tarfile.PAX_FORMAT)


def old_sparse() -> bytes:
    return member("test.xml", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (described(tarfile.GNUTYPE_LONGNAME, bytes(300_000)), "a member is described by 300000 bytes"),
        (described(tarfile.GNUTYPE_LONGLINK, b"x" * 300_000), "a member is described by 300000 bytes"),
        (described(tarfile.XHDTYPE, b"x" * 300_000), "a member is described by 300000 bytes"),
        (described(tarfile.XGLTYPE, b"x" * 300_000), "a member is described by 300000 bytes"),
        (described(tarfile.GNUTYPE_LONGNAME, b"x", size=-512), "a member is described by -512 bytes"),
        (described(tarfile.GNUTYPE_LONGNAME, b"x") * 900, "maximum recursion depth"),
        (described(tarfile.XHDTYPE, b"17 hdrcharset=\xff\n"), "invalid start byte"),
        (sparse(map="x,y"), "a member is a sparse file"),
        (sparse(size="z"), "a member is a sparse file"),
        (sparse(major="1", minor="0"), "a member is a sparse file"),
        (sparse(map="0,1", realsize=str(8 << 30)), "a member is a sparse file"),
        (old_sparse(), "a member is a sparse file"),
        (sparse(realsize="z"), "invalid literal"),
    ],
)
def test_what_an_archive_says_of_a_member_is_short_and_sound(tmp_path, head, message):
    data = ENTRY.format("text").encode()
    path = archive(tmp_path / "a.tar", [("test.xml", data)], "w")
    path.write_bytes(head + path.read_bytes())
    for read in (
        lambda: unpack(path, {"test.xml": tmp_path / "out"}, 1 << 20),
        lambda: list(READERS["webnlg"]({"test": path}, {})["test"]),
    ):
        with pytest.raises(UserError, match=f"truncated or damaged archive .*{message}") as error:
            read()
        one_sentence(error)


def test_long_names_and_attributes_of_a_member_are_no_damage(tmp_path):
    info = member(f"{'folder/' * 50}test.xml")
    info.pax_headers = {"SCHILY.xattr.user.note": "x" * 70_000}
    path = archive(tmp_path / "a.tar.gz", [(info, b"<x/>")])
    with open_tar(path) as members:
        assert [(name, file.read()) for name, _, file in members] == [(info.name, b"<x/>")]


def test_the_members_of_an_archive_are_not_remembered(tmp_path):
    """Nor what is said of all of them, which each may add to."""
    path = archive(tmp_path / "a.tar", [("x", b"")], "w")
    one = path.read_bytes()[:512]
    path.write_bytes(b"".join(described(tarfile.XGLTYPE, b"13 a%06d=x\n" % number) + one for number in range(2000)))
    tracemalloc.start()
    with open_tar(path) as members:
        assert sum(1 for _ in members) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20  # that of tarfile is 58 MB


# XML, JSON, YAML ------------------------------------------------------------------------------------------------------

ENTRY = (
    "<benchmark><entries><entry eid='1'><mtriple>a | b | {0}</mtriple><lex comment='good'>{0}</lex></entry></entries>"
    "</benchmark>"
)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY x "&b;&b;&b;">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd">',
        '<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>',
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_entities_in_xml_are_refused(tmp_path, doctype, packed):
    data = f"<?xml version='1.0'?>{doctype}{ENTRY.format('&x;')}".encode()
    path = tmp_path / "test.xml"
    path.write_bytes(data)
    if packed:
        path = archive(tmp_path / "test.tar.gz", [("a/test.xml", data)])
    with pytest.raises(UserError, match="declares a DOCTYPE or entities") as error:
        list(READERS["webnlg"]({"test": path}, {})["test"])
    one_sentence(error)


BILLION = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(12))


@pytest.mark.parametrize("kind", ["tasks", "models", "methods", "studies"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reader: !!python/object/apply:os.mkdir [executed]\n", "not valid YAML"),
        ("reader: !!python/name:os.system\n", "not valid YAML"),
        ("reader: !!python/object/new:type {args: [x], kwds: {}}\n", "not valid YAML"),
        (f"a0: &a0 [x]\n{BILLION}", "aliases .* resolved; 100,000 are allowed"),
        (
            "__use_yte__: true\n__definitions__: [\"__import__('os').mkdir('executed')\"]\n",
            "unknown key|expected|missing",
        ),
        ("reader: &a [*a]\n", "values within values, deeper than 50"),
        ("reader: " + "[" * 5000, "nested deeper than 50"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("? [a]\n: b\n", "not valid YAML"),
        ("x: 2026-99-99\n", "not valid YAML"),
    ],
)
def test_a_preset_is_plain_values(tmp_path, kind, text, message):
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "evil.yaml").write_text(text)
    values = {"tasks": ["e2e"], "models": ["bart_large"], "methods": ["prefix"], "seeds": [1], kind: ["evil"]}
    with pytest.raises(UserError, match=f"configs/{kind}/evil.yaml.*{message}") as error:
        Configuration(values, "mine.yaml", [tmp_path, REPOSITORY / "configs"])
    assert len(one_sentence(error)) < 1000


def test_an_overlay_of_aliases_does_not_swell(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"a0: &a0 [x]\n{BILLION}")
    with pytest.raises(UserError, match="mine.yaml: stands for 2,345,679,012,345 values"):
        check(load_yaml(tmp_path / "mine.yaml"), "config", "mine.yaml")


@pytest.mark.parametrize(
    "row",
    ['{"source": "a\\ud800", "target": "b"}', '{"source": "a", "target": ["b", "\\udfff"]}']
    + ['{"source": ' + "[" * 9000 + "]" * 9000 + "}", '{"source": "a", "target": "b", "id": ' + "9" * 5000 + "}"]
    + ['{"source": "a", "source": 1, "target": "b"}', '{"source": "a", "target": NaN}'],
)
def test_odd_json_is_one_sentence(tmp_path, row):
    (tmp_path / "t.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match="t.jsonl, line 1") as error:
        prepare("jsonl", {"train": tmp_path / "t.jsonl"}, {"id": "id"} if '"id"' in row else {}, tmp_path / "out")
    one_sentence(error)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("more", [0, 1])
def test_a_line_that_does_not_end_is_not_read(tmp_path, monkeypatch, more):
    """Neither of a compressed file, where it takes no room, nor of an archive's member."""
    monkeypatch.setattr(common, "LONGEST_LINE", 1 << 20)
    data = b'{}\n{"x": "%s"}\n{}\n' % (b"a" * ((1 << 20) - 10 + more))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(data))
    path = archive(tmp_path / "a.tar.gz", [("t.txt", data)])
    for lines, name in ((read_jsonl(tmp_path / "t.jsonl.gz"), "t.jsonl.gz"), (paragraphs([path]), "a.tar.gz: t.txt")):
        if more:
            with pytest.raises(UserError, match=f"{name}, line 2: longer than 1 MiB"):
                list(lines)
        else:
            assert len(list(lines)) == 3


# The shell ------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "; mkdir executed; $(mkdir executed) `mkdir executed` | mkdir executed && mkdir executed\nmkdir executed\n",
    "'; mkdir executed; '",
    '"; mkdir executed; "',
    "-x {input} ~/x --output=executed",
]


def write_presets(folder: Path, text: str) -> None:
    """A task whose every free text is hostile, and a configuration of it."""
    kept = re.sub(r"[\s'\"]", "", text) or "x"
    task = {
        "reader": "jsonl",
        "options": {"source": text, "target": [text]},
        "inputs": {"train": {"file": "t.jsonl", "url": f"https://127.0.0.1/{kept}"}, "valid": {"file": "v.jsonl"}},
        "metrics": {"bleu": {"tokenize": "13a"}, "rouge": {}},
        "train": {"wandb-project": text, "max-update": 1},
        "generate": {"beam": 1, "eos-token": text},
    }
    path = re.sub(r"[\x00-\x1f'\"`$\\{}*?]", "_", text).lstrip("-")
    task["inputs"]["test"] = {"path": f"data/{path}.jsonl"}
    (folder / "configs" / "tasks").mkdir(parents=True)
    (folder / "configs" / "tasks" / "evil.yaml").write_text(yaml.safe_dump(task))
    config = {"tasks": ["evil"], "models": ["demo_bart"], "methods": ["prefix"], "seeds": [1], "mirror": [f"m/{path}"]}
    (folder / "configs" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "data" / f"{path}.jsonl").parent.mkdir(parents=True)
    (folder / "data" / f"{path}.jsonl").write_text("")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_of_a_configuration_reaches_the_shell_as_code(tmp_path, text):
    """Every command of the plan is run with programs that do nothing."""
    write_presets(tmp_path, text)
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "1"]
    plan = subprocess.run(
        [*snakemake, "-n", "--printshellcmds", "--forceall", "--quiet", "host"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert plan.returncode == 0, plan.stderr
    commands = re.findall(r"Shell command: (.*?)\n(?=\n|\[|Would |Job stats)", plan.stdout + plan.stderr, re.DOTALL)
    assert len(commands) > 12 and any("fetch.py" in command for command in commands)
    programs = "python() { :; }; tee() { :; }; cp() { :; }; ln() { :; }; export -f python tee cp ln\n"
    programs += 'logged() { shift; "$@"; }\n'
    for command in (command for command in commands if command != "None"):  # of the target itself
        run = subprocess.run(["bash", "-c", f"{programs}mkdir -p logs; {command}"], cwd=tmp_path, capture_output=True)
        assert run.returncode in (0, 1), run.stderr  # 1: a log's folder is not there
        assert not (tmp_path / "executed").exists(), command


@pytest.mark.parametrize("name", ["../x", "a/b", "-x", "a b", "x;y", "$x", "x\n", "", ".", "a..b/..", "x" * 5 + "\0"])
@pytest.mark.parametrize("kind", ["tasks", "models", "methods", "studies"])
def test_a_name_is_no_path_and_no_option(kind, name):
    values = {"tasks": ["e2e"], "models": ["bart_large"], "methods": ["prefix"], "seeds": [1], kind: [name]}
    with pytest.raises(UserError, match=f"mine.yaml: {kind}") as error:
        Configuration(values, "mine.yaml", [REPOSITORY / "configs"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["../x", "/etc/x", "a/../../x", "-x", "a//b", ".x", "a\n", "a b", "$x"])
def test_a_download_stays_below_its_folder(file):
    change = {"tasks": {"e2e": {"inputs": {"train": {"file": file, "url": "https://127.0.0.1/x"}}}}}
    values = {"tasks": ["e2e"], "models": ["bart_large"], "methods": ["prefix"], "seeds": [1], "overrides": change}
    with pytest.raises(UserError, match="inputs: train: file: expected a name made of letters"):
        Configuration(values, "mine.yaml", [REPOSITORY / "configs"])


@pytest.mark.parametrize("path", ["-t", "--target-directory=x", "a\n", "$(x)", "`x`", "a'b", "x{y}", "*"])
def test_a_path_is_no_option_and_no_pattern(path):
    change = {"tasks": {"e2e": {"inputs": {"train": {"path": path}}}}}
    values = {"tasks": ["e2e"], "models": ["bart_large"], "methods": ["prefix"], "seeds": [1], "overrides": change}
    with pytest.raises(UserError, match="inputs: train: path: expected a path without"):
        Configuration(values, "mine.yaml", [REPOSITORY / "configs"])


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:x", "https://a b", "https://a\n"]
)
def test_an_address_is_one_of_the_web(url):
    change = {"tasks": {"e2e": {"inputs": {"train": {"file": "x", "url": url}}}}}
    values = {"tasks": ["e2e"], "models": ["bart_large"], "methods": ["prefix"], "seeds": [1], "overrides": change}
    with pytest.raises(UserError, match="url: expected an http or https address"):
        Configuration(values, "mine.yaml", [REPOSITORY / "configs"])


# What is shown --------------------------------------------------------------------------------------------------------

SCRIPT = "<script>alert('x')</script>"


def test_the_report_escapes_what_it_shows(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "toy.svg").write_text('<?xml version="1.0"?>\n<svg id="a"><use href="#a"/></svg>')
    (folder / "toy.txt").write_text(f"a table with {SCRIPT}\n")
    (folder / "toy.tsv").write_text(f"run\n{tmp_path}\n{SCRIPT}\n")
    record = {"arch": SCRIPT, "seed": SCRIPT, "flags": [SCRIPT], "versions": {SCRIPT: SCRIPT}}
    (tmp_path / "run.json").write_text(json.dumps({**record, "data_sha256": {SCRIPT: SCRIPT}}))
    study = dict.fromkeys(("title", "question", "paper"), SCRIPT)
    studies = json.dumps({"study": study, f"x'>{SCRIPT}": study})
    report.main(["--studies", studies, "--table", str(folder / "toy.txt"), "--output", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") > 10
    assert "<h2 id='x'>" not in page


@pytest.mark.parametrize(
    "svg",
    ["<svg><script>alert(1)</script></svg>", '<svg onload="alert(1)"/>', '<svg><a href="javascript:x"/></svg>', "no"],
)
def test_the_report_takes_no_plot_with_a_program_in_it(tmp_path, svg):
    (tmp_path / "toy.svg").write_text(svg)
    (tmp_path / "toy.txt").write_text("")
    (tmp_path / "toy.tsv").write_text("run\n")
    with pytest.raises(UserError, match="toy.svg: not a plot of study.py's"):
        report.section(tmp_path / "toy.txt", tmp_path / "report.html")


def test_hypotheses_do_not_steer_the_terminal(tmp_path, write_jsonl):
    run = tmp_path / "runs" / "toy" / "bart" / "prefix" / "1"
    run.mkdir(parents=True)
    write_jsonl("t.jsonl", [{"id": "1\x1b[2J", "source": "s\x9b2J", "references": ["r\x07"], "group": None}])
    (run / "rouge.json").write_text(json.dumps(recorded({"rouge1": 1.0})))
    counts = dict.fromkeys(("trained_parameters", "stored_parameters", "base_parameters"), 1)
    (run / "run.json").write_text(json.dumps(counts))
    (run / "hypotheses.txt").write_text("\x1b]0;owned\x07 the end\n")
    options = ["--task", "toy", "--metric", "rouge", "--run", str(run), "--examples", str(tmp_path / "t.jsonl")]
    table.main([*options, "--output", str(tmp_path / "t.txt")])
    text = (tmp_path / "t.txt").read_text()
    assert "\\x1b]0;owned\\x07 the end" in text and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


def test_messages_do_not_steer_the_terminal(monkeypatch):
    def fail(_):
        raise UserError("a\x1b[2Jb")

    with pytest.raises(SystemExit) as error:
        run_main(fail)
    assert error.value.code == "error: a\\x1b[2Jb"
    assert str(UsageError("a\x1b[2Jb\n")) == "a\\x1b[2Jb\\n"


def test_inspect_does_not_steer_the_terminal(exported, capsys):
    header, _ = header_of(exported)
    parts = json.loads(header["__metadata__"][EXPORT_KEY])
    parts["prefix"]["note\x1b[2J"] = "\x1b]0;owned\x07"
    save_file(load_file(exported), exported, {EXPORT_KEY: json.dumps(parts)})
    main(["inspect", str(exported)])
    assert "\x1b" not in capsys.readouterr().out


def test_options_whose_names_are_no_text_are_refused_in_a_sentence(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["cfg"]["model"] = {**vars(state["cfg"]["model"]), 7: 1}
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(UsageError, match="c.pt: expected the options of a prefix's architecture"):
        write_export(read_tuned(str(tmp_path / "c.pt")), str(tmp_path / "p.safetensors"))


def test_inspect_shows_no_tensors_among_the_options(checkpoint, world, tmp_path, capsys):
    state = torch.load(checkpoint, weights_only=True)
    state["optimizer_history"] = [{"num_updates": torch.zeros(2)}]
    torch.save(state, tmp_path / "c.pt")
    main(["inspect", str(tmp_path / "c.pt"), "--json"])
    assert "updates" not in json.loads(capsys.readouterr().out)
    main(["inspect", str(base_with(world, tmp_path, arch=[torch.zeros(2)]) / "model.pt"), "--json"])
    assert json.loads(capsys.readouterr().out)["arch"] is None


# Lock files -----------------------------------------------------------------------------------------------------------


def entries(path: Path) -> list[str]:
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("requirements*.lock")), ids=lambda path: path.name)
def test_every_locked_version_has_hashes(path):
    assert len(entries(path)) == len({entry.split("==")[0] for entry in entries(path)}) > 0
    for entry in entries(path):
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( +--hash=sha256:[0-9a-f]{64})+", entry), entry


def test_set_up_installs_nothing_without_its_hash():
    """Every call of pip but the one for the project itself, which fetches nothing."""
    text = (REPOSITORY / "workflow" / "setup.sh").read_text()
    calls = re.findall(r"^ *(?:try_locked|pip_install|.*-m pip install).*$", text, re.MULTILINE)
    free = [call.strip() for call in calls if "try_locked" not in call and "--require-hashes" not in call]
    assert 'pip_install --require-hashes --requirement "$@"' in text
    assert [call.split()[0] for call in free] == ["pip_install()", '"$venv/bin/python"', "pip_install"]
    assert free[2].startswith("pip_install --no-index --editable .")


def test_set_up_splits_the_lock_file_into_all_its_entries(tmp_path):
    """By the function of setup.sh itself: fairseq, which is compiled, apart from the others."""
    text = (REPOSITORY / "workflow" / "setup.sh").read_text()
    function = text[text.index("entries() {") : text.index("\n}\n", text.index("entries() {")) + 3]
    parts = []
    for wanted in (0, 1):
        script = f"set -eu; venv={tmp_path}\n{function}\ncat $(entries {wanted} fairseq-fixed)"
        run = subprocess.run(["sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        (tmp_path / f"{wanted}.lock").write_text(run.stdout)
        parts.append(entries(tmp_path / f"{wanted}.lock"))
    assert [entry.split("==")[0] for entry in parts[1]] == ["fairseq-fixed"]
    assert sorted(parts[0] + parts[1]) == sorted(entries(REPOSITORY / "requirements.lock"))
