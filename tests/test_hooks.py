"""Importing the plugin leaves fairseq as it is; its commands, by `--user-dir`, and `install()` change it."""

import subprocess
import sys

import pytest
import tiny
from conftest import REPOSITORY

from fairseq_prefix.files import checkpoint as files

STATE = """
import os, signal, sys, torch
from argparse import Namespace
from fairseq import checkpoint_utils, hub_utils, trainer, utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.models import ema
from fairseq.tasks import FairseqTask
from hydra.core.utils import JobReturn
import fairseq_cli.generate, fairseq_cli.hydra_train, fairseq_cli.train

def state():
    "All that is defined in what the hooks change."
    owners = (checkpoint_utils, distributed_utils, hub_utils, hub_utils.GeneratorHubInterface, trainer.Trainer)
    owners += (ema.EMA, FairseqTask, PathManager, JobReturn, fairseq_cli.generate, fairseq_cli.train)
    found = {(owner.__name__, name): value for owner in owners for name, value in vars(owner).items()}
    found["signals"] = {number: signal.getsignal(number) for number in signal.valid_signals()}
    found["trusted"] = Namespace in torch.serialization.get_safe_globals()
    found["environment"] = {name: value for name, value in os.environ.items() if name.startswith("TORCH_")}
    return found

def changed(before):
    "The names of the functions that are no longer the same."
    after = state()
    return {name[1] if isinstance(name, tuple) else name for name in after if after[name] != before.get(name)}

before = state()
"""
HOOKS = {
    *("load_checkpoint_to_cpu", "_upgrade_state_dict", "load_model_ensemble_and_task", "load_checkpoint"),
    *("save_checkpoint", "copy", "__init__", "restore", "get_batch_iterator", "call_main", "main", "return_value"),
}


def run_python(*lines: str) -> str:
    """Run a program in a process of its own, which knows all of fairseq that may be changed; return its output."""
    command = [sys.executable, "-c", STATE + "\n".join(lines)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """(folder of a tiny base, checkpoint of a prefix over it)."""
    folder = tmp_path_factory.mktemp("prefix")
    base = str(tiny.save_base(folder / "base", scale=0.1))
    args = tiny.make_args("prefix_bart_tiny", base_model=base, prefix_length=2, prefix_reparam="flat")
    state = tiny.make_task().build_model(args).state_dict()
    files.write_checkpoint(f"{folder}/p.pt", files.configuration(vars(args), {"max_source_tokens": 9}, base), state)
    return base, f"{folder}/p.pt"


def test_the_api_works_and_leaves_fairseq_as_it_is(prefix):
    base, checkpoint = prefix
    said = run_python(
        "import fairseq_prefix.api as api",
        "assert changed(before) == set(), changed(before)",
        "from unittest import mock",
        "from fairseq_prefix.files.subwords import Subwords",
        "with mock.patch.object(api, 'read_vocabulary', lambda _, dictionary, __: Subwords(None, dictionary)):",
        f"    model = api.load({base!r})",
        f"model.add('task', {checkpoint!r})",
        "print(len(model.generate(['w1 w2', 'w3'], 'task', beam=2, max_len_b=4)))",
        "assert changed(before) == set(), changed(before)",
    )
    assert said == "2\n"


def test_the_commands_of_the_plugin_work_without_changes(prefix, tmp_path):
    base, checkpoint = prefix
    commands = [["export", checkpoint, f"{tmp_path}/p.safetensors"], ["inspect", checkpoint]]
    commands += [["import", f"{tmp_path}/p.safetensors", f"{tmp_path}/i.pt", "--base-model", base]]
    run_python(
        "from fairseq_prefix.__main__ import main",
        *(f"main({arguments!r})" for arguments in commands),
        "assert changed(before) == set(), changed(before)",
    )
    assert (tmp_path / "i.pt").exists()


@pytest.mark.parametrize(
    "how",
    [
        f"utils.import_user_module(Namespace(user_dir={str(REPOSITORY / 'fairseq_prefix')!r}))",
        "import fairseq_prefix; fairseq_prefix.install()",
    ],
    ids=["user-dir", "install"],
)
def test_all_changes_are_installed_once(how):
    assert {*run_python(how, "print(*changed(before))").split()} == HOOKS
    twice = ("once = state()", "import fairseq_prefix", "fairseq_prefix.install()", "print(changed(once))")
    assert run_python(how, *twice) == "set()\n"
