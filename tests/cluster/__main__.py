"""The workflow as batch jobs of a real Slurm, disturbed, beside a local run: `make test-cluster`.

A small version of the demo runs locally, undisturbed, and then through profiles/slurm on two nodes (slurm.py), where
jobs are cancelled, preempted, run out of memory and time, a node dies, and the workflow itself is killed. Both have to
end with the same bytes. Also shown: what Slurm was asked for by each rule, a training across both nodes, and
profiles/pbs, with commands of PBS that hand the jobs to Slurm.

Every run takes place in a temporary folder; --keep DIR keeps it, --full takes the demo in its real size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import slurm
import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
STUBS = REPOSITORY / "tests" / "stubs"
SCRIPTS = REPOSITORY / "workflow" / "scripts"
TABLE = "results/demo_table/bleu.txt"
# Of so small a cluster: it answers at once, and has no database of finished jobs.
HERE = "--slurm-status-command squeue --slurm-init-seconds-before-status-checks 3 --latency-wait 10 --jobs 3".split()
REQUEUED = "queued again"
RECORDED_TIMES = ("run.json", "generate.json", "costs.txt", "costs.tsv")  # never the same twice


def main(argv: list[str]) -> int:
    args = parse_args(argv)
    try:
        if not slurm.is_inside():
            slurm.install()
            return slurm.run_inside([str(Path(__file__).parent), *argv])
        folder = args.keep or Path(tempfile.mkdtemp(prefix="test-cluster."))
        folder.mkdir(parents=True, exist_ok=True)
        daemons = folder / "slurm"
        daemons.mkdir()
        nodes = slurm.start(daemons)
    except slurm.Unavailable as reason:
        print(f"skipped: {reason}")
        return 0
    checks = Checks()
    try:
        run_all(folder.resolve(), Cluster(daemons, nodes), checks, args.full)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return checks.report()


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the demo in its real size (30 minutes on two cores)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs, and Slurm's logs, in this new folder")
    return parser.parse_args(argv)


def run_all(folder: Path, cluster: Cluster, checks: Checks, full: bool) -> None:
    local, batch = folder / "local", folder / "batch"
    for each in (local, batch):
        configure(each, full)
    say("the same run, locally and undisturbed")
    warm = [sys.executable, SCRIPTS / "warm.py"]
    result = subprocess.run([*warm, *snakemake("--cores", "2")], cwd=local, env=environment())
    checks.add("a local run ends well", result.returncode == 0, f"exit status {result.returncode}")
    say("through Slurm, disturbed")
    run_disturbed(batch, cluster, checks)
    compare(local, batch, checks)
    show_requests(cluster.seen)
    train_across_nodes(folder / "nodes", local, checks)
    run_through_pbs(folder / "pbs", local, checks)
    request_gpus(folder / "gpus", cluster, checks)


# Runs -----------------------------------------------------------------------------------------------------------------


def configure(folder: Path, full: bool) -> None:
    """The demo's configuration, one task with two seeds; in a size that takes about a minute."""
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    study = {
        "tasks": ["demo_table"],
        "models": ["demo_bart"],
        "methods": ["base", "prefix", "finetune"],
        "seeds": [1, 2],
    }
    if not full:
        path = folder / "configs" / "models" / "demo_bart.yaml"
        model = yaml.safe_load(path.read_text())
        model["base"]["pretrained"]["documents"]["count"] = 1600
        changes = {"max-update": 80, "warmup-updates": 10, "save-interval-updates": 10, "log-interval": 5}
        model["base"]["pretrained"]["train"] |= changes
        model["train"] |= {"max-update": 120, "log-interval": 5, "save-interval-updates": 10}
        path.write_text(yaml.safe_dump(model))
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))


def snakemake(*arguments: str) -> list[str | Path]:
    return [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", TABLE, *arguments] + [
        "--configfile",
        "mine.yaml",
    ]


def through_slurm(*arguments: str) -> list[str | Path]:
    return snakemake("--profile", str(REPOSITORY / "profiles" / "slurm"), *HERE, *arguments)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


# Slurm ----------------------------------------------------------------------------------------------------------------


class Cluster:
    """The jobs as Slurm sees them; `seen` keeps the last that was seen of each."""

    def __init__(self, folder: Path, nodes: dict[str, subprocess.Popen]) -> None:
        self.folder, self.nodes = folder, nodes
        self.suspended: list[tuple[str, psutil.Process]] = []
        self.seen: dict[str, dict[str, str]] = {}

    def jobs(self) -> list[dict[str, str]]:
        """All jobs with the fields of `scontrol show job`, and `rule` and `run` besides."""
        lines = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True).stdout.splitlines()
        found = [dict(re.findall(r"([\w/:]+)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        for job in found:
            job["rule"], _, job["run"] = job.get("Comment", "").removeprefix("rule_").partition("_wildcards_")
            self.seen[f"{job['JobId']}.{job['Restarts']}"] = job
        return found

    def states_of(self, job_id: str) -> set[str]:
        """Its last state in each of its lives, and whether it had more than one."""
        lives = [job for job in self.seen.values() if job["JobId"] == job_id]
        return {job["JobState"] for job in lives} | ({REQUEUED} if int(lives[-1]["Restarts"]) else set())

    def resume(self, jobs: list[dict[str, str]]) -> None:
        """The processes that stand still, once their job is to end."""
        running = {job["JobId"] for job in jobs if job["JobState"] == "RUNNING"}
        for job_id, process in [each for each in self.suspended if each[0] not in running]:
            self.suspended.remove((job_id, process))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def restore_power(self) -> None:
        """To a node that the controller has found to be down."""
        states = slurm.states()
        for node, process in self.nodes.items():
            if process.poll() is not None and "down" in states.get(node, ""):
                self.nodes[node] = slurm.start_node(self.folder, node)


# Faults ---------------------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """Something that happens to a running job of a rule, for a training once it has saved a checkpoint.

    `state` is what Slurm says of the job afterwards; a job that was queued again keeps its number.
    """

    name: str
    rule: str
    folder: str
    happen: Callable[[Cluster, dict[str, str], subprocess.Popen], None]
    state: str
    job_id: str = ""

    def victim(self, root: Path, jobs: list[dict[str, str]]) -> dict[str, str] | None:
        """The job that it happens to, if that is there."""
        run = "_".join(self.folder.split("/")[1:])
        for job in jobs:
            if job["JobState"] == "RUNNING" and job["rule"] == self.rule and job["run"] == run:
                return job if any(root.glob(f"{self.folder}/work-*/checkpoint_last.pt")) else None
        return None


def cancel(_: Cluster, job: dict[str, str], __: subprocess.Popen) -> None:
    subprocess.run(["scancel", job["JobId"]], check=True)


def preempt(_: Cluster, job: dict[str, str], __: subprocess.Popen) -> None:
    subprocess.run(["scontrol", "requeue", job["JobId"]], check=True)


def end_time(cluster: Cluster, job: dict[str, str], _: subprocess.Popen) -> None:
    """The shortest limit is a minute: until then the training stands still."""
    subprocess.run(["scontrol", "update", f"JobId={job['JobId']}", "TimeLimit=1"], check=True)
    for process in psutil.process_iter(["cmdline"]):
        if any(part.startswith("bases/demo_bart/work-") for part in process.info["cmdline"] or []):
            process.suspend()
            cluster.suspended.append((job["JobId"], process))


def cut_power(cluster: Cluster, job: dict[str, str], _: subprocess.Popen) -> None:
    cluster.nodes[job["NodeList"]].kill()


def kill_workflow(_: Cluster, __: dict[str, str], process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)


RUNS = "runs/demo_table/demo_bart"
FAULTS = (
    Fault("a pretraining at its time limit", "pretrain", "bases/demo_bart", end_time, "TIMEOUT"),
    Fault("the workflow killed while it trains", "train", f"{RUNS}/prefix/1", kill_workflow, "CANCELLED"),
    Fault("a node that loses power during a training", "train", f"{RUNS}/prefix/2", cut_power, REQUEUED),
    Fault("a training that is queued again", "train", f"{RUNS}/finetune/1", preempt, REQUEUED),
    Fault("a cancelled training", "train", f"{RUNS}/finetune/2", cancel, "CANCELLED"),
)
# Less than what the job takes, until its third attempt; whether it is killed is seen from Slurm's record of it.
LITTLE_MEMORY = ["--set-resources", "binarise_pretraining:mem_mb=100*attempt**2"]


def run_disturbed(root: Path, cluster: Cluster, checks: Checks) -> None:
    """Run through Slurm while the faults happen, each once; a workflow that was killed is started again."""
    waiting = list(FAULTS)
    while True:
        process = subprocess.Popen(through_slurm(*LITTLE_MEMORY), cwd=root, env=environment())
        while process.poll() is None:
            time.sleep(0.5)
            cluster.restore_power()
            jobs = cluster.jobs()
            cluster.resume(jobs)
            for fault in waiting:
                if job := fault.victim(root, jobs):
                    say(f"{fault.name}: job {job['JobId']} on {job['NodeList']}")
                    waiting.remove(fault)
                    fault.job_id = job["JobId"]
                    fault.happen(cluster, job, process)
                    break
        if process.returncode != -signal.SIGKILL:
            break
        subprocess.run([sys.executable, SCRIPTS / "unlock.py"], cwd=root, check=True)
    checks.add("the disturbed run ends well", process.returncode == 0, f"exit status {process.returncode}")
    for fault in FAULTS:
        if fault in waiting:
            checks.add(fault.name, False, "it did not come to it")
        else:
            states = cluster.states_of(fault.job_id)
            checks.add(f"{fault.name}, as Slurm says", fault.state in states, ", ".join(sorted(states)))
            checks.add(fault.name, *went_on(root, fault))
    killed = [job for job in cluster.seen.values() if job["rule"] == "binarise_pretraining"]
    said = ", ".join(f"{job['MinMemoryNode']} {job['JobState']}" for job in killed)
    ends = [job["JobState"] for job in killed]
    checks.add("a job that runs out of memory gets more", ends[-1] == "COMPLETED" and len(ends) > 1, said)


def went_on(root: Path, fault: Fault) -> tuple[bool, str]:
    """Whether a training went on: from the update at which it was told to end, which is none that it saves anyway.

    Where the power is cut nobody is told: from its last checkpoint, whichever that is.
    """
    name = "pretrain/run.json" if fault.rule == "pretrain" else "run.json"
    record = json.loads((root / fault.folder / name).read_text())
    every = int(record["flags"][record["flags"].index("--save-interval-updates") + 1])
    updates = record["resumed_from"]
    told = fault.happen is not cut_power
    went_on = any(update % every for update in updates) if told else bool(updates)
    return went_on, f"went on from update {', '.join(map(str, updates))}" if updates else "began anew"


# Checks ---------------------------------------------------------------------------------------------------------------


class Checks:
    """What was to be seen, and whether it was."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, bool, str]] = []

    def add(self, name: str, passed: bool, seen: str) -> None:
        self._rows.append((name, passed, seen))
        say(f"{'passed' if passed else 'FAILED'}: {name} ({seen})")

    def report(self) -> int:
        """Print all; returns the exit status."""
        failed = sum(not passed for _, passed, _ in self._rows)
        print()
        for name, passed, seen in self._rows:
            print(f"{'passed' if passed else 'FAILED'}  {name}: {seen}")
        print(f"\n{len(self._rows) - failed} passed, {failed} failed")
        return 1 if failed else 0


def compare(local: Path, batch: Path, checks: Checks) -> None:
    """Every file of data, bases, runs and results; of checkpoints, which hold times, the tensors."""
    files = {folder: set(outcomes(folder)) for folder in (local, batch)}
    missing = sorted(map(str, files[local] ^ files[batch]))
    checks.add("both runs leave the same files", not missing, f"{len(files[local])} files; not in both: {missing[:5]}")
    different, tensors = [], 0
    for name in sorted(files[local] & files[batch]):
        if name.suffix == ".pt":
            tensors += 1
            same = same_tensors(local / name, batch / name)
        elif name.name == "curve.tsv":  # its last column is the speed
            rows = [[line.rpartition("\t")[0] for line in open(folder / name)] for folder in (local, batch)]
            same = rows[0] == rows[1]
        else:
            same = (local / name).read_bytes() == (batch / name).read_bytes()
        if not same:
            different.append(str(name))
    seen = f"{len(files[local]) - tensors} files byte for byte, {tensors} checkpoints by their tensors"
    checks.add("and these are the same", not different, f"{seen}; different: {different[:5]}")


def outcomes(folder: Path) -> Iterator[Path]:
    for top in ("data", "bases", "runs", "results"):
        for path in (folder / top).rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)  # notes, what a kill has left
            if path.is_file() and path.name not in RECORDED_TIMES and not hidden:
                yield path.relative_to(folder)


def same_tensors(one: Path, other: Path) -> bool:
    with torch.serialization.safe_globals([argparse.Namespace]):
        first, second = (torch.load(path, weights_only=True)["model"] for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def show_requests(seen: dict[str, dict[str, str]]) -> None:
    """A line for each rule and attempt: what Slurm was asked for."""
    print(f"\n{'rule':<24}{'nodes':>6}{'tasks':>6}{'cpus':>6}{'memory':>9}{'time':>13}  gpus")
    rows = dict.fromkeys(tuple(request(job)) for job in seen.values())
    for rule, nodes, tasks, cpus, memory, limit, gpus in sorted(rows):
        print(f"{rule:<24}{nodes:>6}{tasks:>6}{cpus:>6}{memory:>9}{limit:>13}  {gpus}")
    print(flush=True)


def request(job: dict[str, str]) -> list[str]:
    gpus = job.get("TresPerJob") or job.get("TresPerNode") or "-"
    return [job[key] for key in ("rule", "NumNodes", "NumTasks", "NumCPUs", "MinMemoryNode", "TimeLimit")] + [gpus]


def train_across_nodes(root: Path, local: Path, checks: Checks) -> None:
    """A training shared by two processes ends with the same prefix on two nodes as on one."""
    prefixes = []
    for name, resources in (("one", {"gpus": 2}), ("two", {"nodes": 2})):
        folder = root / name
        begin_with_data(folder, local, methods=["prefix"], seeds=[1], overrides={"resources": resources})
        result = subprocess.run(through_slurm(), cwd=folder, env=environment())
        checks.add(f"a training with {resources} ends well", result.returncode == 0, f"exit status {result.returncode}")
        prefixes.append(folder / "runs" / "demo_table" / "demo_bart" / "prefix" / "1" / "prefix.safetensors")
    if all(map(Path.exists, prefixes)):
        same = prefixes[0].read_bytes() == prefixes[1].read_bytes()
        checks.add("two processes on one node and on two train the same prefix", same, "byte for byte")


def run_through_pbs(root: Path, local: Path, checks: Checks) -> None:
    """One run of those that the local workflow has made, as jobs of another batch system."""
    begin_with_data(root, local, methods=["prefix"], seeds=[1])
    path = os.pathsep.join([str(Path(__file__).parent / "pbs"), os.environ["PATH"]])
    command = snakemake("--profile", str(REPOSITORY / "profiles" / "pbs"), "--latency-wait", "10")
    result = subprocess.run(command, cwd=root, env=environment(PATH=path))
    checks.add("profiles/pbs ends well", result.returncode == 0, f"exit status {result.returncode}")
    files = [f"runs/demo_table/demo_bart/prefix/1/{name}" for name in ("prefix.safetensors", "generate.txt")]
    same = all((root / file).exists() and (root / file).read_bytes() == (local / file).read_bytes() for file in files)
    checks.add("and with the local run's prefix and hypotheses", same, "byte for byte")


def begin_with_data(folder: Path, local: Path, **study: object) -> None:
    """A folder with the configuration, data and base of the local run, but for changes to what is studied."""
    shutil.copytree(local, folder, ignore=shutil.ignore_patterns("runs", "results"))
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | study))


def request_gpus(root: Path, cluster: Cluster, checks: Checks) -> None:
    """What a model of BART-large's size asks for: stubs in the place of fairseq, and the GPUs are made up, too."""
    configure(root, full=False)
    path = root / "configs" / "models" / "demo_bart.yaml"
    path.write_text(path.read_text().replace("architecture: bart_tiny", "architecture: bart_large"))
    study = yaml.safe_load((root / "mine.yaml").read_text())
    shared = {"prefix": {"gpus": 2}, "finetune": {"gpus": 2, "nodes": 2}}
    overrides = {"methods": {method: {"resources": resources} for method, resources in shared.items()}}
    (root / "mine.yaml").write_text(yaml.safe_dump(study | {"seeds": [1], "overrides": overrides}))
    before = set(cluster.seen)
    # The stubs cannot train together: what is looked at is the request, and a generation that one GPU is enough for.
    process = subprocess.Popen(
        through_slurm("--retries", "0"),
        cwd=root,
        env=environment(PYTHONPATH=str(STUBS)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        time.sleep(0.5)
        cluster.jobs()
    jobs = {key: job for key, job in cluster.seen.items() if key not in before}
    show_requests(jobs)
    requests = {
        (job["rule"], name[-2] if len(name := job["run"].rstrip("_").split("_")) > 1 else ""): request(job)
        for job in jobs.values()
    }
    expected = {
        ("generate", "base"): ["generate", "1", "1", "8", "12872M", "12:00:00", "gres:gpu:1"],
        ("train", "prefix"): ["train", "1", "1", "16", "32240M", "1-00:00:00", "gres:gpu:2"],
        ("train", "finetune"): ["train", "2", "4", "32", "32240M", "1-00:00:00", "gres:gpu:2"],
    }
    found = {key: requests.get(key) for key in expected}
    checks.add("Slurm was asked for GPUs as the methods say", found == expected, str(list(found.values())))


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
