"""The keys and values that attention keeps while hypotheses are searched.

Prefix and source belong to a sentence: their keys are stored once for all its hypotheses. The keys that hypotheses
write stay where they were written, in one table per sentence; a mask hides from a hypothesis the keys that neither it
nor an ancestor wrote. Reordering hypotheses changes the mask and copies no keys. (If a sentence has more than `MANY`
hypotheses, or it is unknown which hypotheses belong together, each has a table of its own, and reordering copies it.)

Shape letters in comments: B sentences, W hypotheses of each, N = B*W, G key heads, t steps, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..mixin import Mixin
from .attend import KeyBlock

ROOM = 16  # steps for which a new table has room; it doubles when it is full
MANY = 16  # with more hypotheses than these, copying keys costs less than reading those of all the others


class HypothesisCache:
    """The keys and values that hypotheses write at one attention layer, in place, step by step."""

    def __init__(self) -> None:
        self.tables: list[Tensor] = []  # key and value, R x G x room*N/R x d, R being B or N

    def append(self, key: Tensor, value: Tensor, rows: int, step: int) -> list[Tensor]:
        """Write the keys and values of a step (N x G x 1 x d), and return those so far, R x G x t*N/R x d."""
        heads, width = key.size(1), key.size(0) // rows
        start, end = step * width, (step + 1) * width
        if not self.tables:
            self.tables = [x.new_empty(rows, heads, ROOM * width, x.size(3)) for x in (key, value)]
        elif self.tables[0].size(2) < end:
            self.tables = [torch.cat([table, torch.empty_like(table)], dim=2) for table in self.tables]
        for table, x in zip(self.tables, (key, value), strict=True):
            table[:, :, start:end] = x.view(rows, width, heads, -1).transpose(1, 2)
        return [table[:, :, :end] for table in self.tables]

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.tables = [table.index_select(0, rows) for table in self.tables]


class LayerCache:
    """All keys and values that one attention layer keeps."""

    def __init__(self) -> None:
        # Blocks that no step changes: the "prefix"; what was "read" before the search (an encoder's output, a source, a
        # prompt); the "start", written before the beam branched.
        self.blocks: dict[str, KeyBlock] = {}
        self.hypotheses = HypothesisCache()

    def branch(self, steps: int) -> None:
        """Share what the only hypothesis of each sentence wrote among all hypotheses that continue it."""
        if self.hypotheses.tables:
            key, value = (table[:, :, :steps] for table in self.hypotheses.tables)
            self.blocks["start"] = KeyBlock(key, value)
            self.hypotheses = HypothesisCache()


class Beams:
    """The hypotheses of a search, in the incremental state that fairseq passes from step to step."""

    def __init__(self, sentences: int | None, hypotheses: int, device: torch.device):
        """`sentences`: their number, or None if it is unknown which hypotheses belong to one sentence."""
        self._sentences_known, self.sentences = sentences is not None, sentences or hypotheses
        self._layers: dict[torch.nn.Module, LayerCache] = {}
        self._restart(torch.arange(hypotheses, device=device))

    def _restart(self, rows: Tensor) -> None:
        self.steps = 0
        self._hidden: Tensor | None = None
        self._ancestors = rows.new_empty(len(rows), 0)  # N x t: which of its sentence's W wrote the key of a step

    @property
    def width(self) -> int:
        """The number of hypotheses of a sentence."""
        return len(self._ancestors) // self.sentences

    @property
    def _share_table(self) -> bool:
        """Whether the hypotheses of a sentence write into one table."""
        return self._sentences_known and self.width <= MANY

    @classmethod
    def of(cls, incremental_state: dict | None) -> Beams | None:
        """Return the beams of a search, or None outside a search."""
        return incremental_state.get("beams") if incremental_state else None

    @classmethod
    def begin(cls, incremental_state: dict, sentences: int | None, tokens: Tensor) -> Beams:
        """Start a search of hypotheses (N x t); `sentences` as for the class."""
        beams = incremental_state["beams"] = cls(sentences, len(tokens), tokens.device)
        return beams

    def cache_of(self, attention: torch.nn.Module) -> LayerCache:
        """Return what an attention layer keeps."""
        return self._layers.setdefault(attention, LayerCache())

    def advance(self) -> None:
        """Start the next step, in which every hypothesis writes a key."""
        self.steps += 1
        if self._share_table and self.width > 1:
            slots = torch.arange(self.width, device=self._ancestors.device)
            self._ancestors = torch.cat([self._ancestors, slots.repeat(self.sentences)[:, None]], dim=1)
            hidden = self._ancestors[:, :, None] != slots  # N x t x W
            self._hidden = hidden.view(self.sentences, self.width, -1)  # B x W x t*W

    def append(self, attention: torch.nn.Module, key: Tensor, value: Tensor) -> KeyBlock:
        """Write the keys and values of this step (N x G x 1 x d), and return those of all steps so far."""
        rows = self.sentences if self._share_table else len(key)
        key, value = self.cache_of(attention).hypotheses.append(key, value, rows, self.steps - 1)
        return KeyBlock(key, value, self._hidden)

    def reorder(self, order: Tensor) -> None:
        """Continue with the hypotheses `order` (rows so far): beams branch or end, and finished sentences leave.

        The hypotheses of a sentence are contiguous in `order`.
        """
        if self._sentences_known and len(order) > len(self._ancestors):
            for cache in self._layers.values():
                cache.branch(self.steps)
            self._restart(order)
            return
        sentences = order[:: self.width] // self.width if self._sentences_known else order
        fewer = len(sentences) < self.sentences
        for cache in self._layers.values():
            if fewer or not self._sentences_known:
                cache.blocks = {name: block.select(sentences) for name, block in cache.blocks.items()}
            if not self._share_table:
                cache.hypotheses.select(order)
            elif fewer:
                cache.hypotheses.select(sentences)
        self._ancestors, self.sentences = self._ancestors.index_select(0, order), len(sentences)


class SearchedDecoder(Mixin):
    """A decoder whose attention layers keep their keys in `Beams`."""

    def _start_search(self, encoder_out: dict | None, state: dict, tokens: Tensor) -> None:
        """Call `Beams.begin` for hypotheses (N x t), N being a multiple of the sentences."""
        raise NotImplementedError

    def _next_step(self, encoder_out: dict | None, state: dict, tokens: Tensor) -> None:
        """Start the next step of a search, and before its first step the search."""
        if not state:
            self._start_search(encoder_out, state, tokens)
        state["beams"].advance()

    def reorder_incremental_state_scripting(self, incremental_state: dict, new_order: Tensor) -> None:
        """fairseq's hook: the search has chosen the hypotheses to continue."""
        incremental_state["beams"].reorder(new_order)
