"""Embedding-only tuning (paper, section 7.2): virtual tokens at the embeddings; the frozen base computes the rest.

The embeddings come out of the same kind of MLP as a prefix, or are the parameters themselves.

Shape letters in comments: P virtual tokens, D width of the model, L layers, H key heads, d width of a head.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor, nn

from ..interfaces.method import FrozenOptions, option, register_method
from .tuned import OnVirtualTokens, VirtualTokensMethod, parse_sites
from .virtual_tokens import ReadByAttention, VirtualTokens


@dataclass(frozen=True)
class PromptGeometry:
    """The shape of one stack's prompt: virtual tokens, and the width of an embedding."""

    length: int
    embed_dim: int

    @property
    def width(self) -> int:
        return self.embed_dim

    def metadata(self) -> dict[str, int]:
        """Return the fields as a file records them."""
        return asdict(self)


class FlatPrompt(nn.Module):
    """Embeddings as the parameters themselves, drawn from N(0, 1) as in the original."""

    def __init__(self, geometry: PromptGeometry):
        super().__init__()
        self.embedding = nn.Embedding(geometry.length, geometry.embed_dim)

    def forward(self) -> Tensor:
        return self.embedding.weight  # P x D


class Prompt(VirtualTokens):
    """The prompts of all stacks of one model ("encoder", "decoder")."""

    def __init__(self, geometry: Mapping[str, PromptGeometry], reparam: str = "mlp", mid_dim: int = 512):
        super().__init__(geometry, reparam, mid_dim, FlatPrompt)

    def forward(self) -> dict[str, Tensor]:
        """Return site -> embeddings, P x D."""
        return {site: module() for site, module in self.sites.items()}

    def columns(self, site: str, like: Tensor, rows: int) -> Tensor:
        """Return the prompt of one stack for `rows` rows, rows x P x D, in the precision of `like`."""
        if not self.length(site):
            return like.new_zeros(rows, 0, like.size(-1))
        return self.evaluated()[site].to(like.dtype).expand(rows, -1, -1)


class ReadPrompt(ReadByAttention, Prompt):
    """A prompt that the base reads once, by itself, and that then acts through its keys and values, as a prefix.

    This is equivalent under causal self-attention without cross-attention, where a virtual token sees only virtual
    tokens. The cached keys and values also depend on the frozen base: after writing into the base's weights in
    evaluation, call `eval()` again.

    Args:
        read: embeddings (P x D) -> keys and values (L x 2 x H x P x d).
    """

    def __init__(self, geometry: Mapping[str, PromptGeometry], reparam: str, mid_dim: int, read: Callable):
        super().__init__(geometry, reparam, mid_dim)
        self._read = read
        self._reading = False

    def forward(self) -> dict[str, Tensor]:
        """Return site -> keys and values, L x 2 x H x P x d."""
        self._reading = True
        try:
            return {site: self._read(table) for site, table in super().forward().items()}
        finally:
            self._reading = False

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of one layer; None while the base reads the prompt, which nothing precedes."""
        return None if self._reading else super().key_value(site, layer)


@dataclass
class PromptOptions(FrozenOptions):
    """Options of a prompt."""

    prompt_length: int = option(10, "virtual tokens", "P")
    prompt_sites: str | None = option(
        None, "which stacks get a prompt (default: all)", "SITES", lambda family: len(family.prompt_sites) > 1
    )
    prompt_reparam: Literal["mlp", "flat"] = option(
        "mlp", "train the embeddings through an MLP that is dropped afterwards, or directly"
    )
    prompt_mid_dim: int = option(800, "hidden width of the MLP", "N")

    def lengths(self, sites: tuple[str, ...]) -> dict[str, int]:
        """Return stack -> virtual tokens.

        Raises:
            UsageError: a stack is not one of the model's, or the length is negative.
        """
        chosen = parse_sites("--prompt-sites", self.prompt_sites, sites)
        self.require("prompt_length", 0)
        return {site: self.prompt_length if site in chosen else 0 for site in sites}


class Prompted(OnVirtualTokens):
    """A frozen base and virtual tokens before its input embeddings.

    With no prompt in any stack the outputs are the base's bit for bit. The family attaches the prompt
    (`build_prompt`).
    """

    @classmethod
    def check(cls, options: PromptOptions, args: argparse.Namespace) -> None:
        options.lengths(cls.family.prompt_sites)
        if options.prompt_reparam == "mlp":
            options.require("prompt_mid_dim", 1)

    @classmethod
    def layers_for(cls, args: argparse.Namespace) -> str:
        return "prompt" if any(PromptOptions.read(args).lengths(cls.family.prompt_sites).values()) else "stock"

    def add(self, options: PromptOptions, args: argparse.Namespace, task) -> None:
        geometry = {
            site: PromptGeometry(length, self.width(site))
            for site, length in options.lengths(self.family.prompt_sites).items()
        }
        self.prompt = self.build_prompt(geometry, options.prompt_reparam, options.prompt_mid_dim)


class PromptMethod(VirtualTokensMethod):
    """Files of a prompt."""

    name = noun = "prompt"
    options = PromptOptions
    model = Prompted
    untouched = {"prompt_length": 0, "prompt_reparam": "flat"}
    geometry, tokens, folded_name = PromptGeometry, Prompt, "embedding.weight"

    def describe_site(self, shape):
        return f"{shape['length']} x {shape['embed_dim']}"

    def lengths_args(self, lengths):
        return {"length": max(lengths.values())}


register_method(PromptMethod())
