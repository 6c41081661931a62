"""Attention as functions of projected queries, keys and values: one softmax over everything that a query reads.

Queries may share keys in two ways, and neither copies keys. The hypotheses of a sentence read the sentence's keys: N
rows of queries, and B rows of keys. In a model with grouped key heads (as Llama) H query heads read G key heads: query
head h reads key head h // (H/G). Both functions tell from the shapes what is shared, and multiply all queries that read
the same keys at once.

Shape letters in comments: B sentences, N rows of queries (a multiple of B), T queries per row, S keys, P prefix, H
query heads, G key heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyBlock(NamedTuple):
    """Keys and values that hypotheses attend to: one row for all, for each sentence, or for each hypothesis."""

    key: Tensor  # R x G x K x d, R being 1, B or N
    value: Tensor  # R x G x K x d
    hidden: Tensor | None = None  # true where a key is hidden, R x K or R x N/R x K; None: all keys are visible

    def select(self, rows: Tensor) -> KeyBlock:
        """Return the block of some of its rows; a block of one row stays as it is."""
        parts: Any = (x if x is None or x.size(0) == 1 else x.index_select(0, rows) for x in self)
        return KeyBlock(*parts)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return T x N x D as N x H x T x d, without a copy."""
    length, rows, width = x.shape
    return x.view(length, rows, heads, width // heads).permute(1, 2, 0, 3)


def join_heads(y: Tensor) -> Tensor:
    """Return N x H x T x d as T x N x D."""
    return y.permute(2, 0, 1, 3).flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Attend to [prefix | keys] with one softmax, and return N x H x T x d.

    Args:
        q: N x H x T x d.
        k, v: B x G x S x d.
        prefix: key and value, each 1 x G x P x d (the same for all sentences) or B x G x P x d.
        mask: T x K, B x 1 x T x K or B x 1 x 1 x K, boolean (true = visible) or added to the scores. K is P+S; or S,
            and all queries see the prefix.
        dropout: probability of dropping an attention weight.
        causal: whether query t sees the prefix and the keys up to t alone (T = S); excludes `mask`.
    """
    if prefix is not None:
        k, v = (
            torch.cat([p.to(x.dtype).expand(x.size(0), -1, -1, -1), x], dim=2)
            for p, x in zip(prefix, (k, v), strict=True)
        )
    shape, length, columns = q.shape, q.size(2), k.size(2)
    q = _gather(q, k.size(0), k.size(1))
    if causal and (columns, q.size(2)) != (length, length):  # the kernel's own causal mask knows no prefix, nor sharing
        mask, causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril(), False
    if mask is not None:
        if mask.size(-1) < columns:
            mask = F.pad(mask, (columns - mask.size(-1), 0), value=mask.dtype == torch.bool)
        if 1 < mask.size(-2) < q.size(2):
            mask = mask.tile(q.size(2) // length, 1)
    y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
    return _scatter(y, shape)


def attend_to_parts(q: Tensor, parts: Sequence[KeyBlock], dropout: float = 0.0) -> Tensor:
    """Attend to several blocks of keys with one softmax, in a step of a search, and return N x H x 1 x d.

    Args:
        q: N x H x 1 x d.
        parts: blocks of which each has its own number of rows.
        dropout: probability of dropping an attention weight.
    """
    q, scores = q * q.size(-1) ** -0.5, []
    for key, _, hidden in parts:
        part = _gather(q, key.size(0), key.size(1)) @ key.mT  # R x G x H/G*N/R x K
        if hidden is not None:
            hidden = hidden[:, None, None] if hidden.dim() == 3 else hidden[:, None, None, None]
            by_head = part.view(*key.shape[:2], q.size(1) // key.size(1), -1, key.size(2))  # R x G x H/G x N/R x K
            by_head.masked_fill_(hidden, float("-inf"))
        scores.append(_scatter(part, q.shape))  # N x H x 1 x K
    weights = torch.cat(scores, dim=-1).float().softmax(dim=-1).to(q.dtype)
    if dropout:
        weights = F.dropout(weights, dropout)
    y: Any = None
    for (_, value, _), part in zip(parts, weights.split([s.size(-1) for s in scores], dim=-1), strict=True):
        attended = _scatter(_gather(part, value.size(0), value.size(1)) @ value, q.shape)  # N x H x 1 x d
        y = attended if y is None else y + attended
    return y


def _gather(q: Tensor, rows: int, key_heads: int) -> Tensor:
    """Return N x H x T x d as R x G x H/G*N/R*T x d: all queries that read the same keys in one table."""
    if q.shape[:2] == (rows, key_heads):
        return q
    by_key = q.view(rows, q.size(0) // rows, key_heads, q.size(1) // key_heads, q.size(2), q.size(3))
    return by_key.permute(0, 2, 3, 1, 4, 5).flatten(2, 4)


def _scatter(y: Tensor, shape: torch.Size) -> Tensor:
    """Return R x G x H/G*N/R*T x d as N x H x T x d, `shape` being that of the queries: undo `_gather`."""
    rows, heads, length, _ = shape
    by_key = y.view(y.size(0), y.size(1), heads // y.size(1), rows // y.size(0), length, y.size(3))
    return by_key.permute(0, 3, 1, 2, 4, 5).reshape(rows, heads, length, y.size(3))
