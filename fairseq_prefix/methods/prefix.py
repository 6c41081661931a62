"""Prefix-tuning (Li & Liang 2021, section 4): keys and values for every attention layer, trained over a frozen base.

For each attention site (encoder self-attention, decoder self-attention, cross-attention) a prefix has one key and one
value vector per virtual token, layer and key head. A folded prefix is one tensor per site, P x (L*2*H*d).

Shape letters in comments: P prefix length, L layers, H key heads, d width of a head.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attention.layers import PrefixAttention
from ..errors import UsageError
from ..files.metadata import TunedFile
from ..interfaces.method import FrozenOptions, option, register_method, several_sites
from . import initialise
from .tuned import OnVirtualTokens, VirtualTokensMethod, parse_sites
from .virtual_tokens import ReadByAttention, VirtualTokens


@dataclass(frozen=True)
class SiteGeometry:
    """The shape of one site's prefix.

    Attributes:
        length: virtual tokens.
        layers: attention layers of the site.
        heads: heads of keys and values, of which there are fewer than query heads where those share keys.
        head_dim: width of a head.
        model_dim: width of the MLP's embedding; None stands for heads * head_dim.
    """

    length: int
    layers: int
    heads: int
    head_dim: int
    model_dim: int | None = None

    @property
    def embed_dim(self) -> int:
        return self.model_dim or self.heads * self.head_dim

    @property
    def width(self) -> int:
        """Numbers of one virtual token: L * 2 * H * d."""
        return self.layers * 2 * self.heads * self.head_dim

    def metadata(self) -> dict[str, int]:
        """Return the fields as a file records them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class FlatPrefix(nn.Module):
    """Keys and values as the parameters themselves, drawn from N(0, 0.02) as in He et al. 2022."""

    def __init__(self, geometry: SiteGeometry):
        super().__init__()
        self.key_value = nn.Parameter(torch.randn(geometry.length, geometry.width) * 0.02)  # P x (L*2*H*d)

    def forward(self) -> Tensor:
        return self.key_value

    @torch.no_grad()
    def set_output(self, target: Tensor) -> None:
        """Make `forward()` return `target`, P x (L*2*H*d)."""
        self.key_value.copy_(target)


class Prefix(ReadByAttention, VirtualTokens):
    """The prefixes of all sites of one model.

    Args:
        geometry: site -> `SiteGeometry`; sites of length 0 may be left out.
        reparam: "mlp" or "flat".
        mid_dim: width of the MLP's hidden layer.
        dropout: probability of dropping an element of keys and values in training (original: `prefix_dropout`, 0).
    """

    def __init__(
        self, geometry: Mapping[str, SiteGeometry], reparam: str = "mlp", mid_dim: int = 800, dropout: float = 0.0
    ):
        super().__init__(geometry, reparam, mid_dim, FlatPrefix)
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def from_file(cls, file: TunedFile) -> Prefix:
        """Return the folded prefix of a checkpoint or an export."""
        prefix = cls({site: SiteGeometry(**shape) for site, shape in file.metadata["geometry"].items()}, "flat")
        prefix.set_output(file.folded)
        return prefix

    def forward(self) -> dict[str, Tensor]:
        """Return site -> keys and values, L x 2 x H x P x d."""
        evaluated = {}
        for site, module in self.sites.items():
            shape = self.geometry[site]
            key_value = self.dropout(module()).view(shape.length, shape.layers, 2, shape.heads, shape.head_dim)
            evaluated[site] = key_value.permute(1, 2, 3, 0, 4)  # L x 2 x H x P x d
        return evaluated

    def set_output(self, targets: Mapping[str, Tensor]) -> None:
        """Start from given keys and values: site -> P x (L*2*H*d)."""
        module: Any
        for site, module in self.sites.items():
            module.set_output(targets[site])
        self._forget()


NO_PREFIX = Prefix({})


@dataclass
class PrefixOptions(FrozenOptions):
    """Options of a prefix."""

    prefix_length: int = option(200, "virtual tokens", "P")
    prefix_sites: str | None = option(None, "which attentions get a prefix (default: all)", "SITES", several_sites)
    prefix_encoder_length: int | None = option(
        None, "virtual tokens at the encoder site, if different", "P", several_sites
    )
    prefix_decoder_length: int | None = option(
        None, "virtual tokens at the decoder site, if different", "P", several_sites
    )
    prefix_cross_length: int | None = option(None, "virtual tokens at the cross site, if different", "P", several_sites)
    prefix_reparam: Literal["mlp", "flat"] = option(
        "mlp", "train the prefix through an MLP that is dropped afterwards, or directly"
    )
    prefix_mid_dim: int = option(800, "hidden width of the MLP", "N")
    prefix_dropout: float = option(0.0, "dropout on the keys and values produced", "D")
    prefix_init: Literal["random", "words"] = option(
        "random", "start from random numbers or from the frozen base's activations of real words"
    )
    prefix_init_text: str | None = option(
        None,
        "the words, encoded by --bpe or already subwords of the dictionary; repeated to the prefix's length",
        "TEXT",
    )
    prefix_position: Literal["prefix", "infix"] = option(
        "prefix",
        "before the source, or between source and target",
        only_for=lambda family: family.framing({}).joined,
    )

    def lengths(self, sites: tuple[str, ...]) -> dict[str, int]:
        """Return site -> virtual tokens.

        Raises:
            UsageError: options contradict each other, or a length is negative.
        """
        chosen = parse_sites("--prefix-sites", self.prefix_sites, sites)
        lengths = {}
        for site in sites:
            name = f"prefix_{site}_length"
            if getattr(self, name) is None:
                name = "prefix_length"
            elif site not in chosen:
                raise UsageError(
                    f"--prefix-{site}-length is given, but --prefix-sites {self.prefix_sites} leaves {site} out"
                )
            self.require(name, 0)
            lengths[site] = getattr(self, name) if site in chosen else 0
        return lengths


class Prefixed(OnVirtualTokens):
    """A frozen base and a prefix for its attention layers (parametrisation as in the original code).

    With no prefix at any site the outputs are the base's bit for bit.
    """

    @classmethod
    def check(cls, options: PrefixOptions, args: argparse.Namespace) -> None:
        options.lengths(cls.family.sites)
        if options.prefix_reparam == "mlp":
            options.require("prefix_mid_dim", 1)
        if not 0 <= options.prefix_dropout < 1:
            raise UsageError(f"--prefix-dropout is {options.prefix_dropout}; expected 0 or more, and less than 1")

    @classmethod
    def layers_for(cls, args: argparse.Namespace) -> str:
        return "prefix" if any(PrefixOptions.read(args).lengths(cls.family.sites).values()) else "stock"

    @classmethod
    def conventions_of(cls, args, task) -> dict:
        conventions = super().conventions_of(args, task)
        if cls.family.framing({}).joined:
            conventions["prefix_position"] = args.prefix_position
        return conventions

    def add(self, options: PrefixOptions, args: argparse.Namespace, task) -> None:
        lengths = options.lengths(self.family.sites)
        geometry = {site: self.site_geometry(site, length) for site, length in lengths.items()}
        self.prefix = Prefix(geometry, options.prefix_reparam, options.prefix_mid_dim, options.prefix_dropout)
        self.attach(self.prefix)
        if options.prefix_init == "words":
            if not self.prefix.geometry:
                raise UsageError("--prefix-init words requires a prefix: the length is 0 at every site")
            words = initialise.encode(options.prefix_init_text, args, task)
            self.prefix.set_output(initialise.activations(self, words))
            # Loading the checkpoint must need neither the words nor their BPE.
            args.prefix_init, args.prefix_initialised_from = "random", options.prefix_init_text

    def use(self, prefix: Any) -> None:
        """Let every attention layer read this `Prefix` or `PrefixBank` instead of the model's own prefix.

        Raises:
            UsageError: the model was built without a prefix, with fairseq's own attention.
        """
        if not any(isinstance(attention, PrefixAttention) for _, _, attention in self.attentions()):
            raise UsageError("the model was built without a prefix; build it with --prefix-length 1 or more")
        self.prefix = prefix
        self.attach(prefix)

    @contextmanager
    def prefix_disabled(self) -> Iterator[None]:
        """Compute as the base alone inside the block."""
        own, self.prefix = self.prefix, NO_PREFIX
        self.attach(NO_PREFIX)
        try:
            yield
        finally:
            self.prefix = own
            self.attach(own)

    def site_geometry(self, site: str, length: int) -> SiteGeometry:
        """Return the shape of a prefix of `length` virtual tokens at a site."""
        attentions = [attention for own, _, attention in self.attentions() if own == site]
        return SiteGeometry(length, len(attentions), attentions[0].num_heads, attentions[0].head_dim)

    def state_dict(self, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """Return what is trained, as every tuned model does.

        Raises:
            UsageError: the model uses a bank, whose prefixes are files of their own, or its prefix is disabled.
        """
        if self.prefix is NO_PREFIX:
            raise UsageError("the prefix is disabled; save it outside `with model.prefix_disabled()`")
        if not isinstance(self.prefix, Prefix):
            raise UsageError("a bank is not saved as a whole; save each prefix of it after model.use(bank[name])")
        return super().state_dict(destination, prefix, keep_vars)


class PrefixMethod(VirtualTokensMethod):
    """Files of a prefix."""

    name = noun = "prefix"
    options = PrefixOptions
    model = Prefixed
    untouched = {"prefix_length": 0, "prefix_reparam": "flat"}
    geometry, tokens, folded_name = SiteGeometry, Prefix, "key_value"

    def describe_site(self, shape):
        site = SiteGeometry(**shape)
        return f"{site.length} x {site.layers} layers x {site.heads}*{site.head_dim}"

    def lengths_args(self, lengths):
        return {f"{site}_length": length for site, length in lengths.items()}


register_method(PrefixMethod())
