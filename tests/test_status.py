"""What is done, running, failed and to do, from the files that a run leaves; and how long it will take."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest
import status
from common import UserError, progress
from conftest import SCRIPTS
from journal import Durations, Job, Journal, Run, event, finish_time, read_run, reason_of_failure, summary
from state import State, clock, describe


def job(number: int, rule: str, needs=(), **values) -> dict:
    values = {"wildcards": {}, "cores": 1, "gpus": 0, "needed": True} | values
    logs, outputs = [f"logs/{number}.log"], [f"results/{number}"]
    return {
        "id": number,
        "rule": rule,
        "what": f"Doing {number}",
        "logs": logs,
        "outputs": outputs,
        "needs": [*needs],
    } | values


def plan(*jobs: dict, **values) -> dict:
    values = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": ["snakemake"],
        "cores": 1,
        "gpus": None,
    } | values
    return event("plan", jobs=[*jobs], **{"history": [], **values})


@pytest.fixture
def alive(tmp_path, monkeypatch):
    """In an empty folder, where this process passes for the Snakemake that runs there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "is_alive", lambda run: not run.end)
    (tmp_path / "logs").mkdir()


@pytest.fixture
def crashed(alive, monkeypatch):
    monkeypatch.setattr(Run, "is_alive", lambda run: False)


def report(capsys, *arguments: str) -> str:
    status.main([*arguments])
    return capsys.readouterr().out


def test_done_running_and_to_do(alive, capsys):
    journal = Journal(plan(job(1, "prepare"), job(2, "train", [1]), job(3, "score", [2]), job(4, "score", [2])))
    for kind, number in (("start", 1), ("done", 1), ("start", 2)):
        journal.write(event(kind, id=number))
    figures = {"n": 150, "initial": 100, "total": 300, "elapsed": 10.0, "unit": "update", "scores": {"loss": "2.31"}}
    with State("logs/2.log") as state:
        state.update(**figures, slurm_job="77")
        text = report(capsys)
    assert "done            1   prepare 1\n" in text and "to do           2   score 2\n" in text
    running = text.partition("running         1   train 1\n")[2].splitlines()
    assert running[0].strip() == "Doing 2"
    assert running[1].strip().startswith("150 of 300 updates (50 %), loss 2.31, 5.0 updates/s, about 0:30 left; 0:0")
    assert running[1].endswith(f"on {socket.gethostname()}; job 77 of the cluster")
    assert text.splitlines()[-1].startswith(
        "[######..................] 1 of 4 jobs done, 1 running, 0:00 elapsed, time left unknown"
    )


def test_the_status_loads_nothing_that_takes_long():
    program = "import sys, status; print({'fairseq', 'matplotlib', 'numpy', 'snakemake', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=SCRIPTS, capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


def test_a_failure_has_its_reason_and_is_the_exit_status(alive, capsys):
    journal = Journal(plan(job(1, "train"), job(2, "score", [1])))
    journal.write(event("start", id=1))
    journal.write(event("failed", id=1, reason="--lr is not a number"))
    journal.write(event("end"))
    with pytest.raises(SystemExit) as ended:
        report(capsys)
    assert ended.value.code == 1
    text = capsys.readouterr().out
    assert "Doing 1\n        --lr is not a number; log: logs/1.log" in text and "ended" in text and "left" not in text
    assert "to do           1   score 1; 1 of them need what failed" in text


def test_neither_a_reason_nor_a_line_of_a_log_steers_the_terminal(alive, capsys):
    steering, spelt = "a\x1b[2J\x9b1Ab", r"a\x1b[2J\x9b1Ab"
    for number, line in ((1, "error: "), (2, "progress: "), (3, "")):
        with open(f"logs/{number}.log", "w") as log:
            log.write(f"{line}{steering}\n")
    with contextlib.suppress(ValueError), State("logs/3.log") as state:
        state.update(n=1, unit=steering)
        raise ValueError(steering)
    assert [reason_of_failure([f"logs/{number}.log"], 0) for number in (1, 3)] == [spelt] * 2
    assert reason_of_failure(["logs/2.log"], 0) == f"progress: {spelt}"
    running = [Job(**job(number, "train"), state="running") for number in (2, 3)]
    assert [job.progress() for job in running] == [spelt, f"1 {spelt}s"]
    journal = Journal(plan(job(1, "train"), job(3, "train")))  # of an earlier version, too
    journal.write(event("start", id=1))
    journal.write(event("failed", id=1, reason=steering))
    journal.write(event("start", id=3))
    with pytest.raises(SystemExit):
        report(capsys)
    text = capsys.readouterr().out
    assert text.count(spelt) == 2 and text.replace("\n", "").isprintable()


def test_after_a_crash_what_ran_is_interrupted_unless_it_says_that_it_ended(crashed, capsys):
    journal = Journal(plan(job(1, "train"), job(2, "train"), job(3, "train"), job(4, "score")))
    for number in (1, 2, 3):
        journal.write(event("start", id=number))
    with State("logs/1.log"):
        pass  # ended after Snakemake
    State("logs/2.log").update(host=socket.gethostname(), pid=os.getpid())  # lives on
    with open("logs/workflow.jsonl", "a") as file:
        file.write('{"event": "do')  # killed while it wrote
    seen = json.loads(report(capsys, "--json"))
    assert [entry["state"] for entry in seen["jobs"]] == ["done", "running", "interrupted", "to do"]
    assert seen["state"] == "interrupted" and seen["counts"]["interrupted"] == 1
    assert "started again it goes on from there" in report(capsys)


def test_of_an_interrupted_run_the_time_stands_still_and_what_ran_is_to_do_again(crashed, capsys):
    begin = time.time() - 5000
    journal = Journal(plan(job(1, "train"), job(2, "score", [1])) | {"time": begin, "history": [["train", {}, 600]]})
    journal.write({"event": "start", "id": 1, "time": begin + 90})
    assert report(capsys).splitlines()[-1].endswith("] 0 of 2 jobs done, 0 running, 1:30 elapsed")
    assert json.loads(report(capsys, "--json"))["seconds_left"] == 600


def test_the_state_of_an_earlier_attempt_is_not_taken_for_this_ones(alive, capsys):
    with State("logs/1.log") as state:
        state.update(n=5, total=10)
    os.utime("logs/1.state.json", (0, 0))
    Journal(plan(job(1, "train"))).write(event("start", id=1))
    assert "5 of 10" not in report(capsys)


def test_nothing_was_run_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report(capsys) == "nothing has been run in this folder yet\n"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "workflow.jsonl").touch()  # Snakemake is about to write it
    assert report(capsys) == "nothing has been run in this folder yet\n"


@pytest.mark.parametrize(
    "text", ["no journal\n", '{"event": "pl', '{"event": "plan", "jobs": [{"id": 1}], "time": 1, "history": []}\n']
)
def test_a_journal_that_is_damaged_or_of_another_version_is_not_none_at_all(alive, text):
    with open("logs/workflow.jsonl", "w") as file:
        file.write(text)
    with pytest.raises(UserError, match="logs/workflow.jsonl is damaged, or of another version"):
        status.main([])


def test_a_journal_that_cannot_be_read(alive):
    os.mkdir("logs/workflow.jsonl")
    with pytest.raises(UserError, match="logs/workflow.jsonl: cannot be read .Is a directory"):
        status.main([])


def test_of_targets_where_nothing_was_run_yet_nothing_has_crashed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # as of a dry run that has ended: its process is no longer there
    monkeypatch.setattr(status, "plan_of", lambda arguments: plan(job(1, "prepare"), job(2, "train", [1]), pid=2**22))
    *_, to_do, empty, last = report(capsys, "results/2").splitlines()
    assert to_do == "to do           2   prepare 1, train 1" and last.endswith("] 0 of 2 jobs done, 0 running")
    assert report(capsys, "results/2").startswith("not started\n\n")
    seen = json.loads(report(capsys, "--json", "results/2"))
    assert seen["state"] == "not started" and seen["begin"] is seen["pid"] is None


@pytest.mark.parametrize(
    "cores, gpus, expected",
    [
        (1, float("inf"), 10 + 20 + 30 + 5),  # one after the other
        (2, float("inf"), 10 + 30 + 5),  # 2 and 3 side by side
        (2, 1, 10 + 20 + 30 + 5),  # both need the GPU
    ],
)
def test_the_time_that_is_left_is_that_of_jobs_that_wait_for_each_other(cores, gpus, expected):
    jobs = [
        Job(**job(1, "a")),
        Job(**job(2, "b", [1], gpus=1)),
        Job(**job(3, "b", [1], gpus=1)),
        Job(**job(4, "c", [2, 3])),
    ]
    assert finish_time(jobs, {1: 10, 2: 20, 3: 30, 4: 5}, cores, gpus) == expected
    jobs[0].state = "running"
    assert finish_time(jobs, {1: 1, 2: 20, 3: 30, 4: 5}, cores, gpus) == expected - 9


def test_a_run_is_complete_when_all_is_done_or_one_has_failed_and_none_is_running():
    run = Run.planned(plan(job(1, "train"), job(2, "train")))
    told = [run.is_complete()]
    for kind, number in (("start", 1), ("done", 1), ("start", 2), ("failed", 2), ("start", 2), ("done", 2)):
        run.apply(event(kind, id=number))
        told.append(run.is_complete())
    assert told == [False, False, False, False, True, False, True]


def test_durations_of_this_run_then_of_earlier_ones_and_of_the_most_alike():
    known = Durations()
    known.add_history("train", {"task": "xsum", "model": "large", "method": "prefix"}, 100)
    known.add("train", {"task": "e2e", "model": "large", "method": "prefix"}, 40)
    known.add("train", {"task": "e2e", "model": "large", "method": "finetune"}, 80)
    assert known.of("train", {"task": "xsum", "model": "large", "method": "prefix"}) == 100
    assert known.of("train", {"task": "dart", "model": "large", "method": "prefix"}) == 40
    assert known.of("train", {"task": "dart", "model": "large", "method": "adapter"}) == 60
    assert known.of("score", {}) is None
    again = Durations()
    for rule, wildcards, seconds in known.summary():
        again.add_history(rule, wildcards, seconds)
    assert again.of("train", {"task": "xsum", "model": "large", "method": "prefix"}) == 100


def test_a_running_training_tells_the_time_of_those_that_wait_and_what_is_unknown_is_said(alive):
    run = Run.planned(plan(job(1, "train"), job(2, "train"), job(3, "score", [2])))
    begin = time.time() - 100
    run.apply({"event": "start", "id": 1, "time": begin})
    with State("logs/1.log") as state:
        state.update(n=100, initial=0, total=300, elapsed=100.0)
        assert run.seconds_left(begin + 100) == (pytest.approx(200 + 300, abs=2), "unknown")
        assert summary(run).endswith(", time left unknown")
        run.durations.add_history("score", {}, 7)
        assert run.seconds_left(begin + 100) == (pytest.approx(200 + 300 + 7, abs=2), "about")
        assert re.search("about 8:2.|about 8:19", summary(run))
    run.apply({"event": "failed", "id": 2, "time": begin + 50})
    assert run.seconds_left(begin + 100)[0] == pytest.approx(200, abs=2)  # what needs the failed one will not run


def test_of_a_job_that_takes_longer_than_expected_the_rest_is_unknown(alive):
    history = [["train", {}, 60], ["score", {}, 7]]
    run = Run.planned(plan(job(1, "train"), job(2, "score", [1]), history=history))
    begin = round(time.time())
    run.apply({"event": "start", "id": 1, "time": begin})
    assert run.seconds_left(begin + 50) == (17, "about")
    assert run.seconds_left(begin + 61) == (7, "at least")
    with State("logs/1.log") as state:
        state.update(n=300, initial=0, total=300, elapsed=100.0)  # it validates, and nobody knows how long
        assert run.seconds_left(begin + 61) == (7, "at least")


def test_light_jobs_do_not_make_the_time_left_unknown(alive):
    """Of a first run the tables and plots come last, and nothing is known of them until then."""
    history = [["train", {}, 60]]
    run = Run.planned(plan(job(1, "train"), job(2, "table", [1], light=True), history=history))
    begin = round(time.time())
    run.apply({"event": "start", "id": 1, "time": begin})
    assert run.seconds_left(begin + 20) == (45, "about")
    run.jobs[2].light = False
    assert run.seconds_left(begin + 20) == (40, "unknown")


def test_a_run_in_which_nothing_can_begin_says_so_in_place_of_the_time_left():
    run = Run.planned(plan(job(1, "train"), job(2, "score", [1]), history=[["train", {}, 60], ["score", {}, 7]]))
    run.last = time.time() - 90
    assert summary(run).endswith("no job has run for 1:30; do --cores and --resources allow one?")
    run.apply({"event": "start", "id": 1, "time": run.last})
    assert "no job has run" not in summary(run)  # it may take hours
    run.apply({"event": "failed", "id": 1, "time": run.last})
    assert "no job has run" not in summary(run)  # the other one needs it


def test_durations_of_resumed_jobs_and_of_touched_files_are_not_learnt(alive):
    begin = round(time.time())
    for number, resumed in ((1, 80), (2, None)):
        with State(f"logs/{number}.log") as state:
            state.update(resumed_from=resumed)
    for touched, learnt in ((False, [["train", {}, 20]]), (True, [])):
        run = Run.planned(plan(job(1, "train"), job(2, "train"), touched=touched))
        for number in (1, 2):
            run.apply({"event": "start", "id": number, "time": begin})
            run.apply({"event": "done", "id": number, "time": begin + 10 * number})
        assert run.durations.summary() == learnt


def test_the_next_run_knows_the_durations_of_the_last(alive):
    journal = Journal(plan(job(1, "train")))
    journal.write({"event": "start", "id": 1, "time": 1000})
    journal.write({"event": "done", "id": 1, "time": 1060})
    assert read_run().durations.summary() == [["train", {}, 60]]


def test_jobs_of_the_workflow_say_how_far_they_are_in_lines(monkeypatch, capsys):
    monkeypatch.setenv("PREFIX_PROGRESS", "lines")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress(None, "valid", total=400, unit=" examples") as bar:
        bar.update(100)
        bar.start_t -= 10
        assert capsys.readouterr().err == ""
        now[0] = 31
        bar.update(100)
        bar.refresh()
    line, *more = capsys.readouterr().err.splitlines()
    assert line == "progress: valid: 200 of 400 examples (50 %), 10.0 examples/s, about 0:20 left" and not more
    assert list(progress(range(1000), "count")) == list(range(1000)) and capsys.readouterr().err == ""
    with progress(None, "count", total=10) as bar:
        for _ in range(10):
            bar.update()
        assert bar.n == 10


def test_how_far_a_job_is_in_words():
    assert describe({}) == "starting"
    assert describe({"n": 3, "unit": "update", "scores": {"loss": "2.5"}}) == "3 updates, loss 2.5"
    megabytes = {"n": 2e6, "total": 8e6, "unit": "B", "elapsed": 4.0}
    assert describe(megabytes) == "2.0 of 8.0 MB (25 %), 0.5 MB/s, about 0:12 left"
    assert [clock(seconds) for seconds in (7, 754, 3723, 97323)] == ["0:07", "12:34", "1:02:03", "1 d 03:02:03"]
