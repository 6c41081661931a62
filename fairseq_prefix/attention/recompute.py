"""`--checkpoint-activations` for layers over a frozen base."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed:
    """A layer of fairseq's whose activations are recomputed in the backward pass if `--checkpoint-activations` says so.

    fairseq's own wrapper is a re-entrant autograd function: with frozen embeddings its inputs need no gradient, and a
    prefix reaching it through a closure would get none. It also replaces the method of one object, which a copy of the
    layer would go on calling.
    """

    def __init__(self, cfg, *args, **kwargs):
        super().__init__(cfg, *args, **kwargs)
        self.recomputed = cfg.checkpoint_activations

    def forward(self, *args, **kwargs):
        leaves_keys = kwargs.get("incremental_state") is not None  # the second time it would find them
        if not self.recomputed or leaves_keys or not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        modes = {module: module.training for module in self.modules()}
        attached = {}  # attention -> what it is attached to, with the keys and values of this pass
        for attention in self.children():
            if hasattr(attention, "attachment"):
                prefix, *place = attention.attachment
                attached[attention] = (prefix.current(), *place)
        return checkpoint(self._compute, super().forward, modes, attached, *args, use_reentrant=False, **kwargs)

    @staticmethod
    def _compute(forward: Callable, modes: dict, attached: dict, *args, **kwargs):
        """Run `forward` in the modes and with the virtual tokens of its own pass: when it is recomputed, the model may
        have been through other passes.
        """
        other_modes = {module: module.training for module in modes}
        others = {attention: attention.attachment for attention in attached}
        _restore(modes, attached)
        try:
            return forward(*args, **kwargs)
        finally:
            _restore(other_modes, others)


def _restore(modes: dict[nn.Module, bool], attached: dict) -> None:
    for module, training in modes.items():
        module.training = training
    for attention, place in attached.items():
        attention.attach(*place)
