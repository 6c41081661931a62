"""`--checkpoint-activations` for layers over a frozen base."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..mixin import Mixin


class Recomputed(Mixin):
    """A layer of fairseq's that, with `--checkpoint-activations`, recomputes its activations in the backward pass.

    fairseq's own wrapper is a re-entrant autograd function: with frozen embeddings its inputs need no gradient, and a
    prefix that reaches it through a closure would get none. It also replaces the method of one object, which a copy of
    the layer would still call.
    """

    def __init__(self, cfg, *args, **kwargs):
        super().__init__(cfg, *args, **kwargs)
        self.recomputed = cfg.checkpoint_activations

    def forward(self, *args, **kwargs):
        prefill = kwargs.get("incremental_state") is not None  # recomputation would write its keys a second time
        compute = super().forward
        if not self.recomputed or prefill or not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        modes = {module: module.training for module in self.modules()}
        attachments = {}  # with the keys and values of this pass in place of the prefix
        for attention in self.children():
            if hasattr(attention, "attachment"):
                prefix, site, layer = attention.attachment
                attachments[attention] = (prefix.current(), site, layer)
        return checkpoint(_compute_as_then, compute, modes, attachments, *args, use_reentrant=False, **kwargs)


def _compute_as_then(compute: Callable, modes: dict[nn.Module, bool], attachments: dict, *args, **kwargs):
    """Recompute a layer with the modes and virtual tokens of its original pass: other passes may have followed it."""
    modes_now = {module: module.training for module in modes}
    attachments_now = {attention: attention.attachment for attention in attachments}
    _set(modes, attachments)
    try:
        return compute(*args, **kwargs)
    finally:
        _set(modes_now, attachments_now)


def _set(modes: dict[nn.Module, bool], attachments: dict) -> None:
    for module, training in modes.items():
        module.training = training
    for attention, attachment in attachments.items():
        attention.attach(*attachment)
