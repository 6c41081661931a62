"""Snakemake's scheduler: one look at the waiting jobs per delay, however many asked for it; SIGTERM at any moment."""

import threading
from types import SimpleNamespace

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
    scheduler.look_once_at_a_time(None)
    snakemake = JobScheduler.__new__(JobScheduler)
    snakemake._open_jobs = threading.Semaphore(0)
    for _ in range(5):
        snakemake._schedule_reevalutation(1)
    assert len(timers) == 1 and timers[0].interval == 1 and timers[0].daemon
    timers[0].function()
    assert snakemake._open_jobs.acquire(blocking=False)
    snakemake._schedule_reevalutation(1)
    assert len(timers) == 2


def test_a_signal_does_not_wait_for_the_lock_that_the_thread_it_interrupts_holds(monkeypatch):
    monkeypatch.setattr(JobScheduler, "exit_gracefully", JobScheduler.exit_gracefully)
    scheduler.handle_signals(SimpleNamespace(remote_exec=False))
    snakemake = JobScheduler.__new__(JobScheduler)
    snakemake._open_jobs, snakemake._lock, snakemake._user_kill = threading.Semaphore(0), threading.Lock(), None
    snakemake._lock.acquire()
    handler = threading.Thread(target=snakemake.exit_gracefully, args=(15, None), daemon=True)
    handler.start()
    handler.join(30)
    assert not handler.is_alive() and snakemake._user_kill is None
    snakemake._lock.release()
    assert snakemake._open_jobs.acquire(timeout=30) and snakemake._user_kill == "graceful"
