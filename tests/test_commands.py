"""How commands end because of a mistake, and what an application sees of it."""

import os
import pickle
import re
import subprocess
import sys

import pytest
import test_training
import torch
from conftest import REPOSITORY
from fairseq.trainer import Trainer

from fairseq_prefix.errors import UsageError, ending_with_a_sentence

pytestmark = pytest.mark.usefixtures("hooks")
PLUGIN = ("--user-dir", str(REPOSITORY / "fairseq_prefix"))
MISTAKE = UsageError("--beam is 0;\nexpected 1 or more")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return test_training.make_world(tmp_path_factory.mktemp("world"), "full_bart_tiny")


def test_an_application_catches_a_mistake_as_any_other_error():
    assert isinstance(MISTAKE, ValueError) and not isinstance(MISTAKE, SystemExit)
    assert str(pickle.loads(pickle.dumps(MISTAKE))) == str(MISTAKE) == "--beam is 0;\\nexpected 1 or more"


def wrapped():
    """As fairseq's trainer does it for what goes wrong with a checkpoint."""
    try:
        raise MISTAKE
    except UsageError:
        raise Exception("Cannot load model parameters")  # noqa: B904


def of_another_process():
    """As torch reports what went wrong in one of the processes that it started."""
    text = "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  File ...\n"
    error = f"{text}fairseq_prefix.errors.UsageError: {MISTAKE}\n\nDuring handling of ...\n\nException: Cannot load\n"
    raise torch.multiprocessing.ProcessRaisedException(error, 1, 2)


def alone():
    raise MISTAKE


@pytest.mark.parametrize("fail", [alone, wrapped, of_another_process])
def test_a_command_ends_with_the_sentence_whatever_wraps_it(fail):
    with pytest.raises(SystemExit) as ended, ending_with_a_sentence():
        fail()
    assert ended.value.code == "error: --beam is 0;\\nexpected 1 or more"


@pytest.mark.parametrize("error", [ValueError("UsageError: of something else"), KeyboardInterrupt(), SystemExit(143)])
def test_a_command_passes_other_errors_on(error):
    with pytest.raises(type(error)) as found, ending_with_a_sentence():
        raise error
    assert found.value is error


def test_an_error_after_a_mistake_that_was_dealt_with_is_its_own():
    error = KeyError("bug")
    with pytest.raises(KeyError) as found, ending_with_a_sentence():
        try:
            raise MISTAKE
        except UsageError:
            raise error from None
    assert found.value is error


def test_a_training_step_that_refuses_an_option_writes_no_crash_pt():
    """Nor does fairseq's trainer ask for its state, which this one does not have."""
    try:
        raise MISTAKE
    except UsageError:
        Trainer.save_checkpoint(None, "crash.pt", {})
        with pytest.raises(AttributeError):
            Trainer.save_checkpoint(None, "checkpoint_last.pt", {})
    try:
        raise ValueError
    except ValueError:
        with pytest.raises(AttributeError):
            Trainer.save_checkpoint(None, "crash.pt", {})


# fairseq's own commands; for `train` and `generate` see also test_training.py and test_safety.py ----------------------


def ended(*command):
    """(exit status, all output)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def is_one_sentence(output, message):
    errors = [line for line in output.splitlines() if re.match(r"(\w+\.)*error: ", line, re.IGNORECASE)]
    return len(errors) == 1 and re.search(message, errors[0]) and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("command", ["interactive", "validate", "eval_lm"])
def test_commands_that_use_a_checkpoint_end_with_one_sentence(world, tmp_path, command):
    (tmp_path / "evil.pt").write_bytes(b"no")
    task = ("--task", "conditional_generation", "--batch-size", 1, "--path", tmp_path / "evil.pt", world / "bin")
    status, output = ended("-m", f"fairseq_cli.{command}", *PLUGIN, *task)
    assert status == 1 and is_one_sentence(output, "evil.pt cannot be loaded"), output


@pytest.mark.slow
def test_hydra_train_ends_with_one_sentence(world, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "# @package _group_\n"
        f"common: {{user_dir: {REPOSITORY}/fairseq_prefix, cpu: true}}\n"
        f"task: {{_name: conditional_lm, data: {world}/nowhere}}\n"
        "dataset: {batch_size: 8}\ncriterion: cross_entropy\noptimizer: adam\nlr_scheduler: fixed\n"
        "model: {_name: prefix_gpt2_tiny, arch: prefix_gpt2_tiny}\n"
    )
    options = ("--config-dir", tmp_path, "--config-name", "c", f"hydra.run.dir={tmp_path}/run")
    status, output = ended("-m", "fairseq_cli.hydra_train", *options)
    assert status == 1 and is_one_sentence(output, "nowhere/dict.source.txt: no such file"), output


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "checkpoint"])
def test_a_mistake_in_processes_that_fairseq_starts_is_one_sentence(world, tmp_path, where):
    """One for each GPU, of which two are pretended here."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\nfrom fairseq_cli.train import cli_main\n"
        "torch.cuda.device_count = lambda: 2\n"
        "if __name__ == '__main__':\n    cli_main()\n"
    )
    more = ("--arch", "transformer_tiny") if where == "step" else ("--restore-file", tmp_path / "p.safetensors")
    (tmp_path / "p.safetensors").write_bytes(b"no")
    _, *arguments = test_training.training(world, tmp_path / "save", *more)
    if where == "step":
        arguments = [str(argument) for argument in arguments]
        for option in ("--base-model", "--prefix-length", "--prefix-mid-dim", "--prefix-dropout"):
            del arguments[arguments.index(option) : arguments.index(option) + 2]
    arguments += [
        "--cpu",
        "--distributed-world-size",
        2,
        "--distributed-backend",
        "gloo",
        "--ddp-backend",
        "legacy_ddp",
    ]
    arguments += ["--distributed-init-method", f"file://{tmp_path}/meeting"]
    status, output = ended(program, *arguments)
    message = "needs a model that declares" if where == "step" else "p.safetensors"
    assert status == 1 and is_one_sentence(output, message), output
    assert not (tmp_path / "save" / "crash.pt").exists()
