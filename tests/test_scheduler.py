"""Snakemake's scheduler looks at the waiting jobs once per delay, however many asked for it."""

import threading

import pytest
import scheduler
from snakemake.scheduling.job_scheduler import JobScheduler


@pytest.fixture
def timers(monkeypatch):
    """The timers that are set; none of them runs by itself."""
    started = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: started.append(timer))
    return started


def test_one_timer_is_set_at_a_time_and_the_next_when_it_went_off(timers, monkeypatch):
    monkeypatch.setattr(JobScheduler, "_schedule_reevalutation", JobScheduler._schedule_reevalutation)
    scheduler.look_once_at_a_time()
    snakemake = JobScheduler.__new__(JobScheduler)
    snakemake._open_jobs = threading.Semaphore(0)
    for _ in range(5):
        snakemake._schedule_reevalutation(1)
    assert len(timers) == 1 and timers[0].interval == 1 and timers[0].daemon
    timers[0].function()
    assert snakemake._open_jobs.acquire(blocking=False)
    snakemake._schedule_reevalutation(1)
    assert len(timers) == 2
