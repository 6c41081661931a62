"""`--checkpoint-activations` for layers over a frozen base."""

from __future__ import annotations

import torch
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
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)
