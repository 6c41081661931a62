"""Signals that a parent process has set to be ignored, as `nohup` does, and what the workflow starts below it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import signal_handlers
from conftest import REPOSITORY, SCRIPTS

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(SCRIPTS)])}


def ignored_by(pid: int) -> set[int]:
    """The signals that a process ignores, as the kernel knows."""
    return ignored_in(Path(f"/proc/{pid}/status").read_text())


def ignored_in(status: str) -> set[int]:
    mask = int(next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1], 16)
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def ignoring(*numbers: int):
    """What a child does before it starts its program."""
    return lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers]


def run_python(code: str, *ignored: int) -> str:
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=ENVIRONMENT, preexec_fn=ignoring(*ignored), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_handler_is_installed_for_all_signals_but_the_ignored_one(number):
    code = (
        "import signal, signal_handlers; from warm import ENDING\n"
        "previous = signal_handlers.handle(ENDING, print)\n"
        "assert all((signal.getsignal(number) is print) == (number in previous) for number in ENDING)\n"
        "print(*set(ENDING) - previous.keys())"
    )
    assert run_python(code, number).strip() == str(int(number))


def test_a_script_that_was_started_to_ignore_sigterm_ignores_it():
    code = (
        "import os, signal\nfrom common import run_main\n"
        "run_main(lambda _: (os.kill(os.getpid(), signal.SIGTERM), print('survived')))"
    )
    assert run_python(code, signal.SIGTERM) == "survived\n"


@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP,)])
def test_torchrun_is_told_to_heed_no_ignored_signal(ignored):
    code = "import os, rank; rank.launcher(2, 1); print(os.environ['TORCHELASTIC_SIGNALS_TO_HANDLE'])"
    heeded = run_python(code, *ignored).strip().split(",")
    assert heeded == ["SIGTERM", "SIGINT", *([] if ignored else ["SIGHUP"]), "SIGQUIT", "SIGUSR1"]


def test_snakemake_ignores_sigterm_where_its_parent_has_set_it_so(tmp_path):
    """Snakemake itself would install a handler; its jobs, which do not inherit handlers, would be ended."""
    (tmp_path / "Snakefile").write_text(
        f"import sys; sys.path.append({str(SCRIPTS)!r})\n"
        "from scheduler import handle_signals; handle_signals(workflow)\n"
        "rule all:\n    output: 'done'\n    shell: 'kill -TERM $PPID; kill -TERM $$; touch {output}'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    result = subprocess.run(command, cwd=tmp_path, preexec_fn=ignoring(signal.SIGTERM), capture_output=True, text=True)
    assert result.returncode == 0 and (tmp_path / "done").exists(), result.stderr


@pytest.mark.parametrize("ignored", [(), (signal.SIGTERM,)])
def test_a_training_saves_at_signals_that_are_not_ignored(ignored):
    """In fairseq's process itself; the plugin installs its handlers as a training begins."""
    code = (
        "import signal\nfrom types import SimpleNamespace\nfrom fairseq_prefix.toolkit import preemption\n"
        "trainer = SimpleNamespace(train_step=None, get_train_iterator=None)\n"
        "load_checkpoint = preemption.watch_training(lambda cfg, trainer: None)\n"
        "call_main = preemption.forward_signals(lambda cfg, main: main(cfg))\n"
        "cfg = SimpleNamespace(no_save=False, no_last_checkpoints=False)\n"
        "call_main(cfg, lambda cfg: load_checkpoint(cfg, trainer))\n"
        "print(*[number.name for number in preemption.SIGNALS if signal.getsignal(number) != signal.SIG_IGN])"
    )
    heeded = run_python(code, *ignored).splitlines()[-1].split()
    assert heeded == [number.name for number in (signal.SIGTERM, signal.SIGUSR1) if number not in ignored]


def test_all_ignored_signals_of_another_process_can_be_taken_over():
    code = (
        "import signal_handlers, signal\n"
        f"signal_handlers.set_ignored([{int(signal.SIGHUP)}, {int(signal.SIGUSR2)}])\n"
        "print(*map(int, signal_handlers.ignored()))"
    )
    assert run_python(code, signal.SIGTERM).split() == [str(int(signal.SIGHUP)), str(int(signal.SIGUSR2))]
    assert signal.SIGKILL not in signal_handlers.ignored()
