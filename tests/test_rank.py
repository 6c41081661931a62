"""One process of a training that several share: what it is told, and that all of them end where they should."""

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import SCRIPTS
from rank import distributed_flags
from test_training import training, world  # noqa: F401 -- a fixture

BY_TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
BY_SRUN = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize("started", [BY_TORCHRUN, BY_SRUN])
@pytest.mark.parametrize(("gpus", "device"), [(2, "1"), (1, "0")])
def test_a_process_knows_its_rank_and_its_gpu(started, gpus, device):
    """Also in a batch job, whose own numbers are others where torchrun starts the processes."""
    flags = distributed_flags(started | {"MASTER_ADDR": "node1", "MASTER_PORT": "1234"}, gpus)
    values = dict(zip(flags[::2], flags[1::2], strict=False))
    assert values["--distributed-rank"] == "3" and values["--distributed-world-size"] == "4"
    assert values["--distributed-init-method"] == "tcp://node1:1234"
    assert flags[flags.index("--device-id") + 1] == device and "--cpu" not in flags


def train(world, folder, *own, start=subprocess.run):  # noqa: F811
    """train.py, on the data and the base that the tests of fairseq-train have."""
    folder.mkdir(exist_ok=True)
    _, data, *flags = training(world, folder, "--max-update", 6)
    command = [sys.executable, SCRIPTS / "train.py", "--data", data, "--arch", "prefix_bart_tiny", "--base-model"]
    command += [world / "base", "--output", folder / "checkpoint.pt", "--run-json", folder / "run.json"]
    command += ["--log", folder / "train.log", *own, "--", *map(str, flags)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return start(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_are_started_counted_and_ended(world, tmp_path):  # noqa: F811
    """Through train.py and torchrun: both see half of each batch, and a checkpoint comes of it."""
    result = train(world, tmp_path / "two", "--gpus", "2")
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "two" / "train.log").read_text()
    assert "training on 2 devices (GPUs/TPUs)" in log
    assert json.loads((tmp_path / "two" / "run.json").read_text())["trained_parameters"]
    alone = train(world, tmp_path / "one")
    assert alone.returncode == 0 and "training on 1 devices" in (tmp_path / "one" / "train.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_two_processes_that_are_told_to_end_save_first(world, tmp_path, number):  # noqa: F811
    """Also when the signal comes to torchrun as well."""
    log = tmp_path / "two" / "train.log"
    log.parent.mkdir()
    os.mkfifo(log)
    process = train(world, tmp_path / "two", "--gpus", "2", start=subprocess.Popen)
    with open(log) as lines:
        for line in lines:
            if '"num_updates": "3"' in line:
                for told in [process, *psutil.Process(process.pid).children()]:
                    told.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert re.search(rf"{number.name}: interrupted after \d+ of 20 updates; what was trained is saved", errors), errors
    log.unlink()
    result = train(world, tmp_path / "two", "--gpus", "2")
    assert result.returncode == 0 and "going on from" in result.stderr


def test_a_process_that_fails_ends_the_others_with_its_sentence(world, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    result = train(world, tmp_path / "two", "--gpus", "2", "--base-model", tmp_path / "empty")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: fairseq_cli.train failed: {tmp_path}/empty: ")


def test_nodes_are_those_of_a_slurm_job(world, tmp_path):  # noqa: F811
    result = train(world, tmp_path / "two", "--nodes", "2")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: --nodes 2: this is no Slurm job")
