"""What attention keeps while hypotheses are searched: tables of keys and values with one row per sentence.

Prefix and source belong to a sentence, so each of their keys is there once for all its hypotheses. What the hypotheses
wrote stays where it was written as well, side by side in one table: which of these keys a hypothesis sees is a matter
of its ancestors, a few numbers that follow the search. Reordering hypotheses copies no keys. (Where a sentence has very
many hypotheses, or it is not known which belong together, each has a table of its own instead, and these are copied.)

Letters at line ends: B sentences, W hypotheses of each, N = B*W, H heads, t steps, K keys, d width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROOM = 16  # steps for which a table has room at first; it doubles
MANY = 16  # more hypotheses than these would rather copy their keys than look at each other's


class KeyBlock(NamedTuple):
    """Keys that hypotheses attend to: a row for all, for each sentence, or for each hypothesis."""

    key: Tensor  # 1, B or N x H x K x d, of which N is a multiple
    value: Tensor  # likewise
    hidden: Tensor | None = None  # true where a key is not to be seen, B x K, or B x W x K; None: all are seen

    def select(self, sentences: Tensor) -> KeyBlock:
        """That of some of the sentences."""
        return KeyBlock(*(x if x is None or x.size(0) == 1 else x.index_select(0, sentences) for x in self))


class HypothesisCache:
    """The keys and values that hypotheses write at one attention layer, in place, step by step."""

    def __init__(self):
        self.tables: list[Tensor] = []  # key and value, R x H x room*N/R x d, for R of B or N

    def append(self, key: Tensor, value: Tensor, rows: int, step: int) -> list[Tensor]:
        """Those of this step (N x H x 1 x d) and all before, R x H x t*N/R x d."""
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
        """Go on with some of the rows."""
        self.tables = [table.index_select(0, rows) for table in self.tables]


class LayerCache:
    """What one attention layer keeps."""

    def __init__(self):
        self.blocks: dict[str, KeyBlock] = {}
        self.hypotheses = HypothesisCache()

    def branch(self, steps: int) -> None:
        """What the only hypothesis of each sentence wrote is the start of all from now on."""
        if self.hypotheses.tables:
            self.blocks["start"] = KeyBlock(*(table[:, :, :steps] for table in self.hypotheses.tables))
            self.hypotheses = HypothesisCache()


class Beams:
    """The hypotheses of a search, in the incremental state that fairseq hands from step to step."""

    def __init__(self, sentences: int | None, hypotheses: int, device: torch.device):
        """`sentences`: None, if it is not known which hypotheses are of one sentence."""
        self._sentences_known, self.sentences = sentences is not None, sentences or hypotheses
        self._layers: dict[torch.nn.Module, LayerCache] = {}
        self._restart(torch.arange(hypotheses, device=device))

    def _restart(self, rows: Tensor) -> None:
        self.steps, self._hidden = 0, None
        self._ancestors = rows.new_empty(len(rows), 0)  # N x t, which of its sentence's W wrote the key of a step

    @property
    def width(self) -> int:
        """Hypotheses of a sentence."""
        return len(self._ancestors) // self.sentences

    @property
    def _share_table(self) -> bool:
        """Whether the hypotheses of a sentence write into one table."""
        return self._sentences_known and self.width <= MANY

    @classmethod
    def of(cls, incremental_state: dict | None) -> Beams | None:
        """That of a search; None if nothing is searched."""
        return incremental_state.get("beams") if incremental_state else None

    @classmethod
    def begin(cls, incremental_state: dict, sentences: int | None, tokens: Tensor) -> Beams:
        """Start a search of hypotheses (N x t)."""
        beams = incremental_state["beams"] = cls(sentences, len(tokens), tokens.device)
        return beams

    def cache_of(self, attention: torch.nn.Module) -> LayerCache:
        """What an attention layer keeps."""
        return self._layers.setdefault(attention, LayerCache())

    def advance(self) -> None:
        """Go on to the next step, in which every hypothesis writes a key."""
        self.steps += 1
        if self._share_table and self.width > 1:
            slots = torch.arange(self.width, device=self._ancestors.device)
            self._ancestors = torch.cat([self._ancestors, slots.repeat(self.sentences)[:, None]], dim=1)
            hidden = self._ancestors[:, :, None] != slots  # N x t x W
            self._hidden = hidden.view(self.sentences, self.width, -1)

    def append(self, attention: torch.nn.Module, key: Tensor, value: Tensor) -> KeyBlock:
        """Keys and values of this step (N x H x 1 x d) and of those before it."""
        rows = self.sentences if self._share_table else len(key)
        return KeyBlock(*self.cache_of(attention).hypotheses.append(key, value, rows, self.steps - 1), self._hidden)

    def reorder(self, order: Tensor) -> None:
        """Follow the search to the hypotheses `order` (rows so far): branches, ends of branches, ends of sentences."""
        if self._sentences_known and len(order) > len(self._ancestors):
            for kept in self._layers.values():
                kept.branch(self.steps)
            self._restart(order)
            return
        sentences = order[:: self.width] // self.width if self._sentences_known else order
        fewer = len(sentences) < self.sentences
        for kept in self._layers.values():
            if fewer or not self._sentences_known:
                kept.blocks = {name: part.select(sentences) for name, part in kept.blocks.items()}
            if not self._share_table:
                kept.hypotheses.select(order)
            elif fewer:
                kept.hypotheses.select(sentences)
        self._ancestors, self.sentences = self._ancestors.index_select(0, order), len(sentences)


class SearchedDecoder:
    """A decoder whose attention layers keep their keys in `Beams`.

    It says how a search of hypotheses (N x t), N being a multiple of the sentences, starts: `_start_search`.
    """

    def _start_search(self, encoder_out: dict | None, state: dict, tokens: Tensor) -> None:
        raise NotImplementedError

    def _next_step(self, encoder_out: dict | None, state: dict, tokens: Tensor) -> None:
        """Go on to the next step of a search, or start one."""
        if not state:
            self._start_search(encoder_out, state, tokens)
        Beams.of(state).advance()

    def reorder_incremental_state_scripting(self, incremental_state: dict, new_order: Tensor) -> None:
        """fairseq's hook, called when the search has chosen which hypotheses go on."""
        Beams.of(incremental_state).reorder(new_order)
