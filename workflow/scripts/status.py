"""What is done, running, failed and still to do, told from files alone: of the last run, or of given targets.

    python workflow/scripts/status.py [--watch] [--json] [targets and options as for snakemake]

Works beside a running workflow, on another machine that sees the folder, and after a crash. With targets or options
it asks `snakemake --dry-run` what they need, which takes as long as that does. Exit status 1 if something has failed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import UserError, printable, run_main
from journal import JOURNAL, Job, Run, process_is_alive, read_run, summary
from state import clock

PROJECT = Path(__file__).resolve().parents[2]
STATES = ("done", "running", "interrupted", "failed", "to do")
WATCH_SECONDS = 2
ENDS = ("not started", "ended", "interrupted")  # states of a run that nothing more comes of
RUNS = {True: "running", False: "interrupted", None: "running, as far as can be told from here"}


def main(argv: list[str]) -> None:
    args, snakemake = parse_args(argv)
    plan = plan_of(snakemake) if snakemake else None
    while True:
        run, text = told(plan, args.json)
        if not args.watch:
            break
        print(f"\x1b[H\x1b[J{fitted(text)}", flush=True)
        time.sleep(WATCH_SECONDS)
    print(text)
    if not args.json and (broken := broken_presets()):
        print("\nPresets that no run can use:", *map(printable, broken), sep="\n    ")
    if run and run.of_state("failed"):
        sys.exit(1)


def broken_presets() -> list[str]:
    """What is wrong with each preset that no run can use, of this folder and of the project."""
    from config import Configuration  # takes as long as all the rest

    return Configuration(None, "", dict.fromkeys([Path("configs").resolve(), PROJECT / "configs"])).broken()


def told(plan: dict | None, for_programs: bool = False) -> tuple[Run | None, str]:
    """The last run, and what is to be said of it.

    Raises:
        UserError: its journal is damaged, of another version, or cannot be read.
    """
    try:
        run = look(plan)
        if for_programs:
            return run, json.dumps(as_json(run) | {"broken_presets": broken_presets()}, indent=2)
        return run, report(run)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{JOURNAL} is damaged, or of another version ({error}); the next run of the workflow writes it anew"
        ) from None


def parse_args(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")
    how.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_known_args(argv)


def plan_of(arguments: list[str]) -> dict:
    """What Snakemake would do for these targets and options."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile"), "--dry-run"]
        result = subprocess.run(
            [*command, "--quiet", "rules", "--cores", "1", *arguments],
            env={**os.environ, "PREFIX_PLAN": str(path)},
            capture_output=True,
            text=True,
        )
        if result.returncode or not path.exists():
            said = (result.stdout.strip() or result.stderr.strip()).splitlines()
            start = next((n for n, line in enumerate(said) if re.search(r"Error|Exception|error", line)), 0)
            raise UserError("snakemake --dry-run failed: " + " ".join(" ".join(said[start:]).split()))
        return json.loads(path.read_text(encoding="utf-8"))


def look(plan: dict | None) -> Run | None:
    """The last run as it is now; with a plan, what it has made of that."""
    run = read_run()
    alive = run.is_alive() if run else False
    for job in run.of_state("running") if run else []:
        report = job.report()
        if alive is False and "end" in report:  # Snakemake did not live to see it
            job.state, job.end = "failed" if report["error"] else "done", report["end"]
            job.reason = report["error"] or ""
        elif alive is False and not (report and process_is_alive(report["host"], report["pid"])):
            job.state = "interrupted"
    if plan is None:
        return run
    wanted = Run.planned({**plan, "time": run.plan["time"] if run else plan["time"]})
    known = {job.outputs[0]: job for job in run.jobs.values() if job.outputs} if run else {}
    for job in wanted.jobs.values():
        before = known.get(job.outputs[0]) if job.outputs else None
        if not job.needed:  # up to date: counted as done here
            job.needed, job.state = True, "done"
        elif before and before.state in ("running", "failed", "interrupted"):
            job.state, job.begin, job.end, job.reason = before.state, before.begin, before.end, before.reason
    if run:
        wanted.durations, wanted.end, wanted.last = run.durations, run.end, run.last
        wanted.plan |= {name: run.plan[name] for name in ("host", "pid", "cores", "gpus", "command")}
    else:  # what the plan says of itself is the dry run's
        wanted.plan |= dict.fromkeys(("host", "pid", "command", "time"))
    return wanted


def state_of(run: Run) -> str:
    """Of the run as a whole."""
    if run.plan["time"] is None:
        return "not started"
    return "ended" if run.end else RUNS[run.is_alive()]


def report(run: Run | None) -> str:
    """For a person."""
    if run is None:
        return "nothing has been run in this folder yet"
    outcome = state_of(run)
    lines = ["not started", ""]
    if outcome != "not started":
        begin = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.plan["time"]))
        lines = [f"run of {begin} on {run.plan['host']}, process {run.plan['pid']}: {outcome}", ""]
    for state in STATES:
        jobs = run.of_state(state)
        if not jobs:
            continue
        rules = Counter(job.rule for job in jobs)
        counted = ", ".join(f"{rule} {count}" for rule, count in rules.items())
        blocked = sum(job.id in run.blocked() for job in jobs) if state == "to do" else 0
        counted += f"; {blocked} of them need what failed" if blocked else ""
        lines.append(f"{state:<12} {len(jobs):>4}   {counted}")
        if state in ("running", "interrupted", "failed"):
            lines += [f"    {line}" for job in jobs for line in detail(job)]
    if outcome == "interrupted":
        lines += ["", "Snakemake was killed or has crashed; started again it goes on from there."]
    return "\n".join([*lines, "", summary(run, bar=True, over=outcome in ENDS)])


def detail(job: Job) -> list[str]:
    """Two lines about a job that is running, or has ended otherwise than it should."""
    facts = [job.progress(), job.reason]
    if job.state == "running":
        facts.append(f"{clock(time.time() - job.begin)} so far")
    own = job.report()
    facts += [f"on {own['host']}"] if "host" in own else []
    facts += [f"job {number} of the cluster"] if (number := cluster_job(job, own)) else []
    if job.state != "running" and job.logs and job.logs[0] not in job.reason:
        facts.append(f"log: {job.logs[0]}")
    return [printable(job.what), "    " + printable("; ".join(filter(None, facts)))]


def cluster_job(job: Job, own: dict) -> str | None:
    """The number that the batch system gave it: what the job says, else what Snakemake noted when it sent it off."""
    if own.get("slurm_job") or not job.outputs:
        return own.get("slurm_job")
    name = base64.urlsafe_b64encode(job.outputs[0].encode()).decode()
    with contextlib.suppress(OSError, ValueError):
        return json.loads((Path(".snakemake/incomplete") / name).read_text(encoding="utf-8"))["external_jobid"]
    return None


def as_json(run: Run | None) -> dict:
    """For programs: the run, how many jobs are in which state, and every job."""
    if run is None:
        return {"state": None, "counts": dict.fromkeys(STATES, 0), "jobs": []}
    left, kind = (0.0, "about") if run.end else run.seconds_left(time.time())
    return {
        "state": state_of(run),
        **{name: run.plan[name] for name in ("host", "pid", "command")},
        "begin": run.plan["time"],
        "end": run.end or None,
        "seconds_left": round(left),
        "seconds_left_is_all": kind == "about",
        "counts": {state: len(run.of_state(state)) for state in STATES},
        "jobs": [
            {
                **{name: getattr(job, name) for name in ("rule", "what", "state", "reason", "logs", "outputs")},
                "begin": job.begin or None,
                "end": job.end or None,
                "report": job.report(),
            }
            for job in run.jobs.values()
            if job.needed
        ],
    }


def fitted(text: str) -> str:
    """As much of it as the terminal holds, lines and columns."""
    size = shutil.get_terminal_size()
    lines = [line[: size.columns] for line in text.split("\n")]
    if len(lines) >= size.lines:
        lines = [*lines[: size.lines - 4], "...", *lines[-2:]]
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run_main(main)
