"""Training and generation as the workflow runs them: stubs stand in for fairseq's commands (tests/stubs)."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import fairseq_command
import pytest
import record
import train
from common import UserError
from conftest import SCRIPTS, example
from test_signal_handlers import ignored_by

STUBS = Path(__file__).parent / "stubs"


REPLACING = {"PREFIX_REPLACE": "yes"}


@pytest.fixture
def run(tmp_path):
    """A function (flags, **environment) that trains in tmp_path; returns the completed process."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "train.source-target.source.bin").write_bytes(b"data")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.pt").write_bytes(b"weights")

    def start(*flags: str, output: str = "run", **environment: str) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPTS / "train.py"), "--data", "bin", "--arch", "prefix_bart_tiny"]
        command += ["--base-model", "base", "--seed", "3", "--output", f"{output}/checkpoint.pt"]
        command += ["--run-json", f"{output}/run.json", "--log", "train.log", "--", *flags]
        environment = {**os.environ, "PYTHONPATH": str(STUBS), **environment}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    def finish(*flags: str, **environment: str) -> subprocess.CompletedProcess:
        process = start(*flags, **environment)
        _, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, None, stderr)

    finish.start = start
    return finish


def checkpoint(folder: Path) -> dict:
    return json.loads((folder / "run" / "checkpoint.pt").read_text())


def test_a_training_leaves_its_checkpoint_and_its_record(run, tmp_path):
    assert run("--lr", "0.1", "--adam-betas", "(0.9, 0.999)").returncode == 0
    arguments = checkpoint(tmp_path)["arguments"]
    assert arguments[0] == "bin"
    for flag, value in (("--arch", "prefix_bart_tiny"), ("--seed", "3"), ("--lr", "0.1"), ("--base-model", "base")):
        assert arguments[arguments.index(flag) + 1] == value
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["flags"] == ["--lr", "0.1", "--adam-betas", "(0.9, 0.999)"]
    assert (record["trained_parameters"], record["stored_parameters"], record["base_parameters"]) == (50, 10, 1000)
    assert (
        record["seed"] == 3
        and record["versions"]["torch"]
        and set(record["data_sha256"])
        == {
            "base/model.pt",
            "bin/train.source-target.source.bin",
        }
    )
    names = [".trained", "checkpoint.pt", "curve.svg", "curve.tsv", "run.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names


def test_the_record_of_a_training_on_a_gpu_says_which_and_how_much_of_it(run, tmp_path):
    assert run(STUB_TRAIN="gpu").returncode == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["gpu"], record["gpus"], record["gpu_peak_gb"]) == ("NVIDIA H200", 1, 19.5)


def test_the_record_says_how_where_and_when_it_was_made(run, tmp_path):
    assert run("--lr", "0.1", "--adam-betas", "(0.9, 0.999)", OMP_NUM_THREADS="1").returncode == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["host"] == socket.gethostname() and record["threads"] == 1 and record["cpu"] and record["cpus"] >= 1
    begin, end = (datetime.fromisoformat(record[name]) for name in ("begin", "end"))
    assert begin.utcoffset() == timedelta(0) and timedelta(0) <= end - begin < timedelta(minutes=10)
    shutil.rmtree(tmp_path / "run")
    environment = {
        **os.environ,
        "PYTHONPATH": str(STUBS),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run(record["command"], shell=True, check=True, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"] == record["command"]


def test_the_record_names_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "PLUGIN", tmp_path / "fairseq_prefix")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    assert record.commit() is None
    git("init")
    (tmp_path / "file").write_text("as committed")
    git("add", ".")
    git("commit", "-m", "one")
    assert record.commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("changed")
    assert record.commit() == git("rev-parse", "HEAD") + "+changes"
    monkeypatch.setattr(record, "PLUGIN", tmp_path / "unpacked" / "fairseq_prefix")
    (tmp_path / "unpacked").mkdir()
    assert record.commit() is None  # the commit of a repository that it was unpacked in says nothing


def test_the_record_has_the_digest_of_every_file_that_a_training_reads(tmp_path):
    for name in ("dict.txt", "preprocess.log", "bin.lock", ".hidden", "deeper/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record.digests([tmp_path]) == {f"{tmp_path}/dict.txt": digest}
    with pytest.raises(UserError, match="none: no such folder"):
        record.digests([tmp_path, tmp_path / "none"])


def curve(folder: Path) -> list[list[str]]:
    """The rows of curve.tsv without the speed, which is never the same twice."""
    return [line.split("\t")[:-1] for line in (folder / "run" / "curve.tsv").read_text().splitlines()]


def test_the_curve_of_an_interrupted_training_is_that_of_an_undisturbed_one(run, tmp_path):
    assert run("--lr", "0.1", STUB_TRAIN="long").returncode == 0
    undisturbed = curve(tmp_path)
    assert undisturbed[0] == ["update", "epoch", "loss", "valid_loss", "lr", "gradient_norm"]
    assert undisturbed[3] == ["3", "1", "2.0", str(7 / 3), "0.1", ""] and len(undisturbed) == 1 + 6
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed_from"] == []
    shutil.rmtree(tmp_path / "run")
    assert run("--lr", "0.1", STUB_TRAIN="cut").returncode == 1
    (metrics,) = (tmp_path / "run").glob("work-*/metrics.jsonl")
    with open(metrics, "a") as file:
        file.write('\n{"update": 9, "lo')  # killed while it wrote a line
    assert run("--lr", "0.1", STUB_TRAIN="long").returncode == 0
    assert curve(tmp_path) == undisturbed
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (recorded["resumed_from"], recorded["valid_loss"]) == ([3], 7 / 6)  # the lower one of 7 / 3 and 7 / 6
    assert json.loads((tmp_path / "train.state.json").read_text())["resumed_from"] == 3


def test_a_job_of_the_workflow_writes_no_bars_but_how_far_it_is_into_a_file(run, tmp_path):
    result = run("--lr", "0.1", "--max-update", "6", STUB_TRAIN="long", PREFIX_PROGRESS="lines", SLURM_JOB_ID="77")
    assert result.returncode == 0 and result.stderr == ""
    state = json.loads((tmp_path / "train.state.json").read_text())
    assert (state["n"], state["total"], state["unit"]) == (6, 6, "update")
    assert state["scores"] == {"loss": "1.0", "valid": str(7 / 6)}
    assert (state["host"], state["slurm_job"], state["error"]) == (socket.gethostname(), "77", None)
    assert run("--lr", "0.2", STUB_TRAIN="fail", PREFIX_PROGRESS="lines", **REPLACING).returncode == 1
    state = json.loads((tmp_path / "train.state.json").read_text())
    assert "--base-model x: no such folder" in state["error"] and state["end"] >= state["begin"]


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_written_where_it_is_installed(run, tmp_path, installed):
    """A training goes on from a checkpoint that was made with it, or without."""
    if installed:
        (tmp_path / "packages" / "tensorboard").mkdir(parents=True)
        (tmp_path / "packages" / "tensorboard" / "__init__.py").touch()
    elif importlib.util.find_spec("tensorboard"):
        pytest.skip("tensorboard is installed")
    assert run("--lr", "0.1", STUB_TRAIN="cut").returncode == 1
    result = run("--lr", "0.1", STUB_TRAIN="long", PYTHONPATH=f"{STUBS}:{tmp_path / 'packages'}")
    assert result.returncode == 0 and "tensorboard" not in result.stderr
    state = checkpoint(tmp_path)
    assert state["resumed"] and ("--tensorboard-logdir" in state["arguments"]) is installed
    if installed:
        arguments = state["arguments"]
        assert arguments[arguments.index("--tensorboard-logdir") + 1] == "tensorboard"  # beside train.log


def test_a_killed_training_goes_on_and_a_changed_one_starts_clean(run, tmp_path):
    assert run("--lr", "0.1", STUB_TRAIN="fail").returncode == 1
    assert run("--lr", "0.2").returncode == 0
    assert not checkpoint(tmp_path)["resumed"]  # other flags: not from the weights of the first
    assert run("--lr", "0.1", STUB_TRAIN="fail", **REPLACING).returncode == 1
    assert run("--lr", "0.1", **REPLACING).returncode == 0
    assert checkpoint(tmp_path)["resumed"]

    assert run("--lr", "0.3", STUB_TRAIN="fail", **REPLACING).returncode == 1
    (tmp_path / "bin" / "train.source-target.source.bin").write_bytes(b"other data")
    assert run("--lr", "0.3", **REPLACING).returncode == 0
    assert not checkpoint(tmp_path)["resumed"]


@pytest.mark.parametrize(
    "flags, changed_file, difference",
    [
        (["--lr", "0.2"], None, "--lr 0.1 -> 0.2"),
        (["--lr", "0.1", "--seed-of-data=-1"], None, "--seed-of-data (not set) -> -1"),
        ([], None, "--lr 0.1 -> (not set)"),
        (["--lr", "0.1"], "bin/train.source-target.source.bin", "bin/train.source-target.source.bin"),
        (["--lr", "0.1"], "base/model.pt", "base/model.pt"),
    ],
)
def test_a_training_with_other_settings_or_bytes_is_refused_and_the_earlier_one_stays(
    run, tmp_path, flags, changed_file, difference
):
    assert run("--lr", "0.1").returncode == 0
    if changed_file:
        (tmp_path / changed_file).write_bytes(b"changed")
    for name in ("checkpoint.pt", "run.json", "curve.tsv"):  # Snakemake deletes them before a job
        (tmp_path / "run" / name).unlink()
    result = run(*flags, STUB_TRAIN="fail")
    assert result.returncode == 1
    assert f"error: 1 trained run would be replaced: run ({difference})." in result.stderr
    assert "--config replace=True" in result.stderr
    assert json.loads((tmp_path / "run" / ".trained" / "checkpoint.pt").read_text())["arguments"]
    assert run(*flags, **REPLACING).returncode == 0
    assert run(*flags, STUB_TRAIN="fail").returncode == 0


@pytest.mark.parametrize("fp16", [[], ["--fp16"]])
def test_a_training_with_the_same_settings_on_the_same_bytes_is_not_repeated(run, tmp_path, fp16):
    """Also where --fp16 was left out for want of a GPU, and where the test set is another one."""
    (tmp_path / "bin" / "test.source-target.source.bin").write_bytes(b"test")
    assert run("--lr", "0.1", *fp16).returncode == 0
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("checkpoint.pt", "run.json", "curve.tsv")}
    for name in before:
        (tmp_path / "run" / name).unlink()
    (tmp_path / "bin" / "test.source-target.source.bin").write_bytes(b"other")
    result = run("--lr", "1e-1", *fp16, STUB_TRAIN="fail")
    assert result.returncode == 0 and "run/checkpoint.pt is kept" in result.stderr
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_a_kept_checkpoint_that_was_damaged_is_trained_again(run, tmp_path):
    assert run("--lr", "0.1").returncode == 0
    (tmp_path / "run" / "checkpoint.pt").write_text("damaged")  # under both of its names
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert run("--lr", "0.1").returncode == 0
    assert checkpoint(tmp_path)["arguments"]


def test_a_plot_that_fails_fails_no_training(run, tmp_path):
    (tmp_path / "run" / "curve.svg" / "folder").mkdir(parents=True)
    result = run("--lr", "0.1", STUB_TRAIN="long")
    assert result.returncode == 0 and "notice: run/curve.svg: not drawn" in result.stderr


@pytest.mark.parametrize(("max_update", "again"), [("1", False), ("2", True)])
def test_a_training_killed_after_its_last_update_is_not_run_again(run, tmp_path, max_update, again):
    """fairseq would make one update more."""
    assert run("--lr", "0.1", "--max-update", max_update, STUB_TRAIN="fail").returncode == 1
    assert run("--lr", "0.1", "--max-update", max_update).returncode == 0
    assert checkpoint(tmp_path)["resumed"] is again


def test_a_training_killed_before_its_record_is_written_loses_nothing(run, tmp_path):
    (tmp_path / "run" / "run.json").mkdir(parents=True)  # writing it fails
    assert run("--lr", "0.1", "--max-update", "1").returncode != 0
    assert list((tmp_path / "run").glob("work-*/checkpoint_last.pt"))


def test_a_failure_is_one_sentence_and_leaves_no_output(run, tmp_path):
    result = run("--lr", "0.1", STUB_TRAIN="fail")
    assert result.stderr.splitlines()[-1] == (
        "error: fairseq_cli.train failed: --base-model x: no such folder (its log: train.log)"
    )
    assert "Traceback" not in result.stderr and "train_inner" in (tmp_path / "train.log").read_text()
    assert not (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "run" / "run.json").exists()


def hang(run, tmp_path) -> tuple[subprocess.Popen, int]:
    """A training that waits inside fairseq-train, and the process id of that."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = run.start("--lr", "0.1", STUB_TRAIN="hang", STUB_PIPE=str(pipe))
    child = int(pipe.read_text())
    pipe.unlink()
    return process, child


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_what_ends_the_script_ends_fairseq(run, tmp_path, number):
    process, child = hang(run, tmp_path)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 128 + number
    assert is_gone(child)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_the_parent_ignores_ends_neither_the_script_nor_fairseq(run, tmp_path, number):
    """As `nohup snakemake ... &`, when its terminal is closed."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        process, child = hang(run, tmp_path)
    finally:
        signal.signal(number, before)
    process.send_signal(number)
    assert number in ignored_by(process.pid) and number in ignored_by(child)
    assert process.poll() is None and not is_gone(child)
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and is_gone(child)


def test_trainings_side_by_side_see_one_gpu_each(run, tmp_path):
    environment = {"CUDA_VISIBLE_DEVICES": "4,5,6", "TMPDIR": str(tmp_path)}
    seen = []
    for number in range(3):
        os.mkfifo(tmp_path / f"pipe{number}")
        hanging = {"STUB_TRAIN": "hang", "STUB_PIPE": f"pipe{number}"} | environment
        process = run.start("--lr", "0.1", output=f"run{number}", **hanging)
        child = (tmp_path / f"pipe{number}").read_text()
        seen.append((process, Path(f"/proc/{child}/environ").read_bytes().split(b"\0")))
    assert [b"CUDA_VISIBLE_DEVICES=%d" % gpu in variables for gpu, (_, variables) in zip((4, 5, 6), seen, strict=True)]
    for process, _ in seen:
        process.terminate()
        process.communicate()


def test_a_training_that_does_not_end_is_killed_after_the_time_that_the_user_allows(tmp_path, monkeypatch, capfd):
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    monkeypatch.setenv("PREFIX_GRACE_SECONDS", "1")

    def on_line(line: str) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    with pytest.raises(fairseq_command.Interrupted):
        fairseq_command.run("unused", [], tmp_path / "log", on_line, launcher=[sys.executable, "-c", code])
    assert "killed after 1 s; PREFIX_GRACE_SECONDS sets how long saving may take" in capfd.readouterr().err


@pytest.mark.parametrize("value", ["two minutes", "0"])
def test_a_time_to_save_that_is_no_number_of_seconds_is_refused_before_the_training(run, tmp_path, value):
    result = run("--lr", "0.1", PREFIX_GRACE_SECONDS=value)
    assert result.returncode == 1 and not (tmp_path / "train.log").exists()
    expected = f"error: PREFIX_GRACE_SECONDS={value}: expected a whole number of seconds above 0"
    assert result.stderr.splitlines()[-1] == expected


def test_a_training_left_behind_by_a_killed_workflow_is_ended_by_the_next(run, tmp_path):
    process, child = hang(run, tmp_path)
    process.kill()
    process.wait()
    assert not is_gone(child)
    result = run("--lr", "0.1")
    assert result.returncode == 0, result.stderr
    assert is_gone(child)
    assert checkpoint(tmp_path)["resumed"]


def test_half_precision_is_left_out_without_a_gpu(run, tmp_path):
    if pytest.importorskip("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    result = run("--fp16", "--lr", "0.1")
    assert "--fp16 is left out" in result.stderr
    assert "--fp16" not in checkpoint(tmp_path)["arguments"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["flags"] == ["--lr", "0.1"]


def generate(
    tmp_path, write_jsonl, split: str = "test", lines: int = 3, **environment: str
) -> subprocess.CompletedProcess:
    """Of three examples with two references each, of which the split has so many encoded lines."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (tmp_path / "model.pt").touch()
    header = b"MMIDIDX\0\0" + bytes(9) + lines.to_bytes(8, "little")
    (folder / f"{split}.source-target.source.idx").write_bytes(header)
    (folder / "dict.target.txt").write_text("a 1\nb 1\nc 1\n")
    examples = write_jsonl(f"{split}.jsonl", [example(n, "source", "target", "another") for n in range(3)])
    command = [sys.executable, str(SCRIPTS / "generate.py"), "--data", "bin", "--examples", str(examples)]
    command += ["--split", split] if split != "test" else []
    command += ["--checkpoint", "model.pt", "--output", "generate.txt", "--log", "generate.log", "--", "--beam", "2"]
    environment = {**os.environ, "PYTHONPATH": str(STUBS), **environment}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_generation_keeps_the_examples_lines_and_logs_the_rest(tmp_path, write_jsonl):
    assert generate(tmp_path, write_jsonl).returncode == 0
    lines = (tmp_path / "generate.txt").read_text().splitlines()
    assert lines[:5] == ["S-2\ta", "T-2\ta", "H-2\t-0.5\ta", "D-2\t-0.5\ta", "P-2\t-0.5"]
    assert len(lines) == 15
    assert "a line of the log" in (tmp_path / "generate.log").read_text()


def test_a_validation_set_is_generated_once_for_each_reference(tmp_path, write_jsonl):
    result = generate(tmp_path, write_jsonl, "valid", lines=6)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "generate.txt").read_text().count("H-") == 6


def test_a_dropped_example_is_an_error(tmp_path, write_jsonl):
    result = generate(tmp_path, write_jsonl, STUB_GENERATE="drop")
    assert result.returncode == 1
    assert "error: fairseq-generate wrote 2 hypotheses for 3 examples" in result.stderr
    assert not (tmp_path / "generate.txt").exists()


def test_a_decoding_of_the_same_bytes_is_not_repeated(tmp_path, write_jsonl):
    assert generate(tmp_path, write_jsonl).returncode == 0
    before = (tmp_path / "generate.txt").read_bytes()
    (tmp_path / "generate.txt").unlink()  # as Snakemake does before a job
    assert generate(tmp_path, write_jsonl, STUB_GENERATE="drop").returncode == 0
    assert (tmp_path / "generate.txt").read_bytes() == before
    (tmp_path / "generate.txt").write_text("damaged")  # under both of its names
    assert generate(tmp_path, write_jsonl, STUB_GENERATE="drop").returncode == 1


# One at a time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", fairseq_command.NO_LOCKS)
def test_on_a_file_system_without_locks_a_notice_is_all(tmp_path, monkeypatch, capsys, number):
    def flock(_file, _operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fairseq_command.fcntl, "flock", flock)
    with fairseq_command.exclusive(tmp_path / "training.lock"):
        assert "this file system has no locks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_training_on_another_machine_is_named_with_its_slurm_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(fairseq_command, "grace_seconds", lambda: 0)
    with fairseq_command.exclusive(tmp_path / "training.lock"):
        monkeypatch.setattr(fairseq_command.socket, "gethostname", lambda: "elsewhere")
        here = json.loads((tmp_path / "training.lock").read_text())["host"]
        with (
            pytest.raises(UserError, match=f"is under way on {here}; wait for it, or scancel 4711$"),
            fairseq_command.exclusive(tmp_path / "training.lock"),
        ):
            pass


def test_the_attempt_before_may_still_be_ending_on_another_machine(tmp_path, monkeypatch, capsys):
    lock = tmp_path / "training.lock"
    before = open(lock, "a+", encoding="utf-8")
    fairseq_command.fcntl.flock(before, fairseq_command.fcntl.LOCK_EX)
    json.dump({"host": "elsewhere", "pids": [1], "slurm_job": None}, before)
    before.flush()
    monkeypatch.setattr(fairseq_command.time, "sleep", lambda _: before.close())
    with fairseq_command.exclusive(lock):
        assert before.closed and json.loads(lock.read_text())["pids"] == [os.getpid()]
    assert "waiting for the same training to end on elsewhere" in capsys.readouterr().err


def test_srun_is_told_to_end_by_a_signal_that_it_hands_on(stand_in, tmp_path):
    """At SIGTERM it kills what it has started."""
    traps = "".join(f"trap 'echo {name}; exit' {name}\n" for name in ("TERM", "USR1"))
    stand_in("srun", f"{traps}echo ready\nwhile :; do sleep 0.05; done")
    lines = []

    def on_line(line: str) -> bool:
        lines.append(line.strip())
        if line == "ready\n":
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    with pytest.raises(fairseq_command.Interrupted):
        fairseq_command.run("fairseq_cli.train", [], tmp_path / "log", on_line, launcher=["srun"])
    assert lines == ["ready", "USR1"]


def test_what_a_training_removes_at_its_end_it_removes_before_another_may_begin(tmp_path, monkeypatch):
    """The folder would be the one that the other trains in."""
    held = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "make", lambda *_: (tmp_path / "work-1").mkdir())
    monkeypatch.setattr(train.shutil, "rmtree", lambda *_, **__: held.append((tmp_path / "training.lock").exists()))
    files = ["--output", "checkpoint.pt", "--run-json", "run.json", "--log", "train.log"]
    train.main(["--data", "bin", "--arch", "full_bart_tiny", *files])
    assert held == [True] and not (tmp_path / "training.lock").exists()
