"""BART with a prefix (`prefix_bart_*`) and BART trained whole (`full_bart_*`); what they share with other families is
in model.py.
"""

from __future__ import annotations

import torch
from fairseq.models import register_model
from fairseq.models.bart.model import BARTModel, bart_base_architecture, bart_large_architecture
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoder,
    TransformerDecoderBase,
    TransformerEncoder,
    TransformerEncoderBase,
)

from . import checkpoint as files
from . import model as common
from .attention import PrefixDecoderLayer, PrefixEncoderLayer
from .prefix import SITES

PREFIX_DEFAULTS = {"prefix_length": 200, "prefix_mid_dim": 800, "base_dropout": "on"}


class BaseBART(common.FromBase, BARTModel):
    """What both have in common."""

    family = files.BART
    sites = SITES
    default_task = "conditional_generation"

    @staticmethod
    def add_args(parser):
        """BART's options, and where the base is."""
        BARTModel.add_args(parser)
        common.add_base_argument(
            parser, "the pretrained BART: folder with model.pt and dict.txt, a model.pt, or a Hugging Face folder"
        )

    @staticmethod
    def source_room(args) -> int:
        return args.max_source_positions - 2  # <s> and </s>

    def attentions(self):
        for layer, module in enumerate(self.encoder.layers):
            yield "encoder", layer, module.self_attn
        for layer, module in enumerate(self.decoder.layers):
            yield "decoder", layer, module.self_attn
            yield "cross", layer, module.encoder_attn

    def forward(self, *args, return_all_hiddens: bool = False, **kwargs):
        """As BART's; hidden states are kept only on request."""
        return super().forward(*args, return_all_hiddens=return_all_hiddens, **kwargs)

    def max_decoder_positions(self):
        return self.decoder.max_positions()


@register_model("full_bart")
class FullBARTModel(common.Whole, BaseBART):
    """BART, trained whole."""


@register_model("prefix_bart")
class PrefixBARTModel(common.Prefixed, BaseBART):
    """A frozen BART and a prefix for each of its three attentions.

    With no prefix anywhere the layers are fairseq's own.
    """

    @staticmethod
    def add_args(parser):
        """BART's options and the prefix's."""
        BaseBART.add_args(parser)
        common.add_prefix_arguments(parser, PREFIX_DEFAULTS, SITES)

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        encoder = PrefixEncoder if any(cfg.prefix_site_lengths.values()) else TransformerEncoder
        return encoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        decoder = PrefixDecoder if any(cfg.prefix_site_lengths.values()) else TransformerDecoder
        return decoder(cfg, tgt_dict, embed_tokens)

    def word_room(self) -> int:
        return min(self.encoder.max_positions(), self.decoder.max_positions()) - 2  # <s> and </s>

    def read_words(self, text: list[int]) -> dict[str, int]:
        """Between `<s>` and `</s>` as in pretraining: encoder keys from the encoder, decoder keys from the decoder fed
        with the same words, cross keys from the encoder's output.
        """
        dictionary = self.encoder.dictionary
        source = torch.tensor([[dictionary.bos(), *text, dictionary.eos()]])
        previous = torch.tensor([[dictionary.eos(), dictionary.bos(), *text]])
        BaseBART.forward(self, source, torch.tensor([source.size(1)]), previous)
        return {"encoder": 1, "cross": 1, "decoder": 2}


class PrefixEncoder(TransformerEncoderBase):
    """fairseq's encoder with prefix attention; its output stays at one row per sentence while beams are searched."""

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens)

    def build_encoder_layer(self, cfg):
        return common.with_checkpointing(PrefixEncoderLayer(cfg), cfg)

    def reorder_encoder_out(self, encoder_out, new_order):
        """Keep one row per sentence: `PrefixAttention` projects it once and follows the search by itself."""
        return encoder_out


class PrefixDecoder(TransformerDecoderBase):
    """fairseq's decoder with prefix attention."""

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens)

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return common.with_checkpointing(PrefixDecoderLayer(cfg, no_encoder_attn), cfg)


def tiny_bart_architecture(args):
    """A BART that two CPU cores pretrain in minutes: 1-2 M parameters, no dropout (it would not learn in that time)."""
    common.set_defaults(
        args,
        encoder_embed_dim=128,
        encoder_ffn_embed_dim=512,
        encoder_layers=2,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_attention_heads=4,
        max_source_positions=256,
        max_target_positions=256,
        dropout=0.0,
    )
    bart_large_architecture(args)


def _prefix_options(args):
    common.prefix_defaults(args, PREFIX_DEFAULTS, SITES)


_SIZES = {"large": bart_large_architecture, "base": bart_base_architecture, "tiny": tiny_bart_architecture}
common.register_architectures("prefix_bart", _SIZES, _prefix_options)
common.register_architectures("full_bart", _SIZES, common.whole_defaults)
