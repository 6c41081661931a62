"""fairseq's own commands with the plugin: training, killing, resuming, generating, exporting."""

import os
import random
import re
import signal
import subprocess
import sys

import pytest
import tiny
import torch
from conftest import REPOSITORY

from fairseq_prefix.files.checkpoint import read_tuned

TASK = ["--task", "conditional_generation", "--max-source-tokens", "50"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), "full_bart_tiny")


def make_world(folder, arch):
    """A random base, and reversed word lists binarised with its dictionary."""
    base = tiny.save_base(folder / "base", arch=arch)
    rng = random.Random(0)
    for split, count in (("train", 90), ("valid", 10), ("test", 21)):
        with open(folder / f"{split}.source", "w") as source, open(folder / f"{split}.target", "w") as target:
            for _ in range(count):
                words = [f"w{rng.randrange(tiny.WORDS)}" for _ in range(rng.randint(3, 9))]
                print(*words, file=source)
                print(*words[::-1][:4], file=target)
    command(
        *("preprocess", "-s", "source", "-t", "target", "--srcdict", base / "dict.txt", "--joined-dictionary"),
        *(part for split in ("train", "valid", "test") for part in (f"--{split}pref", folder / split)),
        *("--destdir", folder / "bin"),
    )
    return folder


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", f"fairseq_cli.{program}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def command(program, *arguments):
    process = start(program, *arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def kill_at(update, *arguments):
    """Start a command and kill all of it when it logs this update."""
    process, killed = start(*arguments), False
    for line in process.stdout:
        if re.search(rf"num_updates={update}\b", line):
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
    process.wait()
    assert killed


def training(world, save_dir, *more):
    return (
        *("train", world / "bin", "--user-dir", REPOSITORY / "fairseq_prefix", *TASK),
        *("--arch", "prefix_bart_tiny", "--base-model", world / "base", "--prefix-length", 3, "--prefix-mid-dim", 16),
        *("--criterion", "prefix_cross_entropy", "--optimizer", "adam", "--weight-decay", 0.1, "--lr", 1e-2),
        *("--lr-scheduler", "polynomial_decay", "--warmup-updates", 3, "--total-num-update", 20, "--max-update", 20),
        *("--dropout", 0.1, "--prefix-dropout", 0.1, "--batch-size", 8, "--clip-norm", 1.0, "--log-interval", 1),
        *("--log-format", "simple", "--save-interval-updates", 2, "--keep-interval-updates", 1),
        *("--no-epoch-checkpoints", "--save-dir", save_dir, *more),
    )


@pytest.fixture(scope="module")
def undisturbed(world):
    output = command(*training(world, world / "undisturbed"))
    return world / "undisturbed", output


def generate(world, checkpoint, *more):
    output = command(
        *("generate", world / "bin", "--user-dir", REPOSITORY / "fairseq_prefix", "--path", checkpoint, *TASK),
        *("--beam", 3, "--max-len-b", 10, "--batch-size", 8, *more),
    )
    return sorted(re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE))


def interactive(world, checkpoint, *task):
    """(number, hypothesis) of the first three test sources, by fairseq-interactive."""
    process = subprocess.run(
        [
            *(sys.executable, "-m", "fairseq_cli.interactive", world / "bin", *task),
            *("--user-dir", REPOSITORY / "fairseq_prefix", "--path", checkpoint, "--beam", "3", "--max-len-b", "10"),
        ],
        input="".join((world / "test.source").read_text().splitlines(keepends=True)[:3]),
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"^H-(\d+)\t\S+\t(.*)$", process.stdout, re.MULTILINE)


def test_training_logs_counts_and_learns(undisturbed):
    _, output = undisturbed
    assert "trained parameters: 33,456 | folded (stored per task): 4,608" in output
    losses = [float(loss) for loss in re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", output)]
    assert losses[-1] < losses[0]


def test_killed_and_restarted_training_ends_with_the_same_parameters(world, undisturbed):
    for update in (5, 16):  # the second time after two more updates of the second epoch
        kill_at(update, *training(world, world / "killed"))
    command(*training(world, world / "killed"))
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        whole, resumed = (torch.load(folder / name, weights_only=True) for folder in (undisturbed[0], world / "killed"))
        for key, tensor in whole["model"].items():
            assert torch.equal(resumed["model"][key], tensor), (name, key)
        states = (whole, resumed)
        first, second = (state["last_optimizer_state"]["state"] for state in states)
        assert all(torch.equal(first[i]["exp_avg"], second[i]["exp_avg"]) for i in first)


def test_generation_from_checkpoint_and_from_export_is_the_same_and_complete(world, undisturbed, tmp_path):
    checkpoint, exported, imported = (
        undisturbed[0] / "checkpoint_best.pt",
        tmp_path / "p.safetensors",
        tmp_path / "i.pt",
    )
    run = [sys.executable, "-m", "fairseq_prefix"]
    subprocess.run([*run, "export", checkpoint, exported], check=True, cwd=REPOSITORY, capture_output=True)
    moved = world / "moved"
    if not moved.exists():
        moved.symlink_to(world / "base")
    subprocess.run(
        [*run, "import", exported, imported, "--base-model", "/elsewhere"],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
    )
    hypotheses = generate(world, checkpoint)
    assert len(hypotheses) == 21
    assert generate(world, imported, "--model-overrides", str({"base_model": str(moved)})) == hypotheses
    assert not any("<s>" in text for _, text in hypotheses)


def test_interactive_reads_lines(world, undisturbed):
    """With the length of sources that the checkpoint was trained with, which the command does not repeat."""
    found = interactive(world, undisturbed[0] / "checkpoint_best.pt", "--task", "conditional_generation")
    together = dict(generate(world, undisturbed[0] / "checkpoint_best.pt"))
    assert found == [(number, together[number]) for number in "012"]


def test_the_translation_task_works_too(world, tmp_path):
    arguments = [part for part in training(world, tmp_path, "--max-update", 4) if part not in TASK]
    output = command(*arguments, "--task", "translation", "-s", "source", "-t", "target")
    assert "num_updates 4" in output
    assert read_tuned(str(tmp_path / "checkpoint_last.pt")).metadata["conventions"] == {"bos": False}


def resume_halfway(world, bf16, folder, *more):
    """Train eight batches with one trainer, and with another that resumes after four of them.

    Asserts that both end with the same prefix, in full precision; returns the first trainer, and the state of its
    decoder before.
    """
    task, whole = make_trainer(world, bf16, *more)
    before = {name: tensor.clone() for name, tensor in whole.model.decoder.state_dict().items()}
    batches = list(task.get_batch_iterator(task.dataset("train"), max_sentences=8).next_epoch_itr())
    for batch in batches[:4]:
        whole.train_step([batch])
    whole.consolidate_optimizer()
    whole.save_checkpoint(str(folder / "half.pt"), {"train_iterator": {"epoch": 1}})
    resumed = make_trainer(world, bf16, *more)[1]
    resumed.load_checkpoint(str(folder / "half.pt"))
    for batch in batches[4:8]:
        whole.train_step([batch])
        resumed.train_step([batch])
    theirs = dict(resumed.model.prefix.named_parameters())
    for name, parameter in whole.model.prefix.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(theirs[name], parameter), name
    return whole, before


def make_trainer(world, bf16, *more):
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    arguments = [str(part) for part in training(world, world / "unused", "--cpu", *more)[1:]]
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    cfg = convert_namespace_to_omegaconf(args)
    cfg.common.bf16 = bf16  # as an option fairseq takes it for a TPU where there is no GPU
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    return task, Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def test_half_precision_training_resumes_exactly(world, tmp_path):
    """A checkpoint in half precision would have lost the optimizer's master weights."""
    resume_halfway(world, True, tmp_path)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_base_stays_bit_identical_under_weight_decay(world, bf16):
    """Also where fairseq trains through flat buffers of master weights."""
    task, trainer = make_trainer(world, bf16)
    model = trainer.model
    before = {n: t.clone() for n, t in model.named_parameters()} | {n: t.clone() for n, t in model.named_buffers()}
    iterator = task.get_batch_iterator(task.dataset("train"), max_sentences=8).next_epoch_itr()
    for batch in iterator:
        trainer.train_step([batch])
    assert trainer.get_num_updates() > 5
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) is not name.startswith("prefix."), name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--base-model", "/nowhere"], "--base-model /nowhere: no such file or folder"),
        (["--prefix-length", 7], "has the geometry"),
        (["--prefix-length", 0], "--arch prefix_bart_tiny has nothing to train: with a length"),
        (["--prefix-dropout", 1], "--prefix-dropout is 1.0; expected 0 or more, and less than 1"),
        (["--label-smoothing", -1], "--label-smoothing is -1.0; expected 0 or more, and less than 1"),
        (["--max-source-tokens", 0], "was trained with --max-source-tokens 50, not 0; pass --max-source-tokens 50"),
        (["--fp16", "--cpu"], "--fp16 requires a CUDA GPU, but --cpu is given; leave --fp16 out"),
        (["--ddp-backend", "fully_sharded"], "--ddp-backend fully_sharded is not supported by this plugin"),
        (["--arch", "prefix_bart_base"], "choose the architecture of this base"),
    ],
)
def test_mistakes_end_training_with_one_sentence(world, undisturbed, more, message):
    process = start(*training(world, undisturbed[0], *more))
    output, _ = process.communicate()
    assert process.returncode == 1
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes_train_what_one_does_with_the_same_batches(world, tmp_path):
    """fairseq's own distributed training, here without GPUs."""
    quiet = ("--dropout", 0, "--prefix-dropout", 0, "--base-dropout", "off", "--max-update", 6)
    command(*training(world, tmp_path / "one", *quiet, "--update-freq", 2))
    together = (
        *("--cpu", "--distributed-world-size", 2, "--distributed-init-method", f"file://{tmp_path / 'meeting'}"),
        *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-no-spawn"),
    )
    processes = [start(*training(world, tmp_path / "two", *quiet, *together, "--distributed-rank", n)) for n in (0, 1)]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    one, two = (read_tuned(str(tmp_path / name / "checkpoint_last.pt")) for name in ("one", "two"))
    assert one.state.keys() == two.state.keys()
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, atol=1e-6, rtol=1e-5)
    start_of_training = tiny.build("prefix_bart_tiny", base_model=str(world / "base"), prefix_length=3).prefix.folded()
    assert all(not torch.allclose(one.folded[site], table, atol=1e-3) for site, table in start_of_training.items())
