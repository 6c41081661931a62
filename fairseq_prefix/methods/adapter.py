"""Bottleneck adapters (the paper's baseline, after Lin et al. 2020).

After each layer of a frozen base, LayerNorm -> Linear(D, dim) -> ReLU -> Linear(dim, D) is added to the layer's output.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..interfaces.method import FrozenOptions, Method, option, register_method
from .tuned import OwnTensors
from .virtual_tokens import FullPrecision


class Adapter(FullPrecision):
    """One adapter. A new one is the identity: its last layer is zero.

    The original draws both layers from N(0, 0.02), which is close to the identity but not the base bit for bit.
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
        """Return the adapted output of a layer, ... x D."""
        hidden = torch.relu(self.down(self.norm(x.to(self.down.weight.dtype))))
        return x + self.up(hidden).to(x.dtype)


def adapter_size(embed_dim: int, dim: int) -> int:
    """Return the number of parameters of one adapter."""
    return 2 * embed_dim * dim + dim + 3 * embed_dim


@dataclass
class AdapterOptions(FrozenOptions):
    """Options of adapters."""

    adapter_dim: int = option(64, "width of the bottleneck", "N")


class Adapted(OwnTensors):
    """A frozen base and an adapter after every layer; training starts from the base bit for bit."""

    @classmethod
    def check(cls, options: AdapterOptions, args: argparse.Namespace) -> None:
        options.require("adapter_dim", 0)

    @classmethod
    def layers_for(cls, args: argparse.Namespace) -> str:
        return "adaptable"

    def add(self, options: AdapterOptions, args: argparse.Namespace, task) -> None:
        self.adapter_dim = options.adapter_dim
        if self.adapter_dim:
            for site, layers in self.blocks().items():
                for layer in layers:
                    layer.adapter = Adapter(self.width(site), self.adapter_dim)

    @property
    def declared_parameters(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if ".adapter." in name}

    @property
    def geometry(self) -> dict[str, dict[str, int]]:
        if not self.adapter_dim:
            return {}
        return {
            site: {"dim": self.adapter_dim, "layers": len(layers), "embed_dim": self.width(site)}
            for site, layers in self.blocks().items()
        }


class AdapterMethod(Method):
    """Files of adapters."""

    name = "adapter"
    noun = "set of adapters"
    options = AdapterOptions
    model = Adapted
    untouched = {"adapter_dim": 0}

    def describe_site(self, shape):
        return f"{shape['dim']} x {shape['layers']} layers x {shape['embed_dim']}"

    def fold(self, metadata, state):
        tensors = super().fold(metadata, state)
        sites = metadata["geometry"].values()
        expected = sum(shape["layers"] * adapter_size(shape["embed_dim"], shape["dim"]) for shape in sites)
        found = sum(tensor.numel() for tensor in state.values())
        if found != expected:
            raise ValueError(f"{found:,} parameters instead of {expected:,}")
        return tensors

    def model_args(self, metadata):
        return {"adapter_dim": max((shape["dim"] for shape in metadata["geometry"].values()), default=0)}


register_method(AdapterMethod())
