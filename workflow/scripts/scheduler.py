"""What Snakemake does not do: look at the waiting jobs no more often than needed, answer SIGTERM at any moment, and,
inside of a batch job, hand on the signal that is to end it.

Snakemake (seen in 9.27) limits how many jobs start in a second: after each look at the waiting jobs it sets a timer for
the next look. Each job that ends makes it look once more, and so adds a timer that renews itself for good. After some
hundred jobs it does nothing but look, and takes a core from them. With one timer at a time it does what it is meant to.

Its handler of SIGTERM takes a lock that the thread which it interrupts holds while a job that has ended is wound up:
a SIGTERM at that moment, and it waits for itself for good.

Inside of a batch job it answers SIGTERM by waiting for its command, and tells it nothing; SIGUSR1 ends it. Slurm (with
proctrack/cgroup, its default) sends what is to end a job to this Snakemake alone, so that a training would learn of its
time limit, of scancel or of a preemption when it is killed.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
from collections.abc import Iterator

import psutil
from signal_handlers import handle, is_ignored
from snakemake.exceptions import WorkflowError
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake_interface_executor_plugins.settings import ExecMode


def refuse_what_cannot_run(workflow) -> None:
    """Stop before a run in which Snakemake would wait for ever, because its options let no job begin.

    Raises:
        WorkflowError: no cores, or no jobs.
    """
    if workflow.exec_mode != ExecMode.DEFAULT or workflow.output_settings.dryrun:
        return
    limits = {"cores": workflow.resource_settings.cores, "jobs": workflow.resource_settings.nodes}
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise WorkflowError(f"--{name} {limit}: no job can run; expected a number above 0")


def look_once_at_a_time(_workflow) -> None:
    """For the Snakemake of this process.

    Raises:
        AttributeError: its scheduler has no such timers.
    """
    _ = JobScheduler._schedule_reevalutation  # its spelling
    JobScheduler._schedule_reevalutation = _set_one_timer


def _set_one_timer(scheduler: JobScheduler, delay: float) -> None:
    if getattr(scheduler, "timer_is_set", False):
        return
    scheduler.timer_is_set = True

    def look() -> None:
        scheduler.timer_is_set = False
        scheduler._open_jobs.release()

    timer = threading.Timer(delay, look)
    timer.daemon = True  # a workflow that ended need not wait for it
    timer.start()


def handle_signals(workflow) -> None:
    """SIGTERM makes Snakemake wait for its jobs and end, whatever it is at. In a batch job, SIGTERM and SIGUSR1 end its
    command, which may save something first.
    """
    wait = JobScheduler.exit_gracefully
    in_batch_job = workflow.remote_exec

    def exit_gracefully(self: JobScheduler, *args) -> None:
        if in_batch_job:
            _end_commands()
        _thread.start_new_thread(wait, (self, *args))  # not threading.Thread, which takes locks, too

    # Snakemake installs its handler of SIGTERM later, also where the parent process has set the signal to be ignored.
    JobScheduler.exit_gracefully = signal.SIG_IGN if is_ignored(signal.SIGTERM) else exit_gracefully
    if in_batch_job:
        handle([signal.SIGUSR1], lambda number, _: _end_commands())


def _end_commands() -> None:
    for command in _commands(psutil.Process()):
        with contextlib.suppress(psutil.Error):
            command.send_signal(signal.SIGTERM)


def _commands(process: psutil.Process) -> Iterator[psutil.Process]:
    """What the process runs, by itself or by a shell, which would end at once and leave its command behind.

    Not srun, which would kill what it has started: Slurm tells that itself.
    """
    with contextlib.suppress(psutil.Error):
        for child in process.children():
            if child.name() in ("sh", "bash", "dash"):
                yield from _commands(child)
            elif child.name() != "srun":
                yield child
