"""A file, or a number, that was given where another one belongs: the sentence names what it is and what to do."""

import functools
import shutil
from argparse import Namespace

import methods
import pytest
import tiny
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig, DistributedTrainingConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from safetensors.torch import save_file

from fairseq_prefix.__main__ import main
from fairseq_prefix.errors import UsageError
from fairseq_prefix.files.checkpoint import configuration, write_checkpoint


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """name -> a file of that kind: of a BART and what was trained over it."""
    folder = tmp_path_factory.mktemp("files")
    base = tiny.save_base(folder / "base")
    args = tiny.make_args("prefix_bart_tiny", base_model=str(base), **methods.SMALL["prefix"])
    model = tiny.make_task().build_model(args)
    cfg = configuration(vars(args), {"max_source_tokens": 50}, str(base))
    write_checkpoint(folder / "prefix.pt", cfg, model.state_dict())
    main(["export", str(folder / "prefix.pt"), str(folder / "prefix.safetensors")])
    found = {name: folder / name for name in ("prefix.pt", "prefix.safetensors")}
    found |= {"base": base / "model.pt", "folder": base, "dictionary": base / "dict.txt", "cut": folder / "cut.pt"}
    found["cut"].write_bytes(found["prefix.pt"].read_bytes()[:2000])
    found["weights"] = shutil.copy(found["prefix.safetensors"], folder / "model.safetensors")
    save_file({"a": torch.zeros(1)}, found["weights"])
    return {name: str(path) for name, path in found.items()}


def refused(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


pytestmark = pytest.mark.usefixtures("hooks")
EXPORT = "prefix.safetensors cannot be loaded: it is an export; make a checkpoint of it with `python -m fairseq_prefix"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("prefix.safetensors", EXPORT),
        ("weights", "model.safetensors cannot be loaded: it is in the format of safetensors, expected a .pt file"),
        ("dictionary", "dict.txt cannot be loaded: it is a text file, expected a checkpoint"),
        ("folder", "base cannot be loaded: it is a folder, expected a checkpoint in it"),
        ("cut", "cut.pt cannot be loaded: it is truncated or not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(kinds, kind, message):
    """As --restore-file, --finetune-from-model or --path, which fairseq loads in one way."""
    with pytest.raises(UsageError) as error:
        checkpoint_utils.load_checkpoint_to_cpu(kinds[kind])
    assert message in refused(error)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("prefix.pt", "prefix.pt holds only a prefix; pass the base that it was trained over"),
        ("prefix.safetensors", EXPORT),
        ("weights", "of a Hugging Face base, pass the folder"),
        ("dictionary", "it is a text file"),
    ],
)
def test_what_is_no_base_is_named(kinds, kind, message):
    with pytest.raises(UsageError) as error:
        tiny.build("prefix_bart_tiny", base_model=kinds[kind], prefix_length=1)
    assert message in refused(error)


def test_checkpoints_that_cannot_be_loaded_for_a_search_are_named(kinds, tmp_path):
    """As --path, where fairseq raises errors of its own."""
    for path, options, message in (
        (str(tmp_path / "nofile.pt"), {}, "nofile.pt: no such file; expected a checkpoint"),
        (kinds["prefix.pt"], {"num_shards": 2, "strict": False}, "--checkpoint-shard-count 2 is not supported"),
        (
            kinds["base"],
            {},
            "model.pt cannot be loaded: it holds no options, as the checkpoint of a training does; is it a base",
        ),
    ):
        with pytest.raises(UsageError) as error:
            checkpoint_utils.load_model_ensemble([path], task=tiny.make_task(), **options)
        assert message in refused(error)
    (model,), _ = checkpoint_utils.load_model_ensemble([kinds["prefix.pt"]], task=tiny.make_task())
    assert model.declared_parameters


def test_fairseq_looks_for_checkpoints_first(kinds, tmp_path, monkeypatch):
    """It finds a part of a sharded one, and what its PathManager fetches; with other tasks than ours errors are its."""
    part = shutil.copy(kinds["prefix.pt"], tmp_path / "x-shard0.pt")
    load = functools.partial(checkpoint_utils.load_model_ensemble, task=tiny.make_task())
    assert load([str(tmp_path / "x.pt")])[0]
    fetched, copy = [], tmp_path / "copy.pt"
    copy.write_bytes(b"of an earlier time")

    def fetch(path):
        if path == "elsewhere://x.pt" and not copy.exists():
            fetched.append(shutil.copy(part, copy))
        return str(copy) if path == "elsewhere://x.pt" else path

    for name, replaced in (("exists", lambda path: path == "elsewhere://x.pt"), ("get_local_path", fetch)):
        monkeypatch.setattr(PathManager, name, staticmethod(replaced))
    monkeypatch.setattr(PathManager, "path_requires_pathmanager", staticmethod(lambda path: "://" in path))
    assert load(["elsewhere://x.pt"])[0] and fetched
    stock = TranslationTask(TranslationConfig(), tiny.dictionary(), tiny.dictionary())
    for options in ({}, {"num_shards": 2, "strict": False}):
        with pytest.raises(OSError, match="Model file not found"):
            checkpoint_utils.load_model_ensemble([str(tmp_path / "nofile.pt")], task=stock, **options)


def test_a_base_is_no_checkpoint_of_a_prefix_and_the_other_way_round(kinds):
    for command in (["export", kinds["base"], "x.safetensors"], ["import", kinds["base"], "x.pt", "--base-model", "x"]):
        with pytest.raises(UsageError, match="this one is a whole model: pass it as --base-model") as error:
            main(command)
        refused(error)
    whole = tiny.build("full_bart_tiny", base_model=kinds["folder"])
    state = torch.load(kinds["prefix.pt"], weights_only=True)["model"]
    with pytest.raises(UsageError, match="holds a prefix, but --arch full_bart_tiny expects a whole model") as error:
        whole.load_state_dict(state)
    refused(error)


def test_a_training_that_would_write_its_checkpoints_later_is_refused():
    """Without its library fairseq trains nothing and ends as if all were well; with it, checkpoint_last.pt may lack."""
    cfg = Namespace(checkpoint=CheckpointConfig(write_checkpoints_asynchronously=True))
    cfg.task, cfg.common = Namespace(_name="conditional_lm"), Namespace(tpu=False)
    with pytest.raises((UsageError, SystemExit), match="--write-checkpoints-asynchronously is not supported"):
        distributed_utils.call_main(cfg, None)
    cfg.task._name, cfg.distributed_training, ran = "translation", DistributedTrainingConfig(), []
    distributed_utils.call_main(cfg, ran.append)
    assert ran == [cfg], "what the plugin has no part in"


def test_a_whole_model_of_another_architecture_is_named(kinds, tmp_path):
    whole = tiny.build("full_bart_tiny", base_model=kinds["folder"])
    for other in (tiny.build("full_bart_tiny", encoder_ffn_embed_dim=64), tiny.build("full_gpt2_tiny")):
        with pytest.raises(UsageError, match="the checkpoint does not fit --arch full_bart_tiny: .*coder") as error:
            whole.load_state_dict(other.state_dict())
        refused(error)


@pytest.mark.parametrize(("method", "option"), [("prefix", "--prefix-length"), ("prompt", "--prompt-length")])
@pytest.mark.parametrize("length", [510, 511, 600])
def test_virtual_tokens_that_leave_no_positions_are_the_ones_blamed(tmp_path, method, option, length):
    base = tiny.save_base(tmp_path, arch="full_gpt2_tiny")
    lengths = {f"{method}_length": length, f"{method}_reparam": "flat"}
    args = tiny.make_args(f"{method}_gpt2_tiny", base_model=str(base), **lengths)
    with pytest.raises(UsageError, match=f"{option} {length} leaves no") as error:
        tiny.make_lm_task().build_model(args)
    assert "512 positions" in refused(error)
    assert not any(part.startswith("-") and part[1:].rstrip(",;.").isdigit() for part in refused(error).split())
