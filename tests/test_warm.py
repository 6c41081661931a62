"""Forks of a process that has fairseq loaded: the same bytes and the same errors as processes of their own."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import psutil
import pytest
import test_training
import torch
from conftest import SCRIPTS
from test_signal_handlers import ignored_in

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAINING = "--criterion prefix_cross_entropy --optimizer adam --lr 0.01 --dropout 0.1 --max-update 6 --batch-size 8"
TASK = "--task conditional_generation --max-source-tokens 50"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return test_training.make_world(tmp_path_factory.mktemp("world"), "full_bart_tiny")


def script(name: str, *arguments) -> str:
    return shlex.join([sys.executable, str(SCRIPTS / name), *map(str, arguments)])


def steps(world, folder) -> str:
    """Training, export, import and decoding as the rules call them, as one command of the shell."""
    train = script("train.py", "--data", world / "bin", "--arch", "prefix_bart_tiny", "--base-model", world / "base")
    (world / "test.jsonl").write_text("{}\n" * 21)
    generate = script("generate.py", "--data", world / "bin", "--examples", world / "test.jsonl")
    return " && ".join(
        [
            f"{train} --output {folder}/checkpoint.pt --run-json {folder}/run.json --log {folder}/train.log"
            f" -- {TRAINING} {TASK} --prefix-length 3 --prefix-mid-dim 16 --no-epoch-checkpoints",
            script("plugin.py", "export", folder / "checkpoint.pt", folder / "prefix.safetensors"),
            script(
                "plugin.py", "import", folder / "prefix.safetensors", folder / "i.pt", "--base-model", world / "base"
            ),
            f"{generate} --checkpoint {folder}/i.pt --base-model {world}/base --output {folder}/generate.txt"
            f" --log {folder}/generate.log -- {TASK} --beam 3 --max-len-b 10",
            script("plugin.py", "inspect", folder / "checkpoint.pt", "--json") + f" > {folder}/inspect.json",
        ]
    )


def run(command: str, warm: bool) -> subprocess.CompletedProcess:
    argv = [*([sys.executable, str(SCRIPTS / "warm.py")] if warm else []), "sh", "-c", command]
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True)


def test_forks_leave_the_same_bytes_as_processes_of_their_own(world, tmp_path):
    errors = {}
    for name in ("fresh", "warm"):
        (tmp_path / name).mkdir()
        result = run(steps(world, tmp_path / name), warm=name == "warm")
        assert result.returncode == 0, result.stderr
        errors[name] = result.stderr
    for name in ("generate.txt", "prefix.safetensors"):
        assert (tmp_path / "warm" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    fresh, warm = (json.loads((tmp_path / name / "inspect.json").read_text()) for name in ("fresh", "warm"))
    assert warm.pop("bytes") and fresh.pop("bytes") and warm == fresh  # a checkpoint holds how long it took
    assert warm["updates"] == 6
    fresh, warm = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=False) for name in ("fresh", "warm"))
    assert all(torch.equal(fresh["model"][name], warm["model"][name]) for name in fresh["model"])
    for name in ("fresh", "warm"):  # what the progress bar follows
        assert re.search(r"\| INFO \| train \| ", (tmp_path / name / "train.log").read_text())
        assert "6/6" in errors[name]
        assert 100 < json.loads((tmp_path / name / "run.json").read_text())["peak_mb"] < 10_000


def test_a_fork_is_really_used_and_others_are_not_in_its_way(tmp_path):
    """A fork is there in a fraction of the second that loading takes; without an address a process is started."""
    inspect = script("plugin.py", "inspect", tmp_path / "missing.pt")
    result = run(f"{inspect} & {inspect}; status=$?; wait; exit $status", warm=True)
    assert result.returncode == 1
    assert result.stderr.count("missing.pt: no such file") == 2
    pids = tmp_path / "pids"
    code = "import sys, warm; p = warm.start('fairseq_prefix.__main__', ['inspect', 'x'], sys.stderr); print(type(p))"
    result = run(f"cd {SCRIPTS} && {shlex.join([sys.executable, '-c', code])} > {pids}", warm=True)
    assert "warm.Fork" in pids.read_text()


def test_a_fork_ignores_the_signals_that_who_asked_for_it_ignores(tmp_path):
    """Not those of the warm process, which was started before `trap`."""
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "__init__.py").write_text("print(open('/proc/self/status').read(), flush=True)")
    code = (
        "import sys, warm; p = warm.start('fairseq_cli.train', ['.', '--user-dir', 'shown'], sys.stderr)\n"
        "print(type(p).__name__, p.stdout.read())"
    )
    shell = f"cd {tmp_path} && trap '' HUP && PYTHONPATH={SCRIPTS} {shlex.join([sys.executable, '-c', code])}"
    output = run(shell, warm=True).stdout
    assert "Fork " in output
    assert signal.SIGHUP in (ignored := ignored_in(output))
    assert ignored.isdisjoint({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})


def test_who_finds_nobody_there_starts_a_process(tmp_path):
    environment = {**ENVIRONMENT, "PREFIX_WARM": str(tmp_path / "nobody")}
    command = [sys.executable, str(SCRIPTS / "plugin.py"), "inspect", "missing.pt"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "missing.pt: no such file" in result.stderr


def test_the_status_of_the_command_is_its_own():
    assert run("exit 7", warm=True).returncode == 7


def test_a_training_that_is_told_to_end_ends_its_fork(world, tmp_path):
    command = steps(world, tmp_path).replace("--max-update 6", "--max-update 100000").partition(" && ")[0]
    argv = [sys.executable, str(SCRIPTS / "warm.py"), "sh", "-c", f"exec {command}"]
    log = tmp_path / "train.log"
    os.mkfifo(log)  # reading it waits for lines
    process = subprocess.Popen(argv, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    with open(log) as lines:
        assert any("train_inner" in line for line in lines)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        for _ in lines:
            pass
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
