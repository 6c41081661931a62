"""Trainings that are told to end: they save what they have, and go on to the parameters of an undisturbed one."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import test_training
import torch
from conftest import REPOSITORY, SCRIPTS
from test_training import command, start, training

PLUGIN = ("--user-dir", REPOSITORY / "fairseq_prefix")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return test_training.make_world(tmp_path_factory.mktemp("world"), "full_bart_tiny")


def interrupt_at(update, number, *arguments):
    """Start a training, send all its processes a signal when it logs this update; (exit status, updates saved)."""
    process, sent, saved = start(*arguments), False, None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not sent and re.search(rf"num_updates={update}\b", line):
            os.killpg(process.pid, number)
            sent = True
        if found := re.search(r"interrupted by \w+ after (\d+) updates", line):
            saved = int(found[1])
    process.wait()
    assert saved, "".join(lines)
    return process.returncode, saved


def assert_same(first, second):
    """The same parameters, state of the optimizer, position and best loss, bit for bit."""
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        one, two = (torch.load(folder / name, weights_only=False) for folder in (first, second))
        assert one["model"].keys() == two["model"].keys()
        for key, tensor in one["model"].items():
            assert torch.equal(two["model"][key], tensor), (name, key)
        states = [checkpoint["last_optimizer_state"]["state"] for checkpoint in (one, two)]
        for index, state in states[0].items():
            assert all(torch.equal(states[1][index][key], state[key]) for key in ("exp_avg", "exp_avg_sq"))
        for key in ("best", "train_iterator", "val_loss"):
            assert one["extra_state"].get(key) == two["extra_state"].get(key), (name, key)
        assert one["optimizer_history"][-1] == two["optimizer_history"][-1]


def full(*arguments):
    """The training of the whole model instead of a prefix."""
    arguments = list(arguments)
    for flag in ("--prefix-length", "--prefix-mid-dim", "--prefix-dropout"):
        del arguments[arguments.index(flag) : arguments.index(flag) + 2]
    return (*arguments, "--arch", "full_bart_tiny", "--num-workers", 0)


@pytest.mark.parametrize(
    ("trained", "signals"),
    [
        (lambda *arguments: (*arguments, "--num-workers", 2), [(4, signal.SIGTERM), (14, signal.SIGUSR1)]),
        pytest.param(full, [(14, signal.SIGTERM)], marks=pytest.mark.slow),
    ],
    ids=["prefix", "full"],
)
def test_an_interrupted_training_ends_with_the_same_bytes(world, tmp_path, trained, signals):
    """In its first epoch and in its second; processes that load data get the signals too."""
    command(*trained(*training(world, tmp_path / "undisturbed")))
    interrupted = trained(*training(world, tmp_path / "interrupted"))
    for update, number in signals:
        status, saved = interrupt_at(update, number, *interrupted)
        assert status == 128 + number and update < saved < update + 5 and saved % 2  # the others are saved anyway
        state = torch.load(tmp_path / "interrupted" / "checkpoint_last.pt", weights_only=False)["extra_state"]
        assert state["train_iterator"]["iterations_in_epoch"] == saved - 12 * (saved > 12)
    command(*interrupted)
    assert_same(tmp_path / "undisturbed", tmp_path / "interrupted")


@pytest.mark.slow
def test_a_language_model_goes_on_in_its_second_epoch(world, tmp_path):
    """fairseq's own task: the batches of a later epoch are those of an undisturbed training there too."""
    base = world / "base" / "dict.txt"
    texts = [part for split in ("train", "valid") for part in (f"--{split}pref", world / f"{split}.source")]
    command("preprocess", "--only-source", "--srcdict", base, *texts, "--destdir", tmp_path / "bin")

    def pretraining(folder):
        return (
            *("train", tmp_path / "bin", *PLUGIN, "--task", "language_modeling", "--arch", "full_gpt2_tiny"),
            *("--tokens-per-sample", 9, "--optimizer", "adam", "--lr", 1e-3),
            *("--batch-size", 12, "--max-update", 14, "--log-interval", 1, "--log-format", "simple"),
            *("--num-workers", 0, "--no-epoch-checkpoints", "--save-dir", tmp_path / folder),
        )

    command(*pretraining("undisturbed"))
    assert interrupt_at(10, signal.SIGTERM, *pretraining("interrupted"))[1] > 8
    command(*pretraining("interrupted"))
    assert_same(tmp_path / "undisturbed", tmp_path / "interrupted")


def test_processes_that_train_together_end_after_the_same_update(world, tmp_path):
    """The signal comes to one of them alone."""

    def together(folder, meeting, rank):
        return training(
            *(world, tmp_path / folder, "--num-workers", 0, "--cpu", "--distributed-world-size", 2),
            *("--distributed-init-method", f"file://{tmp_path / meeting}", "--distributed-backend", "gloo"),
            *("--ddp-backend", "legacy_ddp", "--distributed-no-spawn", "--distributed-rank", rank),
        )

    def run(folder, meeting, update=None):
        processes = [start(*together(folder, meeting, rank)) for rank in (0, 1)]
        lines = []
        for line in processes[0].stdout:
            lines.append(line)
            if update and re.search(rf"num_updates={update}\b", line):
                processes[1].send_signal(signal.SIGTERM)
        print(*lines, processes[1].stdout.read())
        return [process.wait() for process in processes]

    assert run("undisturbed", "first") == [0, 0]
    assert run("interrupted", "second", 8) == [143, 143]
    assert run("interrupted", "third") == [0, 0]
    assert_same(tmp_path / "undisturbed", tmp_path / "interrupted")


def test_who_starts_a_process_for_each_gpu_hands_the_signal_on(tmp_path):
    """fairseq's way of starting them, with a stand-in for what they do."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys, time, torch, fairseq_prefix\n"
        "from fairseq.distributed import utils\n"
        "def child(rank, folder):\n"
        "    signal.signal(signal.SIGTERM, lambda number, _: (open(f'{folder}/{rank}', 'w'), sys.exit(143)))\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.1)\n"
        "def call_main(cfg, main): torch.multiprocessing.spawn(child, (cfg,), nprocs=2)\n"
        "if __name__ == '__main__':\n"
        "    utils.call_main = call_main\n"
        "    fairseq_prefix.install()\n"
        "    utils.call_main(sys.argv[1], None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 143 and "Traceback" not in errors, errors
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()


# As the workflow trains -----------------------------------------------------------------------------------------------


def script(world, folder, *flags):
    own = ["--data", world / "bin", "--arch", "prefix_bart_tiny", "--base-model", world / "base"]
    own += ["--output", folder / "checkpoint.pt", "--run-json", folder / "run.json", "--log", folder / "train.log"]
    flags = [*training(world, "unused")[4:], *flags]
    at = flags.index("--save-dir")
    flags = [str(flag) for flag in [*flags[:at], *flags[at + 2 :]]]
    for flag in ("--arch", "--base-model"):
        del flags[flags.index(flag) : flags.index(flag) + 2]
    return [sys.executable, str(SCRIPTS / "train.py"), *map(str, own), "--", *flags]


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_script_says_what_it_saved_and_goes_on_from_there(world, tmp_path, number):
    """Here in forks of a warm process."""
    argv = script(world, tmp_path, "--num-workers", "2")
    os.mkfifo(tmp_path / "train.log")
    warm = [sys.executable, str(SCRIPTS / "warm.py"), "sh", "-c"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*warm, f"exec {shlex.join(argv)}"], env=environment, stderr=subprocess.PIPE, text=True)
    with open(tmp_path / "train.log") as log:
        for line in log:
            if '"num_updates": "15"' in line:
                process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    said = re.search(rf"^{signal.Signals(number).name}: interrupted after (\d+) of 20 updates; .*", errors, re.M)
    assert said and said[0].endswith("what was trained is saved, and the same command goes on from there")
    assert not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "run.json").exists()
    assert "Traceback" not in errors

    (tmp_path / "train.log").unlink()
    result = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first = int(re.search(r'"num_updates": "(\d+)"', (tmp_path / "train.log").read_text())[1])
    assert first == int(said[1]) + 1
    assert json.loads((tmp_path / "run.json").read_text())["trained_parameters"] > 0
