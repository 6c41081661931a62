"""The one place where a prefix meets attention: encoder self, decoder self and cross, teacher-forced and incremental;
and the self-attention of a decoder that reads the source itself (`SourceAttention`).

`PrefixAttention` replaces fairseq's `MultiheadAttention` (same parameters, same names). It attends with one softmax
to [prefix | keys], fused, and records no attention weights. The prefix is *pulled* from the model's `Prefix` at every
call, so that no path through the model can leave it out. In a search it is one table of keys for all hypotheses, which
is neither copied, concatenated to theirs nor reordered; where the rows of a batch have different ones (`PrefixBank`),
there is a table per sentence, as of the source. What is kept from step to step is in `Beams`.

Attention tells from the shapes which hypotheses share keys. fairseq's own mechanism for this, `set_beam_size`, leaves
the beam size behind on the module, where it corrupts later teacher-forced passes; it is not used.

Letters at line ends: B sentences, N rows of queries (hypotheses), T queries per row, S keys, P prefix, H heads, d
head width.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor

from ..decoding.beams import Beams, KeyBlock
from ..methods.adapter import Adaptable
from ..methods.prefix import Prefix
from .recompute import Recomputed


class PrefixAttention(MultiheadAttention):
    """Multi-head attention whose keys and values are preceded by a prefix's (paper, section 4.2)."""

    def attach(self, prefix: Prefix, site: str, layer: int) -> None:
        """Say which prefix feeds this module. (A tuple holds it: as an attribute it would be registered as a child.)"""
        self._attached = (prefix, site, layer)

    def begin(self, rows: int) -> None:
        """Tell what is attached that a pass over a batch of `rows` sentences begins."""
        prefix, _, _ = self._attached
        prefix.begin(rows)

    @property
    def attachment(self) -> tuple[Prefix, str, int]:
        """What `attach` was given."""
        return self._attached

    @property
    def prefix_length(self) -> int:
        """How many virtual tokens come before the keys, in the row that has most."""
        prefix, site, _ = self._attached
        return prefix.length(site)

    @property
    def prefix_row_lengths(self) -> int | Tensor:
        """How many each row has, where they differ: B x 1."""
        prefix, site, _ = self._attached
        return prefix.row_lengths(site)

    @property
    def prefix_padding(self) -> Tensor | None:
        """Where the prefixes of rows are filled up to the longest: B x P, true there."""
        lengths = self.prefix_row_lengths
        if isinstance(lengths, int):
            return None
        return torch.arange(self.prefix_length, device=lengths.device) >= lengths

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
        """As fairseq's, except that the second value, the attention weights, is always None.

        Args:
            query: T x N x D, T being 1 in a step of a search.
            key, value: S x B x D, with B = N or, in cross-attention, N a multiple of B.
            key_padding_mask: B x S, true at padding.
            attn_mask: T x S, added to the scores.
        """
        length, rows, width = query.shape
        q, beams = self._split_heads(self.q_proj(query)), Beams.of(incremental_state)  # N x H x T x d
        if beams is not None:
            y = self._attend_to_parts(q, self._parts(query, key, key_padding_mask, beams))
        else:
            k, v = self._project(key if self.encoder_decoder_attention else query)
            if incremental_state is not None:  # of whoever reads something before a search (`start_from_prefill`)
                self._set_input_buffer(incremental_state, {"prev_key": k, "prev_value": v})
            y = self._attend(q, k, v, key_padding_mask, attn_mask)
        y = y.permute(2, 0, 1, 3).reshape(length, rows, width)
        return self.out_proj(y), None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._split_heads(self.k_proj(x)), self._split_heads(self.v_proj(x))  # B x H x S x d

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """Of a whole text (q: N x H x T x d; k, v: B x H x S x d)."""
        padding = self._padding_after_prefix(padding, k)
        k, v = self._after_prefix(k, v)
        mask = _additive_mask(attn_mask, padding, k.size(2), q.dtype)
        grouped = self._group_beams(q, k.size(0))  # B x H x (N/B*T) x d
        y = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, dropout_p=self._drop_probability)
        return self._ungroup_beams(y, q.size(2))

    def cached_key_value(self, incremental_state: dict) -> tuple[Tensor, Tensor]:
        """Keys and values (B x H x S x d) of a pass that was given this state and is no step of a search."""
        noted = self._get_input_buffer(incremental_state)
        return noted["prev_key"], noted["prev_value"]

    def start_from_prefill(self, reading: dict, padding: Tensor | None, beams: Beams) -> None:
        """Let the hypotheses of each sentence begin after what was read of it in a pass that was given `reading`."""
        beams.cache_of(self).blocks["source"] = KeyBlock(*self.cached_key_value(reading), padding)

    def _parts(self, query: Tensor, source: Tensor | None, padding: Tensor | None, beams: Beams) -> list[KeyBlock]:
        """What a step of a search attends to: the prefix, then the source or what came before."""
        kept = beams.cache_of(self)
        prefix = self._prefix_key_value() if "prefix" not in kept.blocks else None
        if prefix is not None:
            key, value = (p.to(query.dtype) for p in prefix)
            kept.blocks["prefix"] = KeyBlock(key, value, self.prefix_padding)
        if self.encoder_decoder_attention:
            if "source" not in kept.blocks:
                kept.blocks["source"] = KeyBlock(*self._project(source), padding)
            return list(kept.blocks.values())
        return [*kept.blocks.values(), beams.append(self, *self._project(query))]

    def _prefix_key_value(self) -> tuple[Tensor, Tensor] | None:
        prefix, site, layer = self._attached
        return prefix.key_value(site, layer)

    def _after_prefix(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with the prefix's before them, B x H x (P+S) x d."""
        prefix = self._prefix_key_value()
        if prefix is None:
            return k, v
        k, v = (
            torch.cat([p.to(x.dtype).expand(x.size(0), -1, -1, -1), x], dim=2)
            for p, x in zip(prefix, (k, v), strict=True)
        )
        return k, v

    def _padding_after_prefix(self, padding: Tensor | None, k: Tensor) -> Tensor | None:
        """The padding of keys (B x S) with that of the prefixes before it, if rows have prefixes of their own."""
        before = self.prefix_padding
        if before is None:
            return padding
        padding = before.new_zeros(k.size(0), k.size(2)) if padding is None else padding.bool()
        return torch.cat([before, padding], dim=1)  # B x (P+S)

    @property
    def _drop_probability(self) -> float:
        dropout = self.dropout_module
        return dropout.p if self.training or dropout.apply_during_inference else 0.0

    def _split_heads(self, x: Tensor) -> Tensor:
        length, rows, _ = x.shape
        return x.view(length, rows, self.num_heads, self.head_dim).permute(1, 2, 0, 3)  # N x H x T x d

    @staticmethod
    def _group_beams(q: Tensor, sentences: int) -> Tensor:
        if q.size(0) == sentences:
            return q
        return q.unflatten(0, (sentences, -1)).transpose(1, 2).flatten(2, 3)  # B x H x (N/B*T) x d

    @staticmethod
    def _ungroup_beams(y: Tensor, length: int) -> Tensor:
        return y.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)  # N x H x T x d

    def _attend_to_parts(self, q: Tensor, parts: list[KeyBlock]) -> Tensor:
        """One softmax over several tables of keys, each with the rows of its own.

        Args:
            q: N x H x 1 x d.
        """
        q, scores = q * self.scaling, []
        for key, _, hidden in parts:
            part = self._group_beams(q, key.size(0)) @ key.mT  # R x H x N/R x K, for R of 1, B or N rows
            if hidden is not None:
                hidden = hidden[:, None] if hidden.dim() == 3 else hidden[:, None, None]
                part = part.masked_fill(hidden, float("-inf"))
            scores.append(self._ungroup_beams(part, 1))  # N x H x 1 x K
        weights = self.dropout_module(torch.cat(scores, dim=-1).float().softmax(dim=-1).to(q.dtype))
        y = None
        for (_, value, _), part in zip(parts, weights.split([s.size(-1) for s in scores], dim=-1), strict=True):
            attended = self._ungroup_beams(self._group_beams(part, value.size(0)) @ value, 1)  # N x H x 1 x d
            y = attended if y is None else y + attended
        return y


class SourceAttention(PrefixAttention):
    """Self-attention of a decoder-only model, whose texts are [source | target].

    Called with a whole text it is causal attention. In a search the query attends with one softmax to the prefix, the
    source, which is there as a row per sentence ("source" of what this layer keeps in `Beams`), and what the hypotheses
    wrote.
    """

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """Of a whole text, padded on the right, behind everything that counts.

        Args:
            attn_mask: true where [prefix | keys] may be attended to, T x (P+T) or N x 1 x T x (P+T). None: causal,
                which is possible without a prefix only.
        """
        k, v = self._after_prefix(k, v)
        drop = self._drop_probability
        return F.scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal=attn_mask is None)


def _additive_mask(causal: Tensor | None, padding: Tensor | None, columns: int, dtype: torch.dtype) -> Tensor | None:
    """The mask of [prefix | keys]; what stands before the columns of `causal` and `padding` is visible to all."""
    mask = None
    if causal is not None:
        mask = F.pad(causal.to(dtype), (columns - causal.size(1), 0))  # T x (P+S)
    if padding is not None:
        hidden = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
        hidden = hidden.masked_fill_(padding.bool(), float("-inf"))[:, None, None]
        hidden = F.pad(hidden, (columns - padding.size(1), 0))  # B x 1 x 1 x (P+S)
        mask = hidden if mask is None else mask + hidden
    return mask


class PrefixEncoderLayer(Recomputed, TransformerEncoderLayerBase):
    """fairseq's encoder layer with `PrefixAttention`."""

    def build_self_attention(self, embed_dim, cfg):
        return PrefixAttention(
            embed_dim, cfg.encoder.attention_heads, dropout=cfg.attention_dropout, self_attention=True
        )


class SourceSelfAttention:
    """A decoder's layer with `SourceAttention`."""

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return SourceAttention(
            embed_dim, cfg.decoder.attention_heads, dropout=cfg.attention_dropout, self_attention=True
        )


class SourceDecoderLayer(SourceSelfAttention, Recomputed, Adaptable, TransformerDecoderLayerBase):
    """fairseq's decoder layer without cross-attention, with `SourceAttention`; GELU's approximation is one kernel."""

    def __init__(self, cfg):
        super().__init__(cfg, no_encoder_attn=True)
        if cfg.activation_fn == "gelu_accurate":
            self.activation_fn = partial(F.gelu, approximate="tanh")


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


class PromptDecoderLayer(SourceSelfAttention, PrefixDecoderLayer):
    """The same for a decoder whose input is [prompt | target]: the prompt's keys and values depend on the source, by
    way of cross-attention, and so are kept once per sentence while beams are searched.
    """
