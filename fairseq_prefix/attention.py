"""The one place where a prefix meets attention: encoder self, decoder self and cross, teacher-forced and incremental;
and the self-attention of a decoder that reads the source itself (`SourceAttention`).

`PrefixAttention` replaces fairseq's `MultiheadAttention` (same parameters, same names). It attends with one softmax
to [prefix | keys], fused, and records no attention weights. The prefix is *pulled* from the model's `Prefix` at every
call, so that no path through the model can leave it out. In a search it is one table of keys for all hypotheses, which
is neither cached, copied, concatenated to theirs nor reordered; where the rows of a batch have different ones
(`PrefixBank`), a table per sentence is kept, as of the source.

Cross-attention tells beams from the shapes: encoder output stays at one row per sentence while the queries have one
row per hypothesis. fairseq's own mechanism for this, `set_beam_size`, leaves the beam size behind on the module,
where it corrupts later teacher-forced passes; it is not used.

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

from .adapter import Adaptable
from .prefix import Prefix
from .recompute import Recomputed


class PrefixAttention(MultiheadAttention):
    """Multi-head attention whose keys and values are preceded by a prefix's (paper, section 4.2)."""

    def attach(self, prefix: Prefix, site: str, layer: int) -> None:
        """Say which prefix feeds this module. (A tuple holds it: as an attribute it would be registered as a child.)"""
        self._attached = (prefix, site, layer)

    @property
    def attached_length(self) -> int:
        """How many virtual tokens come before the keys, in the row that has most."""
        prefix, site, _ = self._attached
        return prefix.length(site)

    @property
    def attached_lengths(self) -> int | Tensor:
        """How many each row has, where they differ: B x 1."""
        prefix, site, _ = self._attached
        return prefix.lengths(site)

    @property
    def attached_padding(self) -> Tensor | None:
        """Where the prefixes of rows are filled up to the longest: B x P, true there."""
        lengths = self.attached_lengths
        if isinstance(lengths, int):
            return None
        return torch.arange(self.attached_length, device=lengths.device) >= lengths

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
        q = self._split_heads(self.q_proj(query))  # N x H x T x d
        if self.encoder_decoder_attention:
            k, v, padding = self._source_keys(key, key_padding_mask, incremental_state, rows)
        else:
            k, v, padding = self._own_keys(query, key_padding_mask, incremental_state)
        if incremental_state is not None and length == 1:  # a step; more of them are a prompt that is read
            y = self._attend_to_parts(q, [*self._prefix_part(q, incremental_state), (k, v, padding)])
        else:
            padding = self._padding_after_prefix(padding, k)
            k, v = self._after_prefix(k, v)
            mask = _additive_mask(attn_mask, padding, k.size(2), q.dtype)
            grouped = self._group_beams(q, k.size(0))  # B x H x (N/B*T) x d
            y = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, dropout_p=self._drop_probability)
            y = self._ungroup_beams(y, length)
        y = y.permute(2, 0, 1, 3).reshape(length, rows, width)
        return self.out_proj(y), None

    def _prefix_key_value(self) -> tuple[Tensor, Tensor] | None:
        prefix, site, layer = self._attached
        return prefix.key_value(site, layer)

    def _prefix_part(self, like: Tensor, incremental_state: dict) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """The prefix as a part to attend to, if there is one: one row for all, or where they differ one per sentence,
        which is kept for the next steps.
        """
        kept = self.get_incremental_state(incremental_state, "prefix_state")
        if kept is None:
            prefix = self._prefix_key_value()
            if prefix is None:
                return []
            key, value = (p.to(like.dtype) for p in prefix)
            kept = {"key": key, "value": value, "padding": self.attached_padding, "beams": like.size(0) // key.size(0)}
            if key.size(0) > 1:
                self.set_incremental_state(incremental_state, "prefix_state", kept)
        return [(kept["key"], kept["value"], kept["padding"])]

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
        before = self.attached_padding
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

    def _attend_to_parts(self, q: Tensor, parts: list[tuple[Tensor, Tensor, Tensor | None]]) -> Tensor:
        """One softmax over several tables of keys, each with the rows of its own: 1, B or N of them.

        Args:
            q: N x H x 1 x d.
            parts: key and value (R x H x K x d), and where padding hides keys (R x K).
        """
        q, scores = q * self.scaling, []
        for key, _, padding in parts:
            part = self._group_beams(q, key.size(0)) @ key.mT  # R x H x N/R x K
            if padding is not None:
                part = part.masked_fill(padding[:, None, None], float("-inf"))
            scores.append(part.transpose(1, 2).flatten(0, 1))  # N x H x K
        weights = self.dropout_module(torch.cat(scores, dim=-1).float().softmax(dim=-1).to(q.dtype))
        y = torch.zeros_like(q)
        for (_, value, _), part in zip(parts, weights.split([s.size(-1) for s in scores], dim=-1), strict=True):
            attended = self._group_beams(part.unsqueeze(2), value.size(0)) @ value  # R x H x N/R x d
            y = y + attended.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        return y

    def _own_keys(self, query: Tensor, padding: Tensor | None, incremental_state: dict | None):
        """Self-attention: keys and values of this call, after those of the earlier steps when decoding."""
        k, v = self._split_heads(self.k_proj(query)), self._split_heads(self.v_proj(query))  # N x H x T x d
        if incremental_state is None:
            return k, v, padding
        cache = self._get_input_buffer(incremental_state)
        if "prev_key" in cache:
            previous = cache["prev_key"].size(2)
            k = torch.cat([cache["prev_key"], k], dim=2)
            v = torch.cat([cache["prev_value"], v], dim=2)
            earlier = cache["prev_key_padding_mask"]
            if padding is not None or earlier is not None:
                rows, now = k.size(0), k.size(2) - previous
                earlier = torch.zeros(rows, previous, dtype=torch.bool, device=k.device) if earlier is None else earlier
                padding = torch.zeros(rows, now, dtype=torch.bool, device=k.device) if padding is None else padding
                padding = torch.cat([earlier, padding], dim=1)
        cache.update(prev_key=k, prev_value=v, prev_key_padding_mask=padding)
        self._set_input_buffer(incremental_state, cache)
        return k, v, padding

    def _source_keys(self, source: Tensor | None, padding: Tensor | None, incremental_state: dict | None, rows: int):
        """Cross-attention: keys and values of the source, computed once per sentence."""
        cache = self._get_input_buffer(incremental_state) if incremental_state is not None else {}
        if "prev_key" in cache:
            return cache["prev_key"], cache["prev_value"], cache["prev_key_padding_mask"]
        k, v = self._split_heads(self.k_proj(source)), self._split_heads(self.v_proj(source))  # B x H x S x d
        if incremental_state is not None:
            cache = {"prev_key": k, "prev_value": v, "prev_key_padding_mask": padding, "beams": rows // k.size(0)}
            self._set_input_buffer(incremental_state, cache)
        return k, v, padding

    def take_source_keys(self, incremental_state: dict, other: dict, rows: int) -> None:
        """Start a search over `rows` hypotheses with the source's keys and values that another state holds."""
        cache = self._get_input_buffer(other)
        self._set_input_buffer(incremental_state, {**cache, "beams": rows // cache["prev_key"].size(0)})

    def reorder_incremental_state(self, incremental_state: dict, new_order: Tensor) -> dict:
        """Follow the beam search: own keys go with the hypotheses, the source's only with the sentences."""
        self._follow_sentences(incremental_state, new_order)
        if not self.encoder_decoder_attention:
            return super().reorder_incremental_state(incremental_state, new_order)
        cache = self._get_input_buffer(incremental_state)
        if cache:
            _drop_finished(cache, ("prev_key", "prev_value", "prev_key_padding_mask"), new_order)
            self._set_input_buffer(incremental_state, cache)
        return incremental_state

    def _follow_sentences(self, incremental_state: dict, new_order: Tensor) -> None:
        kept = self.get_incremental_state(incremental_state, "prefix_state")
        if kept is not None:
            _drop_finished(kept, ("key", "value", "padding"), new_order)


def _drop_finished(cache: dict, names: tuple[str, ...], new_order: Tensor) -> None:
    """Of what is kept once per sentence, keep what belongs to the sentences that the search goes on with."""
    beams = cache["beams"]
    if cache[names[0]].size(0) * beams != new_order.numel():
        sentences = new_order.view(-1, beams)[:, 0] // beams
        for name in names:
            if cache[name] is not None:
                cache[name] = cache[name].index_select(0, sentences)


class SourceAttention(PrefixAttention):
    """Self-attention of a decoder-only model, whose texts are [source | target].

    Called with a whole text it is causal attention; into an empty incremental state it then puts the text's keys and
    values. Called for one step of a search that `begin` was told of, the query attends with one softmax to three parts,
    each of which is kept once for all that share it: the prefix (one row), the source (a row per sentence) and what the
    hypothesis itself has put out (a row per hypothesis).
    """

    def begin(self, incremental_state: dict, source: dict | None, rows: int) -> None:
        """Start a search over `rows` hypotheses after a source: `key`, `value` (B x H x S x d), `padding` (B x S)."""
        cache = {"prev_key": None, "prev_value": None, "source_key": None}
        if source is not None:
            cache |= {f"source_{name}": tensor for name, tensor in source.items()}
            cache["beams"] = rows // source["key"].size(0)
        self._set_input_buffer(incremental_state, cache)

    def forward(
        self, query: Tensor, *, incremental_state: dict | None = None, attn_mask: Tensor | None = None, **unused
    ) -> tuple[Tensor, None]:
        """As `PrefixAttention`'s, for texts that are padded on the right.

        Args:
            query: T x N x D; with a search's incremental state T is 1.
            attn_mask: true where [prefix | keys] may be attended to, T x (P+T) or N x 1 x T x (P+T). None: causal,
                which is possible without a prefix only.
        """
        length, rows, width = query.shape
        q, k, v = (self._split_heads(project(query)) for project in (self.q_proj, self.k_proj, self.v_proj))
        cache = self._get_input_buffer(incremental_state) if incremental_state is not None else {}
        if cache:
            y = self._step(q, k, v, cache, incremental_state)
        else:
            cache.update(prev_key=k, prev_value=v)
            k, v = self._after_prefix(k, v)
            drop = self._drop_probability
            y = F.scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal=attn_mask is None)
        if incremental_state is not None:
            self._set_input_buffer(incremental_state, cache)
        y = y.permute(2, 0, 1, 3).reshape(length, rows, width)
        return self.out_proj(y), None

    def _step(self, q: Tensor, k: Tensor, v: Tensor, cache: dict, incremental_state: dict) -> Tensor:
        if cache["prev_key"] is not None:
            k = torch.cat([cache["prev_key"], k], dim=2)
            v = torch.cat([cache["prev_value"], v], dim=2)
        cache.update(prev_key=k, prev_value=v)
        parts = self._prefix_part(q, incremental_state)
        if cache["source_key"] is not None:
            parts.append((cache["source_key"], cache["source_value"], cache["source_padding"]))
        return self._attend_to_parts(q, [*parts, (k, v, None)])

    def reorder_incremental_state(self, incremental_state: dict, new_order: Tensor) -> dict:
        """Follow the beam search: own keys go with the hypotheses, the source's only with the sentences."""
        self._follow_sentences(incremental_state, new_order)
        cache = self._get_input_buffer(incremental_state)
        if cache and cache["prev_key"] is not None:
            cache.update({name: cache[name].index_select(0, new_order) for name in ("prev_key", "prev_value")})
            if cache["source_key"] is not None:
                _drop_finished(cache, ("source_key", "source_value", "source_padding"), new_order)
            self._set_input_buffer(incremental_state, cache)
        return incremental_state


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
