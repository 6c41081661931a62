"""The GPUs of one machine, shared out among jobs that know nothing of each other. No GPU is needed here."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import gpus
import pytest
from conftest import SCRIPTS
from gpus import own_gpus, reserve, visible_gpus

GPU = "GPU {}: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a7{})"
MIG = "  MIG 3g.20gb     Device  {}: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3{})"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_jobs_side_by_side_get_one_gpu_each_and_then_share_evenly(folder):
    jobs = [reserve(folder, ["0", "1", "2", "3"], 1) for _ in range(8)]
    assert [[*job] for job in jobs] == [["0"], ["1"], ["2"], ["3"]] * 2
    jobs[2]["2"].close()
    assert [*reserve(folder, ["0", "1", "2", "3"], 1)] == ["2"]


def test_a_job_of_several_gpus_gets_different_ones(folder):
    one = reserve(folder, ["0", "1", "2", "3"], 1)
    two = reserve(folder, ["0", "1", "2", "3"], 2)
    assert ([*one], [*two]) == (["0"], ["1", "2"])
    assert sorted(reserve(folder, ["0", "1", "2", "3"], 4)) == ["0", "1", "2", "3"]
    assert sorted(reserve(folder, ["0", "1"], 3)) == ["0", "1"]  # there are no more


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("2,3", ["2", "3"]),
        ("GPU-5d5b, MIG-GPU-1/0/0", ["GPU-5d5b", "MIG-GPU-1/0/0"]),
        ("1,-1,2", ["1", None]),  # CUDA reads as far as the first that is no GPU
        ("", [None, None]),
    ],
)
def test_the_gpus_that_a_user_has_chosen_are_the_ones_that_are_shared_out(monkeypatch, given, shown):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    seen = []
    with contextlib.ExitStack() as jobs:
        for _ in shown:
            with monkeypatch.context() as of_a_job:
                of_a_job.setenv("CUDA_VISIBLE_DEVICES", given)
                job = own_gpus(1)
                held = job.__enter__()
                seen.append(os.environ["CUDA_VISIBLE_DEVICES"] if held else None)
                jobs.push(job)
        if given == "1,-1,2":  # one GPU, which both have
            assert seen == ["1", "1"]
        else:
            assert seen == shown
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given


def test_all_gpus_of_the_machine_are_found(stand_in):
    stand_in("nvidia-smi", f"cat <<'E'\n{GPU.format(0, 0)}\n{GPU.format(1, 1)}\nE")
    assert visible_gpus() == ["0", "1"]
    with own_gpus(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_of_a_gpu_that_is_split_the_parts_are_shared_out(stand_in):
    stand_in(
        "nvidia-smi", f"cat <<'E'\n{GPU.format(0, 0)}\n{MIG.format(0, 0)}\n{MIG.format(1, 1)}\n{GPU.format(1, 1)}\nE"
    )
    assert visible_gpus() == [f"MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3{part}" for part in (0, 1)] + ["1"]


@pytest.mark.parametrize("failing", ["exit 9", "echo 'No devices were found'"])
def test_on_a_machine_without_gpus_nothing_is_set(stand_in, folder, failing):
    stand_in("nvidia-smi", failing)
    with own_gpus(1) as held:
        assert held == [] and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(folder.iterdir())


def test_in_a_batch_job_the_gpus_are_those_that_it_was_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for remote, expected in ((False, "0"), (True, "0,1")):
        gpus.leave_to_batch_system(SimpleNamespace(remote_exec=remote))
        with own_gpus(1):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_what_a_killed_job_had_is_free_again_when_its_child_has_ended_too(folder):
    child = "import sys; sys.stdin.read()"
    job = (
        "import gpus, subprocess, sys\nfrom pathlib import Path\n"
        "(file,) = gpus.reserve(Path(sys.argv[1]), ['0', '1'], 1).values()\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], pass_fds=[file.fileno()], stdout=subprocess.DEVNULL)\n"
        "print('reserved', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", job, folder], env=os.environ | {"PYTHONPATH": str(SCRIPTS)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "reserved\n"
    process.kill()
    process.wait()
    (other,) = (held := reserve(folder, ["0", "1"], 1))
    assert other == "1"  # the child has the first
    process.stdin.close()
    held["1"].close()
    with open(folder / "0.0") as file:
        gpus.fcntl.flock(file, gpus.fcntl.LOCK_EX)  # waits for the child to end
    assert [*reserve(folder, ["0", "1"], 1)] == ["0"]


def test_a_folder_of_another_user_is_not_used(folder, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (folder / f"fairseq-prefix-gpus-{os.getuid()}").symlink_to(folder)
    with own_gpus(1) as held:
        assert held == [] and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "it belongs to another user; the GPUs are not shared out" in capsys.readouterr().err
