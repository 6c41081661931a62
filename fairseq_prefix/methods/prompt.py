"""Embedding-only tuning (paper, section 7.2): virtual tokens whose embeddings are trained, and nothing above them.

What a prefix has at every layer, a prompt has at the embeddings: the frozen base computes the rest. The embeddings
come out of the same kind of MLP as a prefix (as wide as an embedding), or are the parameters themselves.

Letters at line ends: P virtual tokens, D width of the model, L layers, H heads, d width of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from .prefix import Evaluated, KeysAndValues


@dataclasses.dataclass(frozen=True)
class PromptGeometry:
    """The shape of one site's prompt: how many virtual tokens, and how wide an embedding is."""

    length: int
    embed_dim: int

    @property
    def width(self) -> int:
        return self.embed_dim

    @property
    def folded_size(self) -> int:
        """How many numbers the folded prompt holds: P * D."""
        return self.length * self.embed_dim


class FlatPrompt(nn.Module):
    """The embeddings as the parameters themselves: what a trained prompt is folded to. A fresh one is drawn from
    N(0, 1), as originally.
    """

    def __init__(self, geometry: PromptGeometry):
        super().__init__()
        self.embedding = nn.Embedding(geometry.length, geometry.embed_dim)

    def forward(self) -> Tensor:
        return self.embedding.weight  # P x D


class Prompt(Evaluated):
    """The prompts of all sites of one model ("encoder", "decoder": before whose input they come)."""

    def __init__(self, geometry: dict[str, PromptGeometry], reparam: str = "mlp", mid_dim: int = 512):
        super().__init__(geometry, reparam, mid_dim, FlatPrompt)

    def forward(self) -> dict[str, Tensor]:
        """site -> embeddings, P x D."""
        return {site: module() for site, module in self.sites.items()}


class ReadPrompt(Prompt, KeysAndValues):
    """A prompt that is read by the base once, by itself, and from then on acts through its keys and values: a prefix.

    That is the same for causal self-attention without cross-attention, where a virtual token sees nothing but virtual
    tokens. What is kept for a search depends on the base too, which is frozen: whoever writes into its weights in
    evaluation calls `eval()` again.

    Args:
        read: embeddings (P x D) -> keys and values (L x 2 x H x P x d).
    """

    def __init__(self, geometry: dict[str, PromptGeometry], reparam: str, mid_dim: int, read: Callable):
        super().__init__(geometry, reparam, mid_dim)
        self._read = read
        self._reading = False

    def forward(self) -> dict[str, Tensor]:
        """site -> keys and values, L x 2 x H x P x d."""
        self._reading = True
        try:
            return {site: self._read(table) for site, table in super().forward().items()}
        finally:
            self._reading = False

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """As `Prefix.key_value`; there is nothing before the virtual tokens themselves."""
        return None if self._reading else super().key_value(site, layer)


def empty_prompt(geometry: dict[str, dict], reparam: str, mid_dim: int | None) -> Prompt:
    """A prompt of the shape that a file's metadata gives."""
    return Prompt({site: PromptGeometry(**shape) for site, shape in geometry.items()}, reparam, mid_dim or 1)


def prompt_columns(prompt: Prompt, site: str, like: Tensor, rows: int) -> Tensor:
    """The prompt of one site for `rows` rows, rows x P x D, in the precision of `like`."""
    if not prompt.length(site):
        return like.new_zeros(rows, 0, like.size(-1))
    return prompt.evaluated(site).to(like.dtype).expand(rows, -1, -1)
