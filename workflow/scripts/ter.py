"""Edits of the translation edit rate: sacrebleu's search for shifts, over an edit distance that is many times faster.

sacrebleu's TER follows tercom, whose official numbers it reproduces, and spends its time on the edit distances of the
shifts it tries: a table of Python tuples each. Here a row of that table is two whole numbers, one bit per word of the
reference (Myers, 1999; Hyyrö, 2003), and rows that a try shares with the text it was made of are not computed again.
The results are the same: tercom looks at a band of its table only, and where the band could matter its own code runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sacrebleu.metrics import lib_ter


def edits(hypothesis: list[str], reference: list[str]) -> int:
    """The least number of insertions, deletions, substitutions and shifts that tercom's search finds.

    Equal to `sacrebleu.metrics.lib_ter.translation_edit_rate`.
    """
    if not reference:
        return len(hypothesis)
    if hypothesis == reference:
        return 0
    distance, words, shifts, tried = EditDistance(reference), hypothesis, 0, 0
    while True:
        gain, shifted, tried = lib_ter._shift(words, reference, distance, tried)
        if tried >= lib_ter._MAX_SHIFT_CANDIDATES or gain <= 0:
            return shifts + distance(words)[0]
        shifts, words = shifts + 1, shifted


class EditDistance:
    """Stands in for sacrebleu's `BeamEditDistance`: called with words, it gives the distance and the trace of edits."""

    def __init__(self, reference: list[str]) -> None:
        self._size = len(reference)
        self._beam = lib_ter.BeamEditDistance(reference)
        self._positions: dict[str, int] = {}  # word -> the bits of its places in the reference
        for index, word in enumerate(reference):
            self._positions[word] = self._positions.get(word, 0) | 1 << index
        # What the last traced words are, and the rows of their table; the texts tried next begin like them.
        self._words: list[str] = []
        self._rows = [((1 << self._size) - 1, 0, self._size)]

    def __call__(self, words: list[str]) -> _Edits:
        return _Edits(self, words)

    def distance(self, words: list[str]) -> int:
        rows = self._extended(words)
        value = rows[-1][2]
        # The length difference is gaps that every path has; further gaps come in pairs, and cost an edit each.
        strayed = (value + abs(len(words) - self._size)) // 2
        within = self._size < lib_ter._BEAM_WIDTH or strayed < lib_ter._BEAM_WIDTH - 1
        return value if within or self._path(words, rows) is not None else self._beam(words)[0]

    def trace(self, words: list[str]) -> tuple[int, str]:
        self._rows, self._words = self._extended(words), words
        operations = self._path(words, self._rows)
        return self._beam(words) if operations is None else (self._rows[-1][2], operations)

    def _extended(self, words: list[str]) -> list[tuple[int, int, int]]:
        """Rows of the table for words: (bits where a cell is its left neighbour + 1, where - 1, the last cell)."""
        shared = 0
        for word, known in zip(words, self._words, strict=False):
            if word != known:
                break
            shared += 1
        rows = self._rows[: shared + 1]
        more, less, value = rows[-1]
        full, last = (1 << self._size) - 1, 1 << (self._size - 1)
        for word in words[shared:]:
            equal = self._positions.get(word, 0)
            diagonal = (((equal & more) + more) ^ more) | equal
            up, down = less | (full & ~(diagonal | more)), more & diagonal
            value += bool(up & last) - bool(down & last)
            shifted_up = (up << 1 | 1) & full
            changed = equal | less
            more, less = (down << 1 & full) | (full & ~(changed | shifted_up)), shifted_up & changed
            rows.append((more, less, value))
        return rows

    def _path(self, words: list[str], rows: list[tuple[int, int, int]]) -> str | None:
        """The edits from first to last, with sacrebleu's preference: keep or substitute, then delete, then insert.

        None where they leave tercom's band around the diagonal; a path inside it is what tercom finds as well.
        """

        def cell(i: int, j: int) -> int:
            left = (1 << j) - 1
            return i + (rows[i][0] & left).bit_count() - (rows[i][1] & left).bit_count()

        i, j, operations = len(words), self._size, []
        value, slope = rows[-1][2], self._size / len(words) if words else 1
        while i and j:
            if not -lib_ter._BEAM_WIDTH <= j - math.floor(i * slope) < lib_ter._BEAM_WIDTH:
                return None
            equal = bool(self._positions.get(words[i - 1], 0) >> (j - 1) & 1)
            if (before := cell(i - 1, j - 1)) + (not equal) == value:
                operations.append(lib_ter._OP_NOP if equal else lib_ter._OP_SUB)
                i, j = i - 1, j - 1
            elif (before := cell(i - 1, j)) + 1 == value:
                operations.append(lib_ter._OP_DEL)
                i -= 1
            else:
                before = value - 1
                operations.append(lib_ter._OP_INS)
                j -= 1
            value = before
        if math.floor(i * slope) > lib_ter._BEAM_WIDTH:
            return None
        operations += [lib_ter._OP_DEL] * i + [lib_ter._OP_INS] * j
        return "".join(reversed(operations))


class _Edits:
    """(distance, trace) of some words, as sacrebleu's search reads it; the trace is made only where it is asked for."""

    def __init__(self, distance: EditDistance, words: list[str]) -> None:
        self._distance, self._words = distance, words

    def __getitem__(self, index: int) -> int:
        if index != 0:
            raise IndexError(index)
        return self._distance.distance(self._words)

    def __iter__(self) -> Iterator:
        return iter(self._distance.trace(self._words))
