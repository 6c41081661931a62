"""Keep Snakemake from looking at the waiting jobs ever more often.

Snakemake (seen in 9.27) limits how many jobs start in a second: after each look at the waiting jobs it sets a timer for
the next look. Each job that ends makes it look once more, and so adds a timer that renews itself for good. After some
hundred jobs it does nothing but look, and takes a core from them. With one timer at a time it does what it is meant to.
"""

from __future__ import annotations

import threading

from snakemake.scheduling.job_scheduler import JobScheduler


def look_once_at_a_time() -> None:
    """For the Snakemake of this process; of a version whose scheduler has no such timers nothing is changed."""
    if hasattr(JobScheduler, "_schedule_reevalutation"):  # its spelling
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
