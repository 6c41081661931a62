"""BART with a prefix (`prefix_bart_*`), a prompt (`prompt_bart_*`), adapters (`adapter_bart_*`), trained top layers
(`top_bart_*`), and BART trained whole (`full_bart_*`); what they share with other families is in model.py.

Positions of the text are never shifted: virtual tokens of a prompt have no position of their own (a free embedding
would swallow it), come before the embedded text and pass through the embeddings' norm with it.
"""

from __future__ import annotations

from functools import partial

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

from ..attention.layers import (
    AdaptableDecoderLayer,
    AdaptableEncoderLayer,
    PrefixDecoderLayer,
    PrefixEncoderLayer,
    PromptDecoderLayer,
)
from ..decoding.beams import Beams, SearchedDecoder
from ..errors import UsageError
from ..files import checkpoint as files
from ..methods.prefix import SITES, Prefix
from ..methods.prompt import Prompt, prompt_columns
from . import model as common

PREFIX_DEFAULTS = {"prefix_length": 200, "prefix_mid_dim": 800, "base_dropout": "on"}
PROMPT_DEFAULTS = {"prompt_length": 10, "prompt_mid_dim": 800, "base_dropout": "on"}
PROMPT_SITES = ("encoder", "decoder")


class BaseBART(common.FromBase, BARTModel):
    """What BART's models have in common."""

    family = files.BART
    sites = SITES
    prompt_sites = PROMPT_SITES
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

    def blocks(self):
        return {"encoder": self.encoder.layers, "decoder": self.decoder.layers}

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


class AdaptableBART(BaseBART):
    """BART of fairseq's own layers, which take adapters."""

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        return AdaptableEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        return AdaptableDecoder(cfg, tgt_dict, embed_tokens)


@register_model("adapter_bart")
class AdapterBARTModel(common.Adapted, AdaptableBART):
    """A frozen BART and an adapter after every layer of encoder and decoder."""

    @staticmethod
    def add_args(parser):
        """BART's options and the adapters'."""
        BaseBART.add_args(parser)
        common.add_adapter_arguments(parser)


@register_model("top_bart")
class TopBARTModel(common.TopTuned, AdaptableBART):
    """BART of which the decoder's last layers are trained."""

    @staticmethod
    def add_args(parser):
        """BART's options and how many layers."""
        BaseBART.add_args(parser)
        common.add_top_arguments(parser)


@register_model("prompt_bart")
class PromptBARTModel(common.Prompted, BaseBART):
    """A frozen BART and virtual tokens before the input of encoder and decoder. Without them, layers are fairseq's."""

    @staticmethod
    def add_args(parser):
        """BART's options and the prompt's."""
        BaseBART.add_args(parser)
        common.add_prompt_arguments(parser, PROMPT_DEFAULTS, PROMPT_SITES)

    @classmethod
    def build_model(cls, args, task):
        """fairseq's hook.

        Raises:
            UsageError: texts would be padded, or placed, as `PromptDecoder` cannot read them.
        """
        if getattr(getattr(task, "cfg", None), "left_pad_target", False):
            raise UsageError(f"--left-pad-target is not supported by --arch {args.arch}; leave it out")
        if getattr(args, "no_token_positional_embeddings", False):
            raise UsageError(f"--no-token-positional-embeddings is not supported by --arch {args.arch}; leave it out")
        return super().build_model(args, task)

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        encoder = PromptEncoder if any(cfg.prompt_site_lengths.values()) else TransformerEncoder
        return encoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        decoder = PromptDecoder if any(cfg.prompt_site_lengths.values()) else TransformerDecoder
        return decoder(cfg, tgt_dict, embed_tokens)

    def _make_prompt(self, geometry, reparam, mid_dim):
        prompt = Prompt(geometry, reparam, mid_dim)
        nothing = Prefix({})
        self._attach(nothing)
        for side in (self.encoder, self.decoder):
            if isinstance(side, PromptEncoder | PromptDecoder):
                side.attach(prompt)
        return prompt


class Encoder(TransformerEncoderBase):
    """fairseq's encoder with layers of another class."""

    layer_class: type

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens)

    def build_encoder_layer(self, cfg):
        return self.layer_class(cfg)


class Decoder(TransformerDecoderBase):
    """fairseq's decoder with layers of another class."""

    layer_class: type

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens)

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return self.layer_class(cfg, no_encoder_attn)


class AdaptableEncoder(Encoder):
    """fairseq's encoder; its layers take adapters."""

    layer_class = AdaptableEncoderLayer


class AdaptableDecoder(Decoder):
    """fairseq's decoder; its layers take adapters."""

    layer_class = AdaptableDecoderLayer


class PrefixEncoder(Encoder):
    """fairseq's encoder with prefix attention; its output stays at one row per sentence while beams are searched."""

    layer_class = PrefixEncoderLayer

    def forward(self, src_tokens, *args, **kwargs):
        """As fairseq's: every pass over a batch, teacher-forced or a search, begins here."""
        self.layers[0].self_attn.begin(len(src_tokens))
        return super().forward(src_tokens, *args, **kwargs)

    def reorder_encoder_out(self, encoder_out, new_order):
        """Keep one row per sentence: `PrefixAttention` projects it once and follows the search by itself."""
        return encoder_out


class PrefixDecoder(SearchedDecoder, Decoder):
    """fairseq's decoder with prefix attention."""

    layer_class = PrefixDecoderLayer

    def extract_features(self, prev_output_tokens, encoder_out=None, incremental_state=None, **options):
        """As fairseq's; in a search of the last tokens alone, and without asking whether one of them is padding."""
        if incremental_state is None:
            return super().extract_features(prev_output_tokens, encoder_out, **options)
        self._next_step(encoder_out, incremental_state, prev_output_tokens)
        x = self._embed(prev_output_tokens, incremental_state)
        return self._through_layers(x, encoder_out, incremental_state), {"attn": [None]}

    def _embed(self, tokens: torch.Tensor, state: dict | None) -> torch.Tensor:
        """Of all tokens, or in a search of the last ones: N x T x D."""
        x = self.embed_scale * self.embed_tokens(tokens if state is None else tokens[:, -1:])
        if self.embed_positions is not None:
            x = x + self.embed_positions(tokens, incremental_state=state)
        return _normed(self, x)

    def _start_search(self, encoder_out, state, tokens) -> None:
        Beams.begin(state, encoder_out["encoder_out"][0].size(1), tokens)

    def _through_layers(self, x: torch.Tensor, encoder_out: dict, state: dict | None) -> torch.Tensor:
        """N x T x D -> N x T x D. What is padded on the right of a target is behind everything that counts."""
        (source,), (padding,) = encoder_out["encoder_out"], encoder_out["encoder_padding_mask"]  # S x B x D, B x S
        x = x.transpose(0, 1)
        for layer in self.layers:
            x, _, _ = layer(x, source, padding, incremental_state=state)
        x = x.transpose(0, 1)
        return x if self.layer_norm is None else self.layer_norm(x)


class PromptEncoder(PrefixEncoder):
    """fairseq's encoder over [prompt | source]: each sees the other, and the decoder sees both."""

    def attach(self, prompt: Prompt) -> None:
        self._prompt = (prompt,)  # as an attribute it would be registered as a child

    def forward(self, src_tokens, *args, **kwargs):
        """As fairseq's; columns of `</s>` stand in for the prompt, so that it is no padding."""
        (prompt,) = self._prompt
        columns = src_tokens.new_full((len(src_tokens), prompt.length("encoder")), self.dictionary.eos())
        return super().forward(torch.cat([columns, src_tokens], dim=1), *args, **kwargs)

    def forward_embedding(self, src_tokens, token_embedding=None):
        (prompt,) = self._prompt
        x, embedded = super().forward_embedding(src_tokens[:, prompt.length("encoder") :], token_embedding)
        return torch.cat([_normed(self, prompt_columns(prompt, "encoder", x, len(x))), x], dim=1), embedded


class PromptDecoder(PrefixDecoder):
    """fairseq's decoder over [prompt | target]. In a search the prompt is read once per sentence: its keys and values
    depend on the source, by way of cross-attention, and neither on the hypothesis nor on the step.
    """

    layer_class = PromptDecoderLayer

    def attach(self, prompt: Prompt) -> None:
        self._prompt = (prompt,)  # as an attribute it would be registered as a child

    def extract_features(self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused):
        """Hidden states at the tokens of the target, or in a search at the last of them."""
        if incremental_state is not None:
            return super().extract_features(prev_output_tokens, encoder_out, incremental_state)
        x = self._embed(prev_output_tokens, None)
        prompt = self._columns(x, len(x))
        x = torch.cat([prompt, x], dim=1)
        return self._through_layers(x, encoder_out, None)[:, prompt.size(1) :], {"attn": [None]}

    def _columns(self, like: torch.Tensor, rows: int) -> torch.Tensor:
        (prompt,) = self._prompt
        return _normed(self, prompt_columns(prompt, "decoder", like, rows))  # rows x P x D

    def _start_search(self, encoder_out, state, tokens) -> None:
        """The same with the prompt, one row per sentence."""
        source, reading = encoder_out["encoder_out"][0], {}
        columns = self._columns(source, source.size(1))
        if columns.size(1):
            self._through_layers(columns, encoder_out, reading)
        super()._start_search(encoder_out, state, tokens)
        for layer in self.layers if reading else ():
            layer.self_attn.start_from_prefill(reading, None, Beams.of(state))
            layer.encoder_attn.start_from_prefill(reading, encoder_out["encoder_padding_mask"][0], Beams.of(state))


def _normed(side: TransformerEncoderBase | TransformerDecoderBase, x: torch.Tensor) -> torch.Tensor:
    """What fairseq does with embeddings before the first layer."""
    if side.layernorm_embedding is not None:
        x = side.layernorm_embedding(x)
    return side.dropout_module(x)


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


_SIZES = {"large": bart_large_architecture, "base": bart_base_architecture, "tiny": tiny_bart_architecture}
common.register_architectures(
    "prefix_bart", _SIZES, partial(common.prefix_defaults, defaults=PREFIX_DEFAULTS, sites=SITES)
)
common.register_architectures(
    "prompt_bart", _SIZES, partial(common.prompt_defaults, defaults=PROMPT_DEFAULTS, sites=PROMPT_SITES)
)
common.register_architectures("adapter_bart", _SIZES, common.adapter_defaults)
common.register_architectures("top_bart", _SIZES, common.top_defaults)
common.register_architectures("full_bart", _SIZES, common.whole_defaults)
