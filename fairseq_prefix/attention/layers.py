"""fairseq's attention and transformer layers, with a prefix before the keys.

`PrefixAttention` replaces fairseq's `MultiheadAttention` in the encoder, the decoder and cross-attention, with the same
parameter names. Attention pulls the prefix from the model's `Prefix` at every call, so that no path through the model
can leave the prefix out. In a search the prefix is one block of keys for all hypotheses, which is neither copied
nor reordered; where the rows of a batch have different prefixes (`PrefixBank`), the block has a row per sentence.
`Beams` holds what attention keeps from step to step.

fairseq's own way to share keys among hypotheses, `set_beam_size`, is not used: it leaves the beam size behind on the
module, where it corrupts later teacher-forced passes.

Shape letters in comments: B sentences, N rows of queries (hypotheses), T queries per row, S keys, P prefix, H heads, d
head width, D = H*d.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from ..mixin import Mixin
from .attend import KeyBlock, attend, attend_to_parts, join_heads, split_heads
from .beams import Beams
from .recompute import Recomputed


class KeyValueSource(Protocol):
    """What attention reads keys and values from: a `Prefix`, `ReadPrompt` or `PrefixBank`.

    While a layer is recomputed, it is what their `current()` returned in the original pass.
    """

    def begin(self, rows: int) -> None:
        """Begin a pass over a batch of `rows` sentences (not called while a layer is recomputed)."""

    def length(self, site: str) -> int:
        """Return the number of virtual tokens, of the row that has most."""

    def row_lengths(self, site: str) -> int | Tensor:
        """Return the number of virtual tokens of each row, B x 1, or one number for all."""

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return key and value, each 1 x H x P x d or B x H x P x d, or None."""


class PrefixMixin(Mixin):
    """Give an attention module a prefix and, in a search, cached keys.

    A module derives from it, projects its input and passes the result to `attend` or `attend_to_parts`.
    """

    def attach(self, prefix: KeyValueSource, site: str, layer: int) -> None:
        """Set which prefix this module reads. (In a tuple: an attribute would register the prefix as a child.)"""
        self.attachment = (prefix, site, layer)

    def begin(self, rows: int) -> None:
        """Announce a pass over a batch of `rows` sentences to the prefix."""
        self.attachment[0].begin(rows)

    @property
    def prefix_length(self) -> int:
        """The number of virtual tokens before the keys, in the row that has most."""
        prefix, site, _ = self.attachment
        return prefix.length(site)

    @property
    def prefix_row_lengths(self) -> int | Tensor:
        """The number of virtual tokens of each row, B x 1, or one number for all rows."""
        prefix, site, _ = self.attachment
        return prefix.row_lengths(site)

    @property
    def prefix_padding(self) -> Tensor | None:
        """B x P, true where a row's prefix is padded to the longest; None if all rows have the same length."""
        lengths = self.prefix_row_lengths
        if isinstance(lengths, int):
            return None
        return torch.arange(self.prefix_length, device=lengths.device) >= lengths

    def prefix_key_value(self) -> tuple[Tensor, Tensor] | None:
        """Return the prefix's key and value, each 1 x H x P x d or B x H x P x d, or None without a prefix."""
        prefix, site, layer = self.attachment
        return prefix.key_value(site, layer)

    def cached_key_value(self, prefill: dict) -> tuple[Tensor, Tensor]:
        """Return the keys and values, each B x H x S x d, of a pass whose incremental state was `prefill`."""
        return prefill[self]

    def start_from_prefill(self, prefill: dict, padding: Tensor | None, beams: Beams) -> None:
        """Let a search continue the texts that a pass with the incremental state `prefill` has read.

        Args:
            padding: B x S, true at padding.
        """
        beams.cache_of(self).blocks["read"] = KeyBlock(*self.cached_key_value(prefill), padding)

    def cached_blocks(self, beams: Beams, dtype: torch.dtype) -> dict[str, KeyBlock]:
        """Return the blocks of keys that do not change from step to step. The first step adds the prefix."""
        blocks = beams.cache_of(self).blocks
        prefix = None if "prefix" in blocks else self.prefix_key_value()
        if prefix is not None:
            key, value = (p.to(dtype) for p in prefix)
            blocks["prefix"] = KeyBlock(key, value, self.prefix_padding)
        return blocks


class PrefixAttention(PrefixMixin, MultiheadAttention):
    """fairseq's multi-head attention with a prefix before the keys and values (paper, section 4.2)."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """Return T x N x D, and None in place of fairseq's attention weights.

        Args:
            query: T x N x D, T being 1 in a step of a search.
            key, value: S x B x D, with B = N or, in cross-attention, N a multiple of B.
            key_padding_mask: B x S, true at padding.
            incremental_state: that of a search, or of a prefill (a pass that `start_from_prefill` continues), or None.
            attn_mask: T x S, added to the scores.
        """
        q, beams = split_heads(self.q_proj(query), self.num_heads), Beams.of(incremental_state)  # N x H x T x d
        source: Any = key if self.encoder_decoder_attention else query
        if beams is not None:
            y = attend_to_parts(q, self._parts(query, source, key_padding_mask, beams), self._dropout)
        else:
            k, v = self._project(source)
            if incremental_state is not None:
                incremental_state[self] = k, v
            y = self._attend(q, k, v, key_padding_mask, attn_mask)
        return self.out_proj(join_heads(y)), None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.num_heads
        return split_heads(self.k_proj(x), heads), split_heads(self.v_proj(x), heads)  # B x H x S x d

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """Attend to a whole text (q: N x H x T x d; k, v: B x H x S x d)."""
        prefix = self.prefix_key_value()
        columns = k.size(2) + (0 if prefix is None else prefix[0].size(2))
        before = self.prefix_padding
        if before is not None:
            padding = before.new_zeros(k.size(0), k.size(2)) if padding is None else padding.bool()
            padding = torch.cat([before, padding], dim=1)  # B x (P+S)
        return attend(q, k, v, prefix, _additive_mask(attn_mask, padding, columns, q.dtype), self._dropout)

    def _parts(self, query: Tensor, source: Tensor, padding: Tensor | None, beams: Beams) -> list[KeyBlock]:
        """Return what a step of a search attends to: the prefix, then the source or the tokens so far."""
        blocks = self.cached_blocks(beams, query.dtype)
        if not self.encoder_decoder_attention:
            return [*blocks.values(), beams.append(self, *self._project(source))]
        if "read" not in blocks:
            blocks["read"] = KeyBlock(*self._project(source), padding)
        return list(blocks.values())

    @property
    def _dropout(self) -> float:
        dropout = self.dropout_module
        return dropout.p if self.training or dropout.apply_during_inference else 0.0


class CausalPrefixAttention(PrefixAttention):
    """Causal self-attention over [source | target] of a decoder-only model, or over [prompt | target].

    In a search a query attends with one softmax to the prefix, to what was read before (a row per sentence, from a
    prefill) and to the tokens of its hypothesis.
    """

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """Attend to a whole text; causality hides its padding, which is on the right.

        Args:
            attn_mask: true where [prefix | keys] are visible, T x (P+T) or N x 1 x T x (P+T). None: causal.
        """
        return attend(q, k, v, self.prefix_key_value(), attn_mask, self._dropout, causal=attn_mask is None)


def _additive_mask(causal: Tensor | None, padding: Tensor | None, columns: int, dtype: torch.dtype) -> Tensor | None:
    """Return the mask of [prefix | keys], to be added to scores.

    Args:
        causal: T x S, already additive.
        padding: B x S or B x (P+S), true where hidden.
        columns: P+S. What is before the columns of `causal` and `padding` is visible to all.
    """
    mask = None
    if causal is not None:
        mask = F.pad(causal.to(dtype), (columns - causal.size(1), 0))  # T x (P+S)
    if padding is not None:
        hidden = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
        hidden = hidden.masked_fill_(padding.bool(), float("-inf"))[:, None, None]
        hidden = F.pad(hidden, (columns - padding.size(1), 0))  # B x 1 x 1 x (P+S)
        mask = hidden if mask is None else mask + hidden
    return mask


class Adaptable:
    """A layer of fairseq's that may have an `adapter`: a module that changes the layer's output."""

    adapter: nn.Module | None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.adapter = None

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if self.adapter is None:
            return output
        if isinstance(output, tuple):  # a decoder's layer returns attention weights as well
            return self.adapter(output[0]), *output[1:]
        return self.adapter(output)


class AdaptableEncoderLayer(Recomputed, Adaptable, TransformerEncoderLayerBase):
    """fairseq's encoder layer; may have an adapter."""


class AdaptableDecoderLayer(Recomputed, Adaptable, TransformerDecoderLayerBase):
    """fairseq's decoder layer; may have an adapter."""


class PrefixEncoderLayer(Recomputed, TransformerEncoderLayerBase):
    """fairseq's encoder layer with `PrefixAttention`."""

    def build_self_attention(self, embed_dim, cfg):
        return PrefixAttention(
            embed_dim, cfg.encoder.attention_heads, dropout=cfg.attention_dropout, self_attention=True
        )


class CausalSelfAttention:
    """A decoder's layer with `CausalPrefixAttention`."""

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return CausalPrefixAttention(
            embed_dim, cfg.decoder.attention_heads, dropout=cfg.attention_dropout, self_attention=True
        )


class CausalDecoderLayer(CausalSelfAttention, Recomputed, Adaptable, TransformerDecoderLayerBase):
    """fairseq's decoder layer without cross-attention, with `CausalPrefixAttention`; may have an adapter."""

    def __init__(self, cfg):
        super().__init__(cfg, no_encoder_attn=True)
        if cfg.activation_fn == "gelu_accurate":
            self.activation_fn = partial(F.gelu, approximate="tanh")  # the same function in one kernel


class PrefixDecoderLayer(Recomputed, TransformerDecoderLayerBase):
    """fairseq's decoder layer with `PrefixAttention` in both places."""

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return PrefixAttention(
            embed_dim, cfg.decoder.attention_heads, dropout=cfg.attention_dropout, self_attention=True
        )

    def build_encoder_attention(self, embed_dim, cfg):
        return PrefixAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            encoder_decoder_attention=True,
        )


class PromptDecoderLayer(CausalSelfAttention, PrefixDecoderLayer):
    """`PrefixDecoderLayer` of a decoder whose input is [prompt | target].

    The prompt's keys and values depend on the source, by way of cross-attention, so a search keeps them per sentence.
    """
