"""fairseq's exponential moving average (`--store-ema`) over models of the plugin."""

from __future__ import annotations

import functools

from fairseq import checkpoint_utils
from fairseq.models.ema import EMA


def average_weights_alone() -> None:
    """Have fairseq's EMA average weights, and keep the rest of a state.

    By itself it multiplies all of it by the decay, which torch refuses for integers: the metadata of a checkpoint, a
    GPT-2's mask of symbols. And it leaves out `decoder.version`, without which a decoder loses its last layer norm.
    """
    init, restore = EMA.__init__, EMA.restore

    @functools.wraps(init)
    def init_with_copies(self, model, config, device=None, skip_keys=None):
        copied = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
        init(self, model, config, device, copied | set(skip_keys or ()))

    @functools.wraps(restore)
    def restore_complete(self, state_dict, build_fp32_params=False):
        restore(self, {**self.model.state_dict(), **state_dict}, build_fp32_params)

    EMA.__init__, EMA.restore = init_with_copies, restore_complete


def begin_with_the_model() -> None:
    """Have an average begin with the weights of a checkpoint that holds none, as fairseq announces it: by then fairseq
    has deleted them.
    """
    load = checkpoint_utils.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **arguments):
        if not trainer.cfg.ema.store_ema:
            return load(cfg, trainer, **arguments)
        read = checkpoint_utils.load_checkpoint_to_cpu

        def read_with_average(*args, **options) -> dict:
            state = read(*args, **options)
            state["extra_state"].setdefault("ema", state["model"])
            return state

        checkpoint_utils.load_checkpoint_to_cpu = read_with_average
        try:
            return load(cfg, trainer, **arguments)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = read

    checkpoint_utils.load_checkpoint = load_checkpoint
