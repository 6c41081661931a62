"""Encoder-decoder models: fairseq's encoder and decoder, with layers that take what a method trains.

Positions of the text are never shifted. Virtual tokens of a prompt have no position of their own (a trained
embedding would absorb it), precede the embedded text and pass through the embeddings' norm with it.

Shape letters in comments: B sentences, N hypotheses, S source tokens, T target tokens, P virtual tokens, D width, L
layers, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoder,
    TransformerDecoderBase,
    TransformerEncoder,
    TransformerEncoderBase,
)
from torch import Tensor, nn

from ..attention.beams import Beams, SearchedDecoder
from ..attention.layers import (
    AdaptableDecoderLayer,
    AdaptableEncoderLayer,
    PrefixDecoderLayer,
    PrefixEncoderLayer,
    PromptDecoderLayer,
)
from ..errors import UsageError
from ..methods.prefix import NO_PREFIX
from ..methods.prompt import Prompt
from .model import FamilyModel


class EncoderDecoder(FamilyModel):
    """What encoder-decoder families share; derive from it and from a model of fairseq's."""

    @classmethod
    def build_model(cls, args, task):
        """Build the model (fairseq's hook).

        Raises:
            UsageError: a prompt is combined with --left-pad-target or --no-token-positional-embeddings.
        """
        if cls.layers_for(args) == "prompt":
            if getattr(getattr(task, "cfg", None), "left_pad_target", False):
                raise UsageError(f"--left-pad-target is not supported by --arch {args.arch}; leave it out")
            if getattr(args, "no_token_positional_embeddings", False):
                raise UsageError(
                    f"--no-token-positional-embeddings is not supported by --arch {args.arch}; leave it out"
                )
        return super().build_model(args, task)

    @classmethod
    def layers_for(cls, args) -> str:
        """Return which layers the model is built of (a key of `ENCODERS`); a method may choose others than stock."""
        return "stock"

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        return ENCODERS[cls.layers_for(cfg)](cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        return DECODERS[cls.layers_for(cfg)](cfg, tgt_dict, embed_tokens)

    @classmethod
    def source_room(cls, args) -> int:
        framing = cls.family.framing(cls.recorded(args))
        return args.max_source_positions - len(framing.before_source) - len(framing.after_source)

    def attentions(self):
        for layer, module in enumerate(self.encoder.layers):
            yield "encoder", layer, module.self_attn
        for layer, module in enumerate(self.decoder.layers):
            yield "decoder", layer, module.self_attn
            yield "cross", layer, module.encoder_attn

    def blocks(self):
        return {"encoder": self.encoder.layers, "decoder": self.decoder.layers}

    def forward(self, *args, return_all_hiddens: bool = False, **kwargs):
        """Compute the base's forward pass; hidden states are kept only on request."""
        return super().forward(*args, return_all_hiddens=return_all_hiddens, **kwargs)

    def max_decoder_positions(self):
        return self.decoder.max_positions()

    def word_room(self) -> int:
        """Return how many words the base can read at once."""
        return min(self.encoder.max_positions(), self.decoder.max_positions()) - 2

    def read_words(self, text: list[int]) -> dict[str, Tensor]:
        """Return the keys and values of words that the base reads, site -> L x 2 x H x T x d.

        The words are framed as in pretraining. Encoder keys come from the encoder, decoder keys from the decoder fed
        with the same words, cross keys from the encoder's output.
        """
        dictionary, framing = self.encoder.dictionary, self.framing
        before, after, start = (
            [dictionary.index(symbol) for symbol in symbols]
            for symbols in (framing.before_source, framing.after_source, (framing.start, *framing.before_target))
        )
        source, previous = torch.tensor([[*before, *text, *after]]), torch.tensor([[*start, *text]])
        with self._recorded_projections() as recorded:
            self.forward(source, torch.tensor([source.size(1)]), previous)
        first = {"encoder": len(before), "cross": len(before), "decoder": len(start)}
        read: dict[str, list[Tensor]] = {}
        for site, _, attention in self.attentions():
            rows = slice(first[site], first[site] + len(text))
            pair = [recorded[projection][rows, 0] for projection in (attention.k_proj, attention.v_proj)]  # T x D
            read.setdefault(site, []).append(torch.stack(pair).unflatten(2, (attention.num_heads, -1)))
        return {site: torch.stack(layers).transpose(2, 3) for site, layers in read.items()}  # L x 2 x H x T x d

    @contextmanager
    def _recorded_projections(self) -> Iterator[dict[nn.Module, Tensor]]:
        """Keep the output of every projection to keys and values inside the block."""
        recorded: dict[nn.Module, Tensor] = {}
        hooks = [
            projection.register_forward_hook(lambda module, _, output: recorded.__setitem__(module, output))
            for _, _, attention in self.attentions()
            for projection in (attention.k_proj, attention.v_proj)
        ]
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()

    def build_prompt(self, geometry, reparam: str, mid_dim: int) -> Prompt:
        """Return a new prompt, attached to the stacks that take one."""
        prompt = Prompt(geometry, reparam, mid_dim)
        self.attach(NO_PREFIX)
        for stack in (self.encoder, self.decoder):
            if isinstance(stack, PromptEncoder | PromptDecoder):
                stack.attach(prompt)
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
    """fairseq's encoder with prefix attention; its output keeps one row per sentence while beams are searched."""

    layer_class = PrefixEncoderLayer

    def forward(self, src_tokens, *args, **kwargs):
        """Encode; every pass over a batch, teacher-forced or a search, begins here."""
        self.layers[0].self_attn.begin(len(src_tokens))
        return super().forward(src_tokens, *args, **kwargs)

    def reorder_encoder_out(self, encoder_out, new_order):
        """Return the output as it is: `PrefixAttention` projects it once per sentence and follows the search."""
        return encoder_out


class PrefixDecoder(SearchedDecoder, Decoder):
    """fairseq's decoder with prefix attention."""

    layer_class = PrefixDecoderLayer

    def extract_features(self, prev_output_tokens, encoder_out=None, incremental_state=None, **options):
        """Return hidden states; when searching, embed only the last token: hypotheses are unpadded."""
        if incremental_state is None:
            return super().extract_features(prev_output_tokens, encoder_out, **options)
        self._next_step(encoder_out, incremental_state, prev_output_tokens)
        x = self._embed(prev_output_tokens, incremental_state)
        return self._through_layers(x, encoder_out, incremental_state), {"attn": [None]}

    def _embed(self, tokens: Tensor, state: dict | None) -> Tensor:
        """Return the embeddings of all tokens, or of the last ones when searching: N x T x D."""
        x = self.embed_scale * self.embed_tokens(tokens if state is None else tokens[:, -1:])
        if self.embed_positions is not None:
            x = x + self.embed_positions(tokens, incremental_state=state)
        return _normed(self, x)

    def _start_search(self, encoder_out, state, tokens) -> None:
        Beams.begin(state, encoder_out["encoder_out"][0].size(1), tokens)

    def _through_layers(self, x: Tensor, encoder_out: dict, state: dict | None) -> Tensor:
        """Return the hidden states after all layers, N x T x D; padding is behind everything that counts."""
        (source,), (padding,) = encoder_out["encoder_out"], encoder_out["encoder_padding_mask"]  # S x B x D, B x S
        x = x.transpose(0, 1)
        for layer in self.layers:
            x, _, _ = layer(x, source, padding, incremental_state=state)
        x = x.transpose(0, 1)
        return x if self.layer_norm is None else self.layer_norm(x)


class TakesPrompt:
    """A stack that reads a prompt before its input."""

    def attach(self, prompt: Prompt) -> None:
        self._attached = {"prompt": prompt}  # in a container: as an attribute it would be registered as a child

    def columns(self, site: str, like: Tensor, rows: int) -> Tensor:
        """Return the prompt's normed embeddings, rows x P x D."""
        return _normed(self, self._attached["prompt"].columns(site, like, rows))


class PromptEncoder(TakesPrompt, PrefixEncoder):
    """fairseq's encoder over [prompt | source]: both see each other, and the decoder sees both."""

    def forward(self, src_tokens, *args, **kwargs):
        """Encode; columns of `</s>` stand for the prompt, so that it does not count as padding."""
        length = self._attached["prompt"].length("encoder")
        columns = src_tokens.new_full((len(src_tokens), length), self.dictionary.eos())
        return super().forward(torch.cat([columns, src_tokens], dim=1), *args, **kwargs)

    def forward_embedding(self, src_tokens, token_embedding=None):
        length = self._attached["prompt"].length("encoder")
        x, embedded = super().forward_embedding(src_tokens[:, length:], token_embedding)
        return torch.cat([self.columns("encoder", x, len(x)), x], dim=1), embedded


class PromptDecoder(TakesPrompt, PrefixDecoder):
    """fairseq's decoder over [prompt | target].

    When searching, the prompt is read once per sentence: its keys and values depend on the source, through
    cross-attention, and neither on the hypothesis nor on the step.
    """

    layer_class = PromptDecoderLayer

    def extract_features(self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused):
        """Return hidden states at the tokens of the target, or when searching at the last one."""
        if incremental_state is not None:
            return super().extract_features(prev_output_tokens, encoder_out, incremental_state)
        x = self._embed(prev_output_tokens, None)
        prompt = self.columns("decoder", x, len(x))
        x = torch.cat([prompt, x], dim=1)
        return self._through_layers(x, encoder_out, None)[:, prompt.size(1) :], {"attn": [None]}

    def _start_search(self, encoder_out, state, tokens) -> None:
        source = encoder_out["encoder_out"][0]
        prefill: dict = {}
        columns = self.columns("decoder", source, source.size(1))
        if columns.size(1):
            self._through_layers(columns, encoder_out, prefill)
        super()._start_search(encoder_out, state, tokens)
        for layer in self.layers if prefill else ():
            layer.self_attn.start_from_prefill(prefill, None, Beams.of(state))
            layer.encoder_attn.start_from_prefill(prefill, encoder_out["encoder_padding_mask"][0], Beams.of(state))


def _normed(stack: TransformerEncoderBase | TransformerDecoderBase, x: Tensor) -> Tensor:
    """Return embeddings as fairseq passes them to the first layer."""
    if stack.layernorm_embedding is not None:
        x = stack.layernorm_embedding(x)
    return stack.dropout_module(x)


# Which encoder and decoder a method asks for (`layers_for`). "stock" is fairseq's own, bit for bit.
ENCODERS = {
    "stock": TransformerEncoder,
    "adaptable": AdaptableEncoder,
    "prefix": PrefixEncoder,
    "prompt": PromptEncoder,
}
DECODERS = {
    "stock": TransformerDecoder,
    "adaptable": AdaptableDecoder,
    "prefix": PrefixDecoder,
    "prompt": PromptDecoder,
}
