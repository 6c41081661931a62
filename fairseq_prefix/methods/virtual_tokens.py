"""Virtual tokens in plain torch: how they are parametrised, evaluated once per pass, and folded.

While virtual tokens are trained they come out of a small network (Li & Liang 2021, section 4.3). Afterwards only the
network's output is kept: it is folded. A prefix (prefix.py) has one key and one value per virtual token, layer and head
at each attention site; a prompt (prompt.py) has one embedding per virtual token.

Shape letters in comments: P virtual tokens, L layers, H key heads, d width of a head, W numbers of one virtual token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from ..interfaces.family import SITES
from ..mixin import Mixin

REPARAMETRISATIONS = ("mlp", "flat")


class Geometry(Protocol):
    """The shape of one site's virtual tokens."""

    @property
    def length(self) -> int:
        """Virtual tokens."""

    @property
    def embed_dim(self) -> int:
        """Width of the MLP's embedding."""

    @property
    def width(self) -> int:
        """Numbers of one virtual token."""


class FullPrecision(nn.Module):
    """Keep trained parameters in fp32 when the model goes to half precision; outputs are cast where they are used.

    A checkpoint in half precision would lack the optimizer's master weights and could not be resumed exactly, and an
    MLP evaluated in half precision would differ from its folded output.
    """

    def _apply(self, fn, recurse: bool = True) -> Self:
        """Apply `.half()`, `.to(device)` and the like without their change of precision."""

        def keep_precision(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            return tensor.to(applied.device) if applied.dtype in (torch.float16, torch.bfloat16) else applied

        return super()._apply(keep_precision, recurse)


class MLP(nn.Module):
    """Virtual tokens computed from embeddings (paper, section 4.3; sizes as in the original code).

    Embedding(P, embed_dim) -> Linear(embed_dim, mid_dim) -> Tanh -> Linear(mid_dim, W), with torch's own
    initialisation as in the original. It must be built after fairseq initialised the base: fairseq's BERT-style
    initialisation would start all keys near zero.
    """

    def __init__(self, geometry: Geometry, mid_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(geometry.length, geometry.embed_dim)
        self.down = nn.Linear(geometry.embed_dim, mid_dim)
        self.up = nn.Linear(mid_dim, geometry.width)

    def hidden(self) -> Tensor:
        return torch.tanh(self.down(self.embedding.weight))  # P x mid_dim

    def forward(self) -> Tensor:
        return self.up(self.hidden())  # P x W

    @torch.no_grad()
    def set_output(self, target: Tensor) -> None:
        """Choose the last layer so that `forward()` returns `target`: exactly if P <= mid_dim, else by least squares.

        The bias takes the mean and the weights the minimum-norm solution of the rest, in double precision.

        Args:
            target: P x W.
        """
        hidden, target = self.hidden().double(), target.double()
        bias = target.mean(dim=0)
        weight = torch.linalg.pinv(hidden) @ (target - bias)  # mid_dim x W
        self.up.weight.copy_(weight.T)
        self.up.bias.copy_(bias)


class VirtualTokens(FullPrecision):
    """The virtual tokens of all sites of one model, evaluated once for a whole batch and never per row.

    Each forward pass of the model starts with `refresh()`. In evaluation without gradients the output is cached until
    the parameters may have changed.

    Args:
        geometry: site -> shape; sites of length 0 may be left out.
        reparam: "mlp" or "flat".
        mid_dim: width of the MLP's hidden layer.
        flat: the class of a site's parameters without an MLP.
    """

    _evaluated: dict[str, Tensor] | None
    _evaluated_for: tuple | None
    evaluated_once = True  # attention/linear.py leaves its layers alone

    def __init__(self, geometry: Mapping, reparam: str, mid_dim: int, flat: Callable[..., nn.Module]):
        super().__init__()
        if reparam not in REPARAMETRISATIONS:
            raise ValueError(f"reparam must be one of {', '.join(REPARAMETRISATIONS)}, not {reparam!r}")
        self.geometry = {site: geometry[site] for site in SITES if site in geometry and geometry[site].length > 0}
        self.reparam, self.mid_dim = reparam, mid_dim
        build = flat if reparam == "flat" else lambda shape: MLP(shape, mid_dim)
        self.sites = nn.ModuleDict({site: build(shape) for site, shape in self.geometry.items()})
        self._forget()

    @property
    def folded_size(self) -> int:
        """Numbers of the folded virtual tokens, all sites together: what is stored and deployed."""
        return sum(shape.length * shape.width for shape in self.geometry.values())

    def length(self, site: str) -> int:
        """Return the number of virtual tokens at a site."""
        return self.geometry[site].length if site in self.geometry else 0

    def refresh(self) -> None:
        """Evaluate for the forward pass that begins.

        With gradients each pass needs a graph of its own; without them the cached output serves until a parameter may
        have changed.
        """
        if self.training or torch.is_grad_enabled():
            self._forget()
        self.evaluated()

    def evaluated(self) -> dict[str, Tensor]:
        """Return what `forward()` returns, from the cache where it is current."""
        state, evaluated = self._state(), self._evaluated
        if evaluated is None or state != self._evaluated_for:
            self._evaluated = evaluated = self()
            self._evaluated_for = state
        return evaluated

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """Return site -> P x W: the parameters of the equivalent without MLP and dropout."""
        return {site: module().detach().clone() for site, module in self.sites.items()}

    def _state(self) -> tuple:
        """Return what an evaluation depends on, so that a stale one is never used.

        fairseq's optimizers write through `.data`, which no version counter sees; they do so in training only, where
        every forward pass refreshes and `train()`/`eval()` clear the cache.
        """
        autocast = [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")]
        return (torch.is_grad_enabled(), *autocast, *(parameter._version for parameter in self.parameters()))

    def _forget(self) -> None:
        self._evaluated = None
        self._evaluated_for = None

    def train(self, mode: bool = True) -> VirtualTokens:
        self._forget()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:  # a cached output may be part of a graph, which cannot be copied
        return {**self.__dict__, "_evaluated": None, "_evaluated_for": None}


class KeysAndValues(NamedTuple):
    """The keys and values of one forward pass. Later passes and changes of mode leave them as they are."""

    tables: dict[str, Tensor]  # site -> L x 2 x H x P x d

    def length(self, site: str) -> int:
        """Return the number of virtual tokens at a site."""
        return self.tables[site].size(3) if site in self.tables else 0

    def row_lengths(self, site: str) -> int:
        """Return the number of virtual tokens of every row of a batch."""
        return self.length(site)

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of one attention layer, each 1 x H x P x d, or None if the site has no prefix."""
        if site not in self.tables:
            return None
        key, value = self.tables[site][layer]
        return key.unsqueeze(0), value.unsqueeze(0)


class ReadByAttention(Mixin):
    """Virtual tokens whose `forward()` returns keys and values: attention layers read them (`key_value`)."""

    def begin(self, rows: int) -> None:
        """Do nothing before a pass over a batch: all its rows have the same virtual tokens. (`PrefixBank` selects.)"""

    def row_lengths(self, site: str) -> int:
        """Return the number of virtual tokens of every row of a batch."""
        return self.length(site)

    def current(self) -> KeysAndValues:
        """Return the keys and values of the running forward pass."""
        return KeysAndValues(self.evaluated())

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return `KeysAndValues.key_value` of the running forward pass."""
        return self.current().key_value(site, layer)
