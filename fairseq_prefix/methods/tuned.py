"""What the models of all methods over a frozen base share.

`Tuned` freezes its base when it is built and saves only what is trained. A method's model class derives from it (or
from `OnVirtualTokens`, `OwnTensors`) and must define `add`, `declared_parameters` and `geometry`; it may define
`check`, `layers_for`, `conventions_of` and `metadata`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fairseq.modules import FairseqDropout

from ..attention.layers import PrefixAttention
from ..attention.linear import speed_up
from ..errors import UsageError
from ..files import metadata
from ..files.dictionary import dictionary_fingerprint
from ..interfaces.family import Family
from ..interfaces.method import Method, compare_shapes, tensor_shapes
from ..mixin import Mixin
from .virtual_tokens import VirtualTokens

UNSUPPORTED = (  # options of fairseq's transformer that would change the base or bypass the prefix
    "encoder_layerdrop decoder_layerdrop encoder_layers_to_keep decoder_layers_to_keep quant_noise_pq "
    "quant_noise_scalar cross_self_attention no_cross_attention offload_activations encoder_xformers_att_config "
    "decoder_xformers_att_config"
).split()


def refuse_unsupported(args: argparse.Namespace) -> None:
    """Raise a `UsageError` for the first option of fairseq's transformer that no model here supports."""
    for name in UNSUPPORTED:
        if getattr(args, name, None):
            raise UsageError(f"--{name.replace('_', '-')} is not supported by --arch {args.arch}; leave it out")


class Tuned(Mixin):
    """A frozen base and what is trained for a task; the checkpoint holds only the latter.

    `register_family` sets `method` and `family`.
    """

    method: Method
    family: Family

    @classmethod
    def build_model(cls, args, task):
        """Build the base, load it, freeze it and add what is trained (fairseq's hook).

        The freeze must happen here: fairseq makes the optimizer before the first forward pass.

        Raises:
            UsageError: an option is wrong, or the base is missing or another one.
        """
        refuse_unsupported(args)
        options: Any = cls.method.options.read(args)
        if not options.base_model:
            raise UsageError(
                f"--arch {args.arch} requires --base-model PATH "
                "(when generating: --model-overrides \"{'base_model': 'PATH'}\")"
            )
        cls.check(options, args)
        model = super().build_model(args, task)
        model.load_base(args, task)
        model.requires_grad_(False)
        if options.base_dropout == "off":
            for module in model.modules():
                if isinstance(module, FairseqDropout):
                    module.p = 0.0
        model.dictionary_fingerprint = dictionary_fingerprint(task.source_dictionary.symbols)
        model.conventions = cls.conventions_of(args, task)
        model.add(options, args, task)
        if model.declared_parameters:  # otherwise the model must stay the base bit for bit
            speed_up(model, packing=False)
        return model

    @classmethod
    def check(cls, options: Any, args: argparse.Namespace) -> None:
        """Raise a `UsageError` for an option of the method that is out of range."""

    def add(self, options: Any, args: argparse.Namespace, task) -> None:
        """Add what is trained to the frozen base."""
        raise NotImplementedError

    @property
    def declared_parameters(self) -> set[str]:
        """Names of the parameters that this method trains."""
        raise NotImplementedError

    @property
    def added_parameters(self) -> set[str]:
        """Names of the parameters that are not the base's."""
        return self.declared_parameters

    @property
    def folded_parameters(self) -> int:
        """Numbers that a deployed task stores."""
        declared = self.declared_parameters
        return sum(p.numel() for name, p in self.named_parameters() if name in declared)

    @property
    def geometry(self) -> dict[str, dict[str, int]]:
        """Site -> the shape of what is trained there; empty where nothing is."""
        raise NotImplementedError

    def metadata(self) -> dict:
        """Return what a file of this model records: base, dictionary, geometry, conventions."""
        return {
            "format": metadata.FORMAT,
            **({} if self.method.name == "prefix" else {"method": self.method.name}),
            "arch": self.args.arch,
            "base_fingerprint": self.base_fingerprint,
            "base_parameters": self.base_parameters,
            "dictionary_fingerprint": self.dictionary_fingerprint,
            "geometry": self.geometry,
            "conventions": self.conventions,
        }

    def state_dict(self, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """Return what is trained and its metadata, without the base; arguments as torch's."""
        destination, declared = {} if destination is None else destination, self.declared_parameters
        for name, value in super().state_dict(keep_vars=keep_vars).items():
            if name in declared:
                destination[prefix + name] = value
        destination[prefix + metadata.METADATA_KEY] = metadata.pack(self.metadata())
        return destination

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Load what is trained where the model is part of another module (torch's hook)."""
        own = [name for name in state_dict if name.startswith(prefix)]
        self.load_state_dict({name.removeprefix(prefix): state_dict.pop(name) for name in own})
        for name, value in super().state_dict().items():
            state_dict[prefix + name] = value

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load a checkpoint that was trained for this base, dictionary and geometry.

        Raises:
            UsageError: it was trained for another one; the sentence names the difference.
        """
        metadata.verify(metadata.unpack(state_dict), self, "the checkpoint")
        own = {name: tensor for name, tensor in state_dict.items() if name != metadata.METADATA_KEY}
        parameters = {name: p for name, p in self.named_parameters() if name in self.declared_parameters}
        try:
            compare_shapes(tensor_shapes(parameters), tensor_shapes(own))
        except ValueError as error:
            raise UsageError(f"the {self.method.noun} in the checkpoint does not fit the model: {error}") from None
        with torch.no_grad():
            for name, tensor in own.items():
                parameters[name].copy_(tensor)


class OnVirtualTokens(Tuned):
    """A model that trains virtual tokens: one sub-module, named as the method."""

    @property
    def virtual_tokens(self) -> VirtualTokens:
        return getattr(self, self.method.name)

    def forward(self, *args, **kwargs):
        """Compute the base's forward pass, with the virtual tokens evaluated once for the whole batch."""
        self.virtual_tokens.refresh()
        return super().forward(*args, **kwargs)

    @property
    def declared_parameters(self) -> set[str]:
        return {f"{self.method.name}.{name}" for name, _ in self.virtual_tokens.named_parameters()}

    @property
    def folded_parameters(self) -> int:
        return self.virtual_tokens.folded_size

    @property
    def geometry(self) -> dict[str, dict[str, int]]:
        return {site: shape.metadata() for site, shape in self.virtual_tokens.geometry.items()}

    def metadata(self) -> dict:
        tokens = self.virtual_tokens
        mid_dim = tokens.mid_dim if tokens.reparam == "mlp" else None
        return {**super().metadata(), "reparam": tokens.reparam, "mid_dim": mid_dim}

    def attach(self, prefix) -> None:
        """Let every attention layer read this prefix."""
        for site, layer, attention in self.attentions():
            if isinstance(attention, PrefixAttention):
                attention.attach(prefix, site, layer)


class OwnTensors(Tuned):
    """A model whose export holds the trained tensors as they are, under their names in the model."""

    def metadata(self) -> dict:
        declared = self.declared_parameters
        trained = {name: parameter for name, parameter in self.named_parameters() if name in declared}
        return {**super().metadata(), "tensors": tensor_shapes(trained)}


def parse_sites(option: str, text: str | None, allowed: tuple[str, ...]) -> list[str]:
    """Return the sites of "encoder,cross", in the model's order; None stands for all.

    Raises:
        UsageError: no site, or a name that is not one; `option` is named.
    """
    sites = list(allowed) if text is None else [site.strip() for site in text.split(",") if site.strip()]
    if not sites:
        raise UsageError(f"{option} is empty; choose from {', '.join(allowed)}, or pass length 0 for the base alone")
    if unknown := [site for site in sites if site not in allowed]:
        raise UsageError(f"{option}: {unknown[0]!r} is none of {', '.join(allowed)}")
    return [site for site in allowed if site in sites]


class VirtualTokensMethod(Method):
    """Files of virtual tokens; an export has one tensor per site, P x W.

    Attributes:
        geometry: the class of a site's shape.
        tokens: the class of the virtual tokens.
        folded_name: name of a site's parameter without an MLP.
    """

    geometry: type
    tokens: Callable[..., VirtualTokens]
    folded_name: str

    def fold(self, metadata, state):
        """Return site -> P x W. Memory is allocated for what the file holds, not for what its metadata claims."""
        geometry = {site: self.geometry(**shape) for site, shape in metadata["geometry"].items()}
        build = partial(self.tokens, geometry, metadata["reparam"], metadata["mid_dim"] or 1)
        prefix = f"{self.name}."
        with torch.device("meta"):
            compare_shapes(tensor_shapes(build().state_dict(prefix=prefix)), tensor_shapes(state))
        tokens = build()
        tokens.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
        return {site: table.float() for site, table in tokens.folded().items()}

    def unfold(self, tensors):
        return {f"{self.name}.sites.{site}.{self.folded_name}": tensor for site, tensor in tensors.items()}

    def model_args(self, metadata):
        lengths = {site: shape["length"] for site, shape in metadata["geometry"].items()}
        own = {"sites": ",".join(lengths), **self.lengths_args(lengths)} if lengths else {"length": 0}
        return {f"{self.name}_{option}": value for option, value in {"reparam": "flat", **own}.items()}

    def lengths_args(self, lengths: dict[str, int]) -> dict[str, int]:
        """Return the options, without the method's name, that give each site its length."""
        raise NotImplementedError
