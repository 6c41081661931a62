"""Top-layer fine-tuning (the paper's FT-top2): only the last layers of the decoder are trained."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..interfaces.method import FrozenOptions, Method, option, register_method
from .tuned import OwnTensors


@dataclass
class TopOptions(FrozenOptions):
    """Options of top-layer fine-tuning."""

    top_layers: int = option(2, "how many of the decoder's last layers are trained", "N")
    top_embedding: Literal["frozen", "trained"] = option(
        "frozen", "whether the embeddings, which are also the output layer, are trained"
    )


class TopTuned(OwnTensors):
    """A base whose last decoder layers are trained, with the norm after them where there is one.

    Nothing below these layers is differentiated unless the embeddings are trained too.
    """

    @classmethod
    def check(cls, options: TopOptions, args: argparse.Namespace) -> None:
        if not 0 <= options.top_layers <= args.decoder_layers:
            raise UsageError(f"--top-layers is {options.top_layers}, but the decoder has {args.decoder_layers} layers")

    @classmethod
    def layers_for(cls, args: argparse.Namespace) -> str:
        return "adaptable"

    def add(self, options: TopOptions, args: argparse.Namespace, task) -> None:
        count, layers, self._trained = options.top_layers, len(self.decoder.layers), set()
        if count:
            starts = [f"decoder.layers.{number}." for number in range(layers - count, layers)]
            starts.append("decoder.layer_norm.")
            self._trained = {name for name, _ in self.named_parameters() if name.startswith(tuple(starts))}
        if options.top_embedding == "trained":
            self._trained.add(self.family.embedding)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self._trained)

    @property
    def declared_parameters(self) -> set[str]:
        return set(self._trained)

    @property
    def added_parameters(self) -> set[str]:
        return set()

    @property
    def geometry(self) -> dict[str, dict[str, int]]:
        if not self._trained:
            return {}
        embedding = self.decoder.embed_tokens
        return {
            "decoder": {
                "layers": self.args.top_layers,
                "of": len(self.decoder.layers),
                "embed_dim": embedding.embedding_dim,
                "embeddings": embedding.num_embeddings if self.family.embedding in self._trained else 0,
            }
        }


class TopMethod(Method):
    """Files of top layers."""

    name = "top"
    noun = "set of top layers"
    label = "top layers"
    options = TopOptions
    model = TopTuned
    untouched = {"top_layers": 0, "top_embedding": "frozen"}

    def describe_site(self, shape):
        return "{layers} of {of} layers x {embed_dim}, {embeddings} embeddings".format(**shape)

    def fold(self, metadata, state):
        tensors = super().fold(metadata, state)
        if bool(state) != bool(metadata["geometry"]):
            raise ValueError(f"{len(state)} tensors")
        return tensors

    def model_args(self, metadata):
        shape = metadata["geometry"].get("decoder", {"layers": 0, "embeddings": 0})
        return {"top_layers": shape["layers"], "top_embedding": "trained" if shape["embeddings"] else "frozen"}


register_method(TopMethod())
