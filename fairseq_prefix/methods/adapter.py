"""Bottleneck adapters (the paper's baseline, after Lin et al. 2020): after each layer of a frozen base
LayerNorm -> Linear(D, dim) -> ReLU -> Linear(dim, D), added to what the layer put out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .prefix import FullPrecision


class Adapter(FullPrecision):
    """One adapter. A fresh one is the identity: the last layer is zero.

    (The original draws both layers from N(0, 0.02), which is near the identity and not the base bit for bit; the rest
    is as there.)
    """

    def __init__(self, embed_dim: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.down = nn.Linear(embed_dim, dim)
        self.up = nn.Linear(dim, embed_dim)
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape, the last dimension being the model's."""
        hidden = torch.relu(self.down(self.norm(x.to(self.down.weight.dtype))))
        return x + self.up(hidden).to(x.dtype)


def adapter_size(embed_dim: int, dim: int) -> int:
    """How many parameters one adapter has."""
    return 2 * embed_dim * dim + dim + 3 * embed_dim
