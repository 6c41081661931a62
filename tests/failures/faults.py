"""The faults: what each does to a stage, and what became of it.

An outcome is one of `OUTCOMES`; `wrong` is the only one that must not be, and carries a reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from playground import SCRIPTS, STAGES, TRAININGS, Stage, differing, snakemake, start

OUTCOMES = {
    "unharmed": "the run completed with the results of an undisturbed one",
    "again": "it ended; the same command run again completed with these results",
    "refused": "it was refused in a sentence, and after what that says completed with these results",
    "skipped": "not possible on this machine, or the stage was over too soon",
    "wrong": "anything else",
}
SENTENCE = re.compile(r"error: |^failed: .+: .+", re.MULTILINE)  # of a script or fairseq, or for each job that failed
PATIENCE = 600  # seconds for a run that takes a few on a machine of its own


class Skipped(Exception):
    """The fault cannot be made here."""


class Wrong(Exception):
    """What must not be."""


@dataclass
class Case:
    """A fault in a stage of a copy of the finished tree, from which the stage's outputs are gone."""

    template: Path
    folder: Path
    name: str
    detail: str
    rng: random.Random
    seconds: float  # that the stage's script takes undisturbed

    @property
    def stage(self) -> Stage:
        return STAGES[self.name]

    def start(self) -> subprocess.Popen:
        return start(self.folder, *self.stage.outputs)

    def rerun(self, *more: str) -> str:
        """The same command again; returns `again`, or raises."""
        result = snakemake(self.folder, *self.stage.outputs)
        if result.returncode:
            raise Wrong(f"the rerun failed: {_said(result.stdout)}")
        if different := differing(self.folder, self.template, [*self.stage.outputs, *more], missing=True):
            raise Wrong(f"other results: {', '.join(different)}")
        return "again"

    def look(self) -> None:
        """Raise if something half-written has a final name."""
        if different := differing(self.folder, self.template, self.stage.outputs):
            raise Wrong(f"half-written: {', '.join(different)}")


def _said(output: str) -> str:
    """The sentence of an error, or the end of the output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if SENTENCE.search(line)]
    return (errors or lines[-3:] or ["nothing"])[-1][:300]


def _must_be_a_sentence(output: str) -> None:
    if "Traceback (most recent call last)" in output:
        raise Wrong(f"a traceback: {output[output.index('Traceback') :].strip().splitlines()[-1][:200]}")


def _processes(folder: Path) -> list[psutil.Process]:
    """All that work in the folder: Snakemake, scripts, fairseq, and forks of the warm process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _script(folder: Path) -> psutil.Process | None:
    for process in _processes(folder):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if len(command) > 1 and command[1].startswith(str(SCRIPTS)):
                return process
    return None


def _wait_for(condition: Callable, process: subprocess.Popen, pause: float = 0.02):
    """What the condition gives, once that is true; None if the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if process.poll() is not None:
            return None
        time.sleep(pause)
    raise Wrong("it does not end")


def _kill_all(folder: Path) -> None:
    for process in _processes(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _end(process: subprocess.Popen, folder: Path) -> str:
    """Wait for Snakemake and return what was said."""
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _kill_all(folder)
        process.wait()
        raise Wrong("it does not end") from None
    return (folder / "snakemake.log").read_text(errors="replace")


# Signals --------------------------------------------------------------------------------------------------------------


def _signal(case: Case, number: int, everything: bool) -> str:
    process = case.start()
    script = _wait_for(lambda: _script(case.folder), process)
    if script is None and not everything:
        _end(process, case.folder)
        raise Skipped("no script, or over too soon")
    time.sleep(case.rng.uniform(0, case.seconds))
    for victim in _processes(case.folder) if everything else [script]:
        with contextlib.suppress(psutil.Error):
            victim.send_signal(number)
    output = _end(process, case.folder)
    completed = process.returncode == 0
    if number != signal.SIGKILL:
        _must_be_a_sentence(output)
    case.look()
    outcome = case.rerun()
    return "unharmed" if completed else outcome


def kill_script(case: Case) -> str:
    """SIGKILL to the stage's script alone, at a random moment."""
    return _signal(case, signal.SIGKILL, False)


def kill_all(case: Case) -> str:
    """SIGKILL to everything at a random moment."""
    return _signal(case, signal.SIGKILL, True)


def term_script(case: Case) -> str:
    """SIGTERM to the stage's script alone, at a random moment."""
    return _signal(case, signal.SIGTERM, False)


def term_all(case: Case) -> str:
    """SIGTERM to everything at a random moment."""
    return _signal(case, signal.SIGTERM, True)


# The disk -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _small_disk(case: Case, free: int) -> Iterator[Callable[[], None]]:
    """Put what the stage writes on a disk of its own with so many bytes free; yields a function that makes room.

    What Snakemake notes for itself lies elsewhere, so that it is the stage that feels it, however little it writes.
    """
    folder = case.folder / os.path.commonpath([os.path.dirname(path) for path in case.stage.outputs])
    folder.mkdir(parents=True, exist_ok=True)
    before = case.folder.with_name("before")
    shutil.rmtree(before, ignore_errors=True)
    shutil.copytree(folder, before)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        raise Skipped("no right to mount a small disk")
    try:
        shutil.copytree(before, folder, dirs_exist_ok=True)
        (folder / ".ballast").write_bytes(b"one block")  # a size of 0 would be no limit
        state = os.statvfs(folder)
        size = (state.f_blocks - state.f_bfree + free // state.f_frsize) * state.f_frsize
        resize = ["mount", "-o", "remount,size={}", str(folder)]
        subprocess.run([part.format(size) for part in resize], check=True)
        yield lambda: subprocess.run([part.format(1 << 30) for part in resize], check=True)
    finally:
        _kill_all(case.folder)
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk_full(case: Case) -> str:
    """A disk with room for a random part of what the stage writes, in whole blocks."""
    needed = sum((case.template / path).stat().st_size for path in case.stage.outputs)
    with _small_disk(case, int(case.rng.uniform(0, 0.9) * needed)) as make_room:
        process = case.start()
        output = _end(process, case.folder)
        if process.returncode:
            _must_be_a_sentence(output)
        case.look()
        make_room()
        outcome = case.rerun()
        return outcome if process.returncode else "unharmed"


def read_only(case: Case) -> str:
    """The folder of checkpoints lets nothing be written after the first checkpoint."""
    process = case.start()
    last = _wait_for(lambda: _last_checkpoint(case), process)
    if last is None:
        raise Skipped("over too soon")
    if subprocess.run(["chattr", "+i", str(last.parent)], capture_output=True).returncode:
        _kill_all(case.folder)
        raise Skipped("no right to make a folder immutable")
    try:
        output = _end(process, case.folder)
    finally:
        subprocess.run(["chattr", "-i", str(last.parent)], check=True)
    _must_be_a_sentence(output)
    if process.returncode == 0:
        raise Skipped("over too soon")
    case.look()
    case.rerun()
    return "refused"


# Damage ---------------------------------------------------------------------------------------------------------------


def _damage(path: Path, how: str, rng: random.Random) -> None:
    """Cut the file off, or flip one bit; the time of its last change is kept as often as not."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.unlink()  # it may be a hard link
    path.write_bytes(content)
    if rng.random() < 0.5:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _damaged(case: Case, how: str) -> str:
    """What reads a damaged file refuses it, and when it is deleted, makes it again."""
    _damage(case.folder / case.detail, how, case.rng)
    process = case.start()
    output = _end(process, case.folder)
    if process.returncode == 0:
        if different := differing(case.folder, case.template, case.stage.outputs, missing=True):
            raise Wrong(f"silently used: {', '.join(different)}")
        return "unharmed"
    _must_be_a_sentence(output)
    if case.detail not in output or not SENTENCE.search(output):
        raise Wrong(f"the error does not name it: {_said(output)}")
    case.look()
    (case.folder / case.detail).unlink()
    case.rerun(case.detail)
    return "refused"


def truncated(case: Case) -> str:
    """A file that the stage reads is cut off at a random place."""
    return _damaged(case, "truncated")


def flipped(case: Case) -> str:
    """One random bit of a file that the stage reads is flipped."""
    return _damaged(case, "flipped")


def _last_checkpoint(case: Case) -> Path | None:
    folder = (case.folder / case.stage.outputs[0]).parent
    return next(folder.glob("work-*/checkpoint_last.pt"), None)


def _damaged_checkpoint(case: Case, how: str) -> str:
    process = case.start()
    last = _wait_for(lambda: _last_checkpoint(case), process)
    _kill_all(case.folder)
    process.wait()
    if last is None or not last.exists():
        raise Skipped("over too soon")
    _damage(last, how, case.rng)
    result = snakemake(case.folder, *case.stage.outputs)
    if result.returncode == 0:
        if different := differing(case.folder, case.template, case.stage.outputs, missing=True):
            raise Wrong(f"silently used: {', '.join(different)}")
        return "unharmed"
    _must_be_a_sentence(result.stdout)
    if last.name not in result.stdout:
        raise Wrong(f"the error does not name it: {_said(result.stdout)}")
    case.look()
    shutil.rmtree(last.parent)
    case.rerun()
    return "refused"


def truncated_checkpoint(case: Case) -> str:
    """The last checkpoint of a killed training is cut off at a random place."""
    return _damaged_checkpoint(case, "truncated")


def flipped_checkpoint(case: Case) -> str:
    """One random bit of the last checkpoint of a killed training is flipped."""
    return _damaged_checkpoint(case, "flipped")


# Time, and company ----------------------------------------------------------------------------------------------------


def clock(case: Case) -> str:
    """What the stage reads is dated a day ahead or back, and its old outputs are there with the other date."""
    day = case.rng.choice([-1, 1]) * 24 * 3600
    for path, offset in [(path, day) for path in case.stage.inputs] + [(path, -day) for path in case.stage.outputs]:
        if not (case.folder / path).exists():
            (case.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(case.template / path, case.folder / path)
        moment = time.time() + offset
        os.utime(case.folder / path, (moment, moment))
    result = snakemake(case.folder, *case.stage.outputs)
    if result.returncode:
        if "This could indicate a clock skew problem" not in result.stdout:
            raise Wrong(f"no word of the clock: {_said(result.stdout)}")
        for path in case.stage.inputs:
            os.utime(case.folder / path)
    case.rerun(*case.stage.inputs)
    return "refused" if result.returncode else "unharmed"


def two_workflows(case: Case) -> str:
    """The same command twice at once."""
    first, second = case.start(), case.start()
    output = _end(first, case.folder) + _end(second, case.folder)
    _must_be_a_sentence(output)
    case.look()
    if first.returncode and second.returncode:
        return case.rerun()
    if different := differing(case.folder, case.template, case.stage.outputs, missing=True):
        raise Wrong(f"other results: {', '.join(different)}")
    return "refused" if first.returncode or second.returncode else "unharmed"


def two_trainings(case: Case) -> str:
    """The same training twice at once, without Snakemake; the second ends the first and goes on."""
    checkpoint, record = case.stage.outputs
    written = json.loads((case.template / record).read_text())
    data = next(path for path in written["data_sha256"] if path.endswith(".idx"))
    command = [sys.executable, str(SCRIPTS / "train.py"), "--data", str(Path(data).parent), "--arch", written["arch"]]
    if not case.name.startswith("pretrain"):
        command += ["--base-model", "bases/toy"]
    command += ["--seed", str(written["seed"]), "--output", checkpoint, "--run-json", record, "--log", "train.log"]
    processes = []
    for _ in range(2):
        processes.append(
            subprocess.Popen([*command, "--", *written["flags"]], cwd=case.folder, stderr=subprocess.PIPE, text=True)
        )
        time.sleep(case.rng.uniform(0, case.seconds))
    for process in processes:
        _must_be_a_sentence(process.communicate(timeout=PATIENCE)[1])
    case.look()
    if processes[-1].returncode:
        raise Wrong(f"the second ended with {processes[-1].returncode}")
    if different := differing(case.folder, case.template, case.stage.outputs, missing=True):
        raise Wrong(f"other results: {', '.join(different)}")
    return "refused" if processes[0].returncode else "unharmed"


OF_A_STAGE = (kill_script, kill_all, term_script, term_all, disk_full)
OF_SNAKEMAKE = (clock, two_workflows)  # the same for every stage: some of each kind
KINDS = ("fetch", "prepare", "encode", "train_prefix", "generate", "score", "table")
OF_A_FILE = (truncated, flipped)
OF_A_TRAINING = (read_only, truncated_checkpoint, flipped_checkpoint, two_trainings)
FAULTS = {fault.__name__: fault for fault in (*OF_A_STAGE, *OF_SNAKEMAKE, *OF_A_FILE, *OF_A_TRAINING)}


def cases() -> Iterator[tuple[str, str, str]]:
    """(fault, stage, detail) of all cases, a stage's together; the detail of damage is the file."""
    for name, stage in STAGES.items():
        of_the_stage = (*OF_A_STAGE, *(OF_SNAKEMAKE if name in KINDS else ()))
        yield from ((fault.__name__, name, "") for fault in of_the_stage)
        yield from ((fault.__name__, name, file) for fault in OF_A_FILE for file in stage.inputs)
        if name in TRAININGS:
            yield from ((fault.__name__, name, "") for fault in OF_A_TRAINING)
