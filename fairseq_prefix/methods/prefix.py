"""The prefix itself, in plain torch: how it is parametrised, initialised, evaluated and folded.

A prefix is, for each attention *site* (encoder self-attention, decoder self-attention, cross-attention), one key and
one value vector per virtual token, layer and head (Li & Liang 2021, section 4). While it is trained it comes out of a
small network (section 4.3); afterwards only the keys and values are kept ("folding").

Letters at line ends: P prefix length, L layers, H heads, d width of a head, D = H * d, B rows of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

SITES = ("encoder", "decoder", "cross")
REPARAMETRISATIONS = ("mlp", "flat")


@dataclasses.dataclass(frozen=True)
class SiteGeometry:
    """The shape of one site's prefix: virtual tokens, and layers, heads and head width of the attention it feeds."""

    length: int
    layers: int
    heads: int
    head_dim: int

    @property
    def embed_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def width(self) -> int:
        """How many numbers a virtual token has: L * 2 * D."""
        return self.layers * 2 * self.embed_dim

    @property
    def folded_size(self) -> int:
        """How many numbers the folded prefix holds: P * L * 2 * D."""
        return self.length * self.width


class FlatPrefix(nn.Module):
    """Keys and values as the parameters themselves: what a trained prefix is folded to.

    A fresh one is drawn from N(0, 0.02), as in He et al. 2022 (direct parametrisation).
    """

    def __init__(self, geometry: SiteGeometry):
        super().__init__()
        self.key_value = nn.Parameter(torch.randn(geometry.length, geometry.width) * 0.02)  # P x (L*2*D)

    def forward(self) -> Tensor:
        return self.key_value

    @torch.no_grad()
    def set_output(self, target: Tensor) -> None:
        """Make `forward()` return `target` (P x L*2*D)."""
        self.key_value.copy_(target)


class MLPPrefix(nn.Module):
    """Keys and values computed from embeddings of virtual tokens (paper, section 4.3; sizes as in the original code).

    Embedding(P, D) -> Linear(D, mid) -> Tanh -> Linear(mid, L*2*D), with torch's own initialisation as the original
    has it. It is built after fairseq initialised the base: fairseq's BERT-style initialisation would start all keys
    near zero. (For a prompt, see prompt.py, the last layer is D wide.)
    """

    def __init__(self, geometry: SiteGeometry, mid_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(geometry.length, geometry.embed_dim)
        self.down = nn.Linear(geometry.embed_dim, mid_dim)
        self.up = nn.Linear(mid_dim, geometry.width)

    def hidden(self) -> Tensor:
        return torch.tanh(self.down(self.embedding.weight))  # P x mid

    def forward(self) -> Tensor:
        return self.up(self.hidden())  # P x (L*2*D)

    @torch.no_grad()
    def set_output(self, target: Tensor) -> None:
        """Choose the last layer so that `forward()` returns `target` (P x L*2*D): exactly if P <= mid, else by least
        squares.

        The bias takes the mean and the weights the minimum-norm solution of what remains, in double precision.
        """
        hidden, target = self.hidden().double(), target.double()
        bias = target.mean(dim=0)
        weight = torch.linalg.pinv(hidden) @ (target - bias)  # mid x (L*2*D)
        self.up.weight.copy_(weight.T)
        self.up.bias.copy_(bias)


class FullPrecision(nn.Module):
    """What is trained stays in fp32 when the model goes to half precision; what it gives is cast where it is used.

    A checkpoint in half precision would not hold the optimizer's master weights: it could not be resumed exactly, and
    an MLP, evaluated in half, would give other keys and values than the exported prefix.
    """

    def _apply(self, fn, recurse: bool = True) -> FullPrecision:
        """`.half()`, `.to(device)` ..."""

        def keep_precision(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            return tensor.to(applied.device) if applied.dtype in (torch.float16, torch.bfloat16) else applied

        return super()._apply(keep_precision, recurse)


class Evaluated(FullPrecision):
    """Virtual tokens of all sites of one model, which are evaluated once for a whole batch, never per row.

    Each forward pass of the model starts with `refresh()`. Without gradients, in evaluation, what was evaluated is kept
    until the parameters may have changed.

    Args:
        geometry: site -> its shape; sites of length 0 may be left out.
        reparam: "mlp" or "flat".
        mid_dim: width of the hidden layer of the MLP.
        flat: the class of a site's parameters that go through no MLP.
    """

    evaluated_once = True  # so attention/linear.py leaves the MLP alone

    def __init__(self, geometry: dict, reparam: str, mid_dim: int, flat: Callable[..., nn.Module]):
        super().__init__()
        if reparam not in REPARAMETRISATIONS:
            raise ValueError(f"reparam must be one of {', '.join(REPARAMETRISATIONS)}, not {reparam!r}")
        self.geometry = {site: geometry[site] for site in SITES if site in geometry and geometry[site].length > 0}
        self.reparam = reparam
        self.mid_dim = mid_dim
        build = flat if reparam == "flat" else lambda site_geometry: MLPPrefix(site_geometry, mid_dim)
        self.sites = nn.ModuleDict({site: build(site_geometry) for site, site_geometry in self.geometry.items()})
        self._evaluated: dict[str, Tensor] | None = None
        self._evaluated_for: tuple | None = None

    @property
    def folded_size(self) -> int:
        """Parameters of the folded virtual tokens, all sites together: what is stored and deployed."""
        return sum(site_geometry.folded_size for site_geometry in self.geometry.values())

    def length(self, site: str) -> int:
        """Virtual tokens at this site."""
        return self.geometry[site].length if site in self.geometry else 0

    def refresh(self) -> None:
        """Evaluate anew for the forward pass that begins; in evaluation without gradients only if anything may have
        changed. (With them each pass needs a graph of its own.)
        """
        if self.training or torch.is_grad_enabled():
            self._forget()
        self._keep_current()

    def evaluated(self, site: str) -> Tensor:
        """What `forward()` gives for one site, evaluated when that is needed."""
        self._keep_current()
        return self._evaluated[site]

    def _keep_current(self) -> None:
        if self._evaluated is None or self._state() != self._evaluated_for:
            self._evaluated, self._evaluated_for = self(), self._state()

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """site -> P x width: the parameters of the equivalent without an MLP (no dropout)."""
        return {site: module().detach().clone() for site, module in self.sites.items()}

    def _state(self) -> tuple:
        """What an evaluation depends on, so that a stale one is never used.

        fairseq's optimizers write through `.data`, which no version counter sees; they do so in training only, where
        every forward pass refreshes and `train()`/`eval()` forget.
        """
        autocast = [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")]
        return (torch.is_grad_enabled(), *autocast, *(parameter._version for parameter in self.parameters()))

    def _forget(self) -> None:
        self._evaluated = self._evaluated_for = None

    def train(self, mode: bool = True) -> Evaluated:
        self._forget()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True) -> Evaluated:
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:  # what was evaluated is part of a graph, which cannot be copied
        return {**self.__dict__, "_evaluated": None, "_evaluated_for": None}


class Evaluation(NamedTuple):
    """The keys and values of one forward pass. Later passes, and changes of mode, leave them as they are."""

    tables: dict[str, Tensor]  # site -> L x 2 x H x P x d

    def length(self, site: str) -> int:
        """Virtual tokens at this site."""
        return self.tables[site].size(3) if site in self.tables else 0

    row_lengths = length  # the same for all rows of a batch

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of one attention layer, each 1 x H x P x d, or None if the site has no prefix."""
        if site not in self.tables:
            return None
        key, value = self.tables[site][layer]
        return key.unsqueeze(0), value.unsqueeze(0)


class KeysAndValues(Evaluated):
    """Virtual tokens that attention layers ask for: they are evaluated to L x 2 x H x P x d."""

    def begin(self, rows: int) -> None:
        """Do nothing before a pass over a batch: all its rows have the same virtual tokens. (`PrefixBank` selects.)"""

    def row_lengths(self, site: str) -> int:
        """How many virtual tokens the rows of a batch have: all the same."""
        return self.length(site)

    def current(self) -> Evaluation:
        """Keys and values of the forward pass that runs now."""
        self._keep_current()
        return Evaluation(self._evaluated)

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """As `Evaluation.key_value`, of the forward pass that runs now."""
        return self.current().key_value(site, layer)


class Prefix(KeysAndValues):
    """The prefixes of all sites of one model: keys and values, shared by every attention layer that asks (`key_value`).

    Args:
        geometry: site -> `SiteGeometry`; sites of length 0 may be left out.
        reparam: "mlp" or "flat".
        mid_dim: width of the hidden layer of the MLP.
        dropout: probability of dropping a produced key or value element in training (original: `prefix_dropout`, 0).
    """

    def __init__(
        self, geometry: dict[str, SiteGeometry], reparam: str = "mlp", mid_dim: int = 800, dropout: float = 0.0
    ):
        super().__init__(geometry, reparam, mid_dim, FlatPrefix)
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> dict[str, Tensor]:
        """site -> keys and values, L x 2 x H x P x d."""
        evaluated = {}
        for site, module in self.sites.items():
            shape = self.geometry[site]
            key_value = self.dropout(module()).view(shape.length, shape.layers, 2, shape.heads, shape.head_dim)
            evaluated[site] = key_value.permute(1, 2, 3, 0, 4)  # L x 2 x H x P x d
        return evaluated

    def set_output(self, targets: dict[str, Tensor]) -> None:
        """Start from given keys and values: site -> P x (L*2*D)."""
        for site, module in self.sites.items():
            module.set_output(targets[site])
        self._forget()


def parse_sites(text: str, allowed: tuple[str, ...] = SITES) -> list[str]:
    """ "encoder,cross" -> ["encoder", "cross"]; raises ValueError for none and for a name that is not a site."""
    sites = [site.strip() for site in text.split(",") if site.strip()]
    if not sites:
        raise ValueError(f"there is none; choose from {', '.join(allowed)}, or pass length 0 for the base alone")
    for site in sites:
        if site not in allowed:
            raise ValueError(f"{site!r} is none of {', '.join(allowed)}")
    return [site for site in allowed if site in sites]
