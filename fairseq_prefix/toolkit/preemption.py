"""On SIGTERM or SIGUSR1 save the training, and exit with 128 plus the signal's number.

Batch systems send these signals before they end a job. The training saves `checkpoint_last.pt` as of the current
update and skips validation: an extra one could change which checkpoint is best. The same command resumes from there and
ends with the same parameters.

The signals are handled from `checkpoint_utils.load_checkpoint` on. Before, there is nothing to save, and signals have
their usual effect. `watch_training`, `end_after_saving` and `forward_signals` each wrap one function of fairseq;
hooks.py installs them.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils

from ..errors import UsageError
from .training_options import concerns_the_plugin

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def watch_training(load: Callable) -> Callable:
    """Return fairseq's `load_checkpoint`, with which a training starts, handling the signals from then on."""

    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **arguments):
        saves = not (cfg.no_save or cfg.no_last_checkpoints)
        if saves and threading.current_thread() is threading.main_thread():
            Preemption(trainer)
        # fairseq would send the checkpoint from the first process to the others as a pickle that torch.load refuses.
        cfg.load_checkpoint_on_all_dp_ranks = True
        return load(cfg, trainer, **arguments)

    return load_checkpoint


def end_after_saving(save: Callable) -> Callable:
    """Return fairseq's `save_checkpoint`, ending the training afterwards if a signal was received."""

    @functools.wraps(save)
    def save_checkpoint(cfg, trainer, *arguments):
        path = save(cfg, trainer, *arguments)
        if Preemption.signal_heeded:
            _end(trainer, Preemption.signal_heeded)
        return path

    return save_checkpoint


def forward_signals(call: Callable) -> Callable:
    """Return fairseq's `call_main`, forwarding signals to the processes that it starts, and exiting with their status.

    Raises:
        UsageError: (when called) checkpoints are to be written in the background.
    """

    @functools.wraps(call)
    def call_main(cfg, main, **arguments):
        later = getattr(getattr(cfg, "checkpoint", None), "write_checkpoints_asynchronously", False)
        if later and concerns_the_plugin(cfg):
            raise UsageError(
                "--write-checkpoints-asynchronously is not supported: fairseq then skips copying, so "
                "checkpoint_last.pt may be missing; leave it out"
            )
        if threading.current_thread() is threading.main_thread():
            _handle(_forward)
        try:
            call(cfg, main, **arguments)
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code - 128 in SIGNALS:
                raise SystemExit(error.exit_code) from None
            raise

    return call_main


class Preemption:
    """Handle the signals for one trainer: finish the update, save, exit."""

    watching = False  # whether this process, or the one that it was forked from, has a `Preemption`
    signal_heeded = 0  # set in the last update

    def __init__(self, trainer) -> None:
        self._trainer = trainer
        self._iterator: Any = None  # of the current epoch
        self._signal = 0  # as received by this process
        self._train_step, self._get_train_iterator = trainer.train_step, trainer.get_train_iterator
        trainer.train_step, trainer.get_train_iterator = self._step, self._next_iterator
        Preemption.watching = True
        _handle(self._note)

    def _note(self, number, _frame) -> None:
        self._signal = number

    def _next_iterator(self, *args, **kwargs):
        self._iterator = self._get_train_iterator(*args, **kwargs)
        return self._iterator

    def _step(self, *args, **kwargs):
        outcome = self._train_step(*args, **kwargs)
        number = self._agreed()
        if number and not self._is_due():
            self._stop()
            Preemption.signal_heeded = number
        return outcome

    def _agreed(self) -> int:
        """Return the signal that any of the processes received, or 0: all end after the same update."""
        if self._trainer.data_parallel_world_size == 1:
            return self._signal
        number = torch.tensor([self._signal], device=self._trainer.device)
        distributed_utils.all_reduce(number, self._trainer.data_parallel_process_group, op="max")
        return int(number)

    def _is_due(self) -> bool:
        """Return whether fairseq may validate, save or end after this update; if so, the next update is the last."""
        cfg, updates = self._trainer.cfg, self._trainer.get_num_updates()
        intervals = (cfg.checkpoint.save_interval_updates, cfg.dataset.validate_interval_updates)
        return (
            self._iterator.end_of_epoch()
            or 0 < (cfg.optimization.max_update or 0) <= updates
            or any(interval > 0 and updates % interval == 0 for interval in intervals)
        )

    def _stop(self) -> None:
        """Have fairseq log this update, and save without validation, as if its time limit were reached."""
        cfg = self._trainer.cfg
        cfg.dataset.disable_validation = True
        cfg.optimization.stop_time_hours = 1e-9


def _handle(handler) -> None:
    """Install a handler for the signals, except for those that the parent process has set to be ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end(trainer, number: int) -> None:
    if trainer.data_parallel_world_size > 1:  # the first process to exit would have the others killed
        torch.distributed.barrier(distributed_utils.get_global_group())
    name, updates = signal.Signals(number).name, trainer.get_num_updates()
    logger.info("interrupted by %s after %d updates; they are saved", name, updates)
    raise SystemExit(128 + number)


def _forward(number: int, _frame) -> None:
    """Send the signal to the processes that this one started, one per GPU; without any, end as by default."""
    if children := multiprocessing.active_children():
        for child in children:
            if child.pid is not None:
                os.kill(child.pid, number)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def ignore_signals_in_data_workers() -> None:
    """Ignore the signals in processes that load data, where a signal to a whole job would end them too early.

    Only a SIGTERM of their parent ends them.
    """
    if not Preemption.watching:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getppid()

    def wait() -> None:
        while True:
            received = signal.sigwaitinfo(SIGNALS)
            if received.si_signo == signal.SIGTERM and received.si_pid == parent:
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
