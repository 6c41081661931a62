"""What a trained run was made from, and whether that still holds: nothing trained is replaced unless the user asks.

run.json records the architecture, flags, seed and processes of a training and the SHA-256 of every file it read;
generate.json records the files that its hypotheses were decoded from. A rerun of a stage, or an edit of its code,
changes nothing here unless it changes bytes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

from common import atomic_path

KEPT = ".trained"  # beside run.json: second names of the results, which Snakemake does not delete before a job
REPLACE = "PREFIX_REPLACE"  # the environment variable that allows a training to replace what was trained before
HALF_PRECISION = ("--fp16", "--memory-efficient-fp16", "--amp")  # left out on a machine without a GPU
LISTED = 5  # runs that a message names
# Of this process of Snakemake: whether jobs wait for inputs that are made again, instead of taking them as they are.
PLAN = SimpleNamespace(waits=False)


def replacing() -> bool:
    """Whether the user allows trained runs to be replaced (`--config replace=True`)."""
    return bool(os.environ.get(REPLACE))


def read_record(path: Path) -> dict | None:
    """The record in a run.json or generate.json; None if there is none, or none that is whole."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("flags", []), list):
        return None
    return record if isinstance(record.get("data_sha256", {}), dict) else None


def read_in_training(path: str) -> bool:
    """Whether a training reads this file of its data or base; it does not read the test set."""
    return not Path(path).name.startswith("test.")


def changed_settings(record: dict, arch: str, flags: list[str], seed: int, processes: int) -> list[str]:
    """Differences between a training's record and these settings, each as `--lr 5e-05 -> 0.01`."""
    now = {"--arch": arch, "--seed": str(seed), "processes": str(processes), **_by_name(flags)}
    then = {
        "--arch": record.get("arch"),
        "--seed": str(record.get("seed")),
        "processes": str(record.get("processes", 1)),
    }
    then |= _by_name(record.get("flags") or [])
    names = [name for name in sorted({*now, *then}) if _meant(now.get(name)) != _meant(then.get(name))]
    names = [name for name in names if name not in HALF_PRECISION or name in then]  # without a GPU it was left out
    return [f"{name} {_shown(then, name)} -> {_shown(now, name)}" for name in names]


def _meant(value: str | None) -> object:
    """The number that a text stands for, so that 5e-5 and 5e-05 are the same; another text itself."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _by_name(flags: list[str]) -> dict[str, str]:
    """["--fp16", "--lr", "0.1", "--scale=-1"] -> {"--fp16": "", "--lr": "0.1", "--scale": "-1"}"""
    values: dict[str, str] = {}
    name = ""
    for flag in map(str, flags):
        if flag.startswith("--"):
            name, _, value = flag.partition("=")
            values[name] = value
        else:
            values[name] = f"{values[name]} {flag}".strip() if name in values else flag
    return values


def _shown(values: dict[str, str], name: str) -> str:
    return "(not set)" if values.get(name) is None else values[name] or "(set)"


def changed_files(record: dict, digest: Callable[[str], str | None], wanted: Callable[[str], bool]) -> list[str]:
    """Files of a record whose bytes are others now, out of those that `wanted` names.

    Args:
        digest: the SHA-256 of a file now; None where it is not there, which is no difference: it will be made again.
    """
    recorded = record.get("data_sha256") or {}
    return [path for path, then in sorted(recorded.items()) if wanted(path) and digest(path) not in (then, None)]


def refusal(runs: dict[str, list[str]]) -> str:
    """The sentences that stop a workflow which would replace trained runs.

    Args:
        runs: the folder of each -> what differs.
    """
    named = [f"{run} ({', '.join(differences[:LISTED])})" for run, differences in list(runs.items())[:LISTED]]
    more = f", and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    count = "1 trained run" if len(runs) == 1 else f"{len(runs)} trained runs"
    return (
        f"{count} would be replaced: {', '.join(named)}{more}. To replace them, add --config replace=True. To "
        "keep both, write the new settings as a variant under `methods`, such as prefix~lr=0.01"
    )


def earlier_training(run_json: Path, output: Path) -> tuple[dict, Path] | None:
    """The record and the checkpoint of the last training that ended here; None if there is none.

    Args:
        run_json: where a training writes its record.
        output: where it writes its checkpoint.
    """
    for record_path, checkpoint in ((run_json, output), (run_json.parent / KEPT / "run.json", kept(run_json, output))):
        if checkpoint.exists() and (record := read_record(record_path)):
            return record, checkpoint
    return None


def kept(run_json: Path, path: Path) -> Path:
    """The second name of a result of the training that this record is of."""
    return run_json.parent / KEPT / path.name


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in the place of what has it; on a file system without hard links it gets a copy.

    Records are copied: one that is damaged is to be made again.
    """
    if target.exists() and source.samefile(target):
        return
    with atomic_path(target) as temporary:
        try:
            if source.suffix == ".json":
                raise OSError
            temporary.unlink()
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def watch_plan(workflow, incomplete: Callable[[], Iterable[str]], replace: bool) -> None:
    """Have this workflow of Snakemake's make incomplete results again, and stop if a training would replace another.

    Snakemake offers no public way to look at a plan before it runs. In an untested version this is left out: results
    are as up to date as Snakemake thinks, and train.py refuses to replace, later.

    Args:
        incomplete: returns results that are there while something that they are made of is not.
        replace: whether trainings may replace others.
    """
    # Here, because the jobs' scripts do without Snakemake, which takes long to load. Its error for wrong calls, because
    # that one alone is shown without lines of a traceback.
    from snakemake_hooks import is_tested
    from snakemake_interface_common.exceptions import ApiError

    if not is_tested():
        return
    prepare, build = workflow._prepare_dag, workflow._build_dag
    settings: dict[str, object] = {}

    def prepare_and_remember(**options) -> None:
        settings.update(options)
        prepare(**options)

    def build_with_incomplete() -> list:
        workflow.dag.forcefiles.update(incomplete())
        build()
        return list(workflow.dag.needrun_jobs())

    def build_and_check() -> None:
        jobs = build_with_incomplete()
        if _reads_what_is_made(jobs):
            PLAN.waits = True
            prepare(**settings)
            jobs = build_with_incomplete()
        trainings = [job for job in jobs if job.rule.name in ("train", "pretrain")]
        if not replace and "PREFIX_PLAN" not in os.environ and (runs := _replaced(trainings)):
            raise ApiError(refusal(runs))
        if not workflow.dryrun:
            _keep(trainings)

    workflow._prepare_dag = prepare_and_remember
    workflow._build_dag = build_and_check


def _reads_what_is_made(jobs: list) -> bool:
    """Whether a job takes an input as it is on the disk while another job of the same plan makes it again."""
    made = {str(file) for job in jobs for file in job.output}
    return any("before_update" in file.flags and str(file) in made for job in jobs for file in job.input)


def _keep(jobs: list) -> None:
    """Give the results of trainings by an earlier version their second names, which Snakemake does not delete."""
    for job in jobs:
        record_path = Path(job.output.record)
        earlier = earlier_training(record_path, Path(job.output[0]))
        if earlier and earlier[1] == Path(job.output[0]):
            for path in map(Path, (*job.output, record_path)):
                if path.exists():
                    link(path, kept(record_path, path))


def _replaced(trainings: list) -> dict[str, list[str]]:
    """The folder of each trained run that these jobs would train with other settings -> what differs."""
    runs = {}
    for job in trainings:
        record_path = Path(job.output.record)
        if earlier := earlier_training(record_path, Path(job.output[0])):
            seed, shared = job.params.get("seed", job.wildcards.get("seed")), _shared(job.params.get("shared", []))
            if found := changed_settings(earlier[0], job.params.architecture, job.params.flags, seed, shared):
                runs[str(record_path.parent)] = found
    return dict(sorted(runs.items()))


def _shared(options: list[str]) -> int:
    """["--gpus", "2", "--nodes", "3"] -> 6"""
    return math.prod(map(int, options[1::2]))
