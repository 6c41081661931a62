"""A training that is told to end by SIGTERM or SIGUSR1 saves what it has, and ends with 128 plus the signal's number.

Batch systems send these signals before they end a job. What is saved is `checkpoint_last.pt` as of the current update,
without a validation: one more than an undisturbed training makes could choose another best checkpoint. The same command
goes on from there and ends with the same parameters.

From `checkpoint_utils.load_checkpoint` on a training is one; before, there is nothing to save, and signals do what they
always do. Nothing is installed when the plugin is imported: applications have signal handlers of their own.
"""

import logging
import multiprocessing
import os
import signal
import threading

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import FairseqTask

from ..errors import UsageError
from .training_options import concerns_the_plugin

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def save_when_told_to_end() -> None:
    """Have fairseq's trainings heed the signals from their beginning on."""
    load, save, call = checkpoint_utils.load_checkpoint, checkpoint_utils.save_checkpoint, distributed_utils.call_main

    def load_checkpoint(cfg, trainer, **arguments):
        saves = not (cfg.no_save or cfg.no_last_checkpoints)
        if saves and threading.current_thread() is threading.main_thread():
            Preemption(trainer)
        # What fairseq sends from the first process to the others is more than torch.load takes today.
        cfg.load_checkpoint_on_all_dp_ranks = True
        return load(cfg, trainer, **arguments)

    def save_checkpoint(cfg, trainer, *arguments):
        path = save(cfg, trainer, *arguments)
        if Preemption.signal_heeded:
            _end(trainer, Preemption.signal_heeded)
        return path

    def call_main(cfg, main, **arguments):
        later = getattr(getattr(cfg, "checkpoint", None), "write_checkpoints_asynchronously", False)
        if later and concerns_the_plugin(cfg):
            raise UsageError(
                "--write-checkpoints-asynchronously is not supported: fairseq copies no checkpoint then, so that "
                "checkpoint_last.pt may be missing; leave it out"
            )
        if threading.current_thread() is threading.main_thread():
            _handle(_hand_on)
        try:
            call(cfg, main, **arguments)
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code - 128 in SIGNALS:
                raise SystemExit(error.exit_code) from None
            raise

    checkpoint_utils.load_checkpoint, checkpoint_utils.save_checkpoint = load_checkpoint, save_checkpoint
    distributed_utils.call_main = call_main
    os.register_at_fork(after_in_child=_heed_parent_alone)


def resume_with_the_same_batches() -> None:
    """fairseq draws the order of equally long examples, and so the batches, once in a process, by the seed and the
    epoch that it begins with: one resumed after its first epoch had other batches than one left in peace.
    """
    get = FairseqTask.get_batch_iterator

    def get_batch_iterator(self, dataset, *args, epoch=1, **options):
        # Where batches are made anew for each epoch, each draws its own, which is the same after a restart.
        anew = options.get("disable_iterator_cache") or options.get("update_epoch_batch_itr")
        anew = anew or not self.can_reuse_epoch_itr(dataset)
        iterator = get(self, dataset, *args, epoch=epoch if anew else 1, **options)
        if iterator.next_epoch_idx == 1:  # not one that is used again, which knows its epoch
            iterator.epoch = max(epoch, 1)
        return iterator

    FairseqTask.get_batch_iterator = get_batch_iterator


class Preemption:
    """Watches over the training of one trainer, in whose process it takes over the signals."""

    watching = False  # whether there is one in this process, or was in the one that it was forked from
    signal_heeded = 0  # from the update on that is the last

    def __init__(self, trainer):
        self._trainer = trainer
        self._iterator = None  # of the current epoch
        self._signal = 0
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
        """The signal that any of the processes was sent: all end after the same update."""
        if self._trainer.data_parallel_world_size == 1:
            return self._signal
        number = torch.tensor([self._signal], device=self._trainer.device)
        distributed_utils.all_reduce(number, self._trainer.data_parallel_process_group, op="max")
        return int(number)

    def _is_due(self) -> bool:
        """Whether fairseq may validate, save or end after this update: that is done first, and one update more."""
        cfg, updates = self._trainer.cfg, self._trainer.get_num_updates()
        intervals = (cfg.checkpoint.save_interval_updates, cfg.dataset.validate_interval_updates)
        return (
            self._iterator.end_of_epoch()
            or 0 < (cfg.optimization.max_update or 0) <= updates
            or any(interval > 0 and updates % interval == 0 for interval in intervals)
        )

    def _stop(self) -> None:
        """Have fairseq save after this update, once it has logged it, as at the end of its time; without validation."""
        cfg = self._trainer.cfg
        cfg.dataset.disable_validation = True
        cfg.optimization.stop_time_hours = 1e-9


def _handle(handler) -> None:
    """Install a handler for the signals, except for those that the parent process has set to be ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end(trainer, number: int) -> None:
    """Instead of going on after what was saved last."""
    if trainer.data_parallel_world_size > 1:  # who ends first would have the others ended
        torch.distributed.barrier(distributed_utils.get_global_group())
    name, updates = signal.Signals(number).name, trainer.get_num_updates()
    logger.info("interrupted by %s after %d updates; they are saved", name, updates)
    raise SystemExit(128 + number)


def _hand_on(number: int, _frame) -> None:
    """In a process that only waits for those it started, one per GPU, tell them; without any, end as ever."""
    if children := multiprocessing.active_children():
        for child in children:
            os.kill(child.pid, number)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _heed_parent_alone() -> None:
    """In the processes that load data: a signal to all processes of a job does not end them before the training.

    Their parent ends them by SIGTERM; that of anyone else is not for them.
    """
    if not Preemption.watching:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getppid()

    def wait() -> None:
        while True:
            told = signal.sigwaitinfo(SIGNALS)
            if told.si_signo == signal.SIGTERM and told.si_pid == parent:
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
