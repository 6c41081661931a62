"""The edits of the translation edit rate, as tercom 0.7.25 finds them and as sacrebleu does, many times faster.

Both search for shifts greedily (Snover et al., 2006) and spend their time on the edit distances of the shifts they try.
Here a row of that table is two whole numbers with one bit per word of the reference (Myers, 1999; Hyyrö, 2003), and
rows that a try shares with the text it was made of are not computed again. The results are the same: both programs
leave out parts of their tables, and where those could have mattered, a table like theirs is computed.

The two searches differ in which shifts they try and in which order, by up to 0.5 % of the edits; the official TER of
WebNLG and DART is tercom's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from sacrebleu.metrics import lib_ter

MAX_SHIFT_SIZE = 10
MAX_SHIFT_DISTANCE = 50
BEAM_WIDTH = 20
KEEP, SUBSTITUTE, DELETE, INSERT = lib_ter._OP_NOP, lib_ter._OP_SUB, lib_ter._OP_DEL, lib_ter._OP_INS


class Edits(NamedTuple):
    """The least number of edits that a search found, and how many shifts it tried."""

    count: int
    tried: int


def tercom_edits(hypothesis: list[str], reference: list[str]) -> Edits:
    """Insertions, deletions, substitutions and shifts that make the reference of the hypothesis, counted by tercom."""
    if not (hypothesis and reference):
        return Edits(len(hypothesis) + len(reference), 0)
    distance, words, shifts, tried = _TercomDistance(reference), hypothesis, 0, 0
    while True:
        before, trace = distance.trace(words)
        best = None
        for length, candidates in reversed(list(enumerate(_shifts(words, reference, trace), 1))):
            for start, target in candidates:
                # No shift of this many words can repair more than two edits for each of them.
                gain = 0 if best is None else before - best[0] - 1
                if best is not None and gain >= 2 * length:
                    break
                shifted = _shifted(words, start, length, target)
                value, tried = distance.distance(shifted), tried + 1
                if value < (before if best is None else best[0]):
                    best = value, shifted
        if best is None:
            return Edits(shifts + before, tried)
        shifts, words = shifts + 1, best[1]


def sacrebleu_edits(hypothesis: list[str], reference: list[str]) -> int:
    """The same as sacrebleu counts it: equal to its function `translation_edit_rate`."""
    if not reference:
        return len(hypothesis)
    distance, words, shifts, tried = _SacrebleuDistance(reference), hypothesis, 0, 0
    while True:
        gain, shifted, tried = lib_ter._shift(words, reference, distance, tried)
        if tried >= lib_ter._MAX_SHIFT_CANDIDATES or gain <= 0:
            return shifts + distance.distance(words)
        shifts, words = shifts + 1, shifted


# tercom's shifts ------------------------------------------------------------------------------------------------------


def _shifts(words: list[str], reference: list[str], trace: str) -> list[list[tuple[int, int]]]:
    """For every length from 1, in tercom's order, the shifts worth a try: (first word, the word to put them after).

    Words that stand in the reference as well, some of them wrong where they are, go to where the words of the reference
    that they equal are aligned to, if there is something wrong there too.
    """
    aligned, wrong_in_reference, wrong = lib_ter.trace_to_alignment(lib_ter._flip_trace(trace))
    positions: dict[str, list[int]] = {}
    for index, word in enumerate(reference):
        positions.setdefault(word, []).append(index)
    found: list[list[tuple[int, int]]] = [[] for _ in range(MAX_SHIFT_SIZE)]
    for start, word in enumerate(words):
        places = positions.get(word, [])
        distances = [aligned[place] - start for place in places]
        if not any(-MAX_SHIFT_DISTANCE - 1 <= distance <= MAX_SHIFT_DISTANCE for distance in distances if distance):
            continue
        for length in range(1, min(MAX_SHIFT_SIZE, len(words) - start) + 1):
            last = length - 1
            places = [
                place
                for place in places
                if place + last < len(reference) and reference[place + last] == words[start + last]
            ]
            if not places:
                break
            if not any(wrong[start : start + length]):
                continue
            elsewhere = [
                place
                for place in places
                if not start <= aligned[place] < start + length and abs(aligned[place] - start) <= MAX_SHIFT_DISTANCE
            ]
            if not elsewhere:
                break
            for place in elsewhere:
                if any(wrong_in_reference[place : place + length]):
                    found[last] += [(start, target) for target in _targets(aligned, place, start, length)]
    return found


def _targets(aligned: dict[int, int], place: int, start: int, length: int) -> Iterator[int]:
    """Where words may go that equal those of the reference from `place` on; -1 is before all others."""
    for offset in range(-1, length):
        if offset == -1 and place == 0:
            yield -1
        elif (target := aligned[place + offset]) != start and (offset == 0 or target != aligned[place]):
            yield target


def _shifted(words: list[str], start: int, length: int, target: int) -> list[str]:
    """The words with some of them moved behind the word `target`; inside of themselves they move that far on."""
    moved, rest = words[start : start + length], words[:start] + words[start + length :]
    if target < start:
        place = target + 1
    elif target >= start + length:
        place = target - length + 1
    else:
        place = target
    return rest[:place] + moved + rest[place:]


# Edit distances -------------------------------------------------------------------------------------------------------

Row = tuple[int, int, int]  # bits where a cell is its left neighbour + 1, where it is - 1, the last cell


class _EditDistance:
    """Edit distances to a reference; subclasses say when a search that prunes its table finds the same."""

    def __init__(self, reference: list[str]) -> None:
        self._reference, self._size = reference, len(reference)
        self._positions: dict[str, int] = {}  # word -> the bits of its places in the reference
        for index, word in enumerate(reference):
            self._positions[word] = self._positions.get(word, 0) | 1 << index
        # What the last traced words are, and the rows of their table; the texts tried next begin like them.
        self._words: list[str] = []
        self._rows: list[Row] = [((1 << self._size) - 1, 0, self._size)]

    def distance(self, words: list[str]) -> int:
        rows = self._extended(words)
        value = rows[-1][2]
        if self._surely_found(len(words), value) or self._found(rows, *self._path(words, rows)):
            return value
        return self._pruned(words)[0]

    def trace(self, words: list[str]) -> tuple[int, str]:
        """The distance, and the edits from first to last; of equal ones, tercom keeps or substitutes, then deletes."""
        self._rows, self._words = self._extended(words), words
        operations, cells = self._path(words, self._rows)
        value = self._rows[-1][2]
        if self._surely_found(len(words), value) or self._found(self._rows, operations, cells):
            return value, operations
        return self._pruned(words)

    def _surely_found(self, count: int, value: int) -> bool:
        raise NotImplementedError

    def _found(self, rows: list[Row], operations: str, cells: list[tuple[int, int, int]]) -> bool:
        raise NotImplementedError

    def _pruned(self, words: list[str]) -> tuple[int, str]:
        raise NotImplementedError

    def _extended(self, words: list[str]) -> list[Row]:
        """Rows of the table for words, one for the empty text and one for every word."""
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

    def _path(self, words: list[str], rows: list[Row]) -> tuple[str, list[tuple[int, int, int]]]:
        """The edits from first to last, and the cells (words, words of the reference, value) from last to first."""
        i, j, value = len(words), self._size, rows[-1][2]
        operations, cells = [], [(i, j, value)]
        while i or j:
            equal = bool(i and j and self._positions.get(words[i - 1], 0) >> (j - 1) & 1)
            if i and j and (before := cell(rows, i - 1, j - 1)) + (not equal) == value:
                operation, i, j = KEEP if equal else SUBSTITUTE, i - 1, j - 1
            elif i and (before := cell(rows, i - 1, j)) + 1 == value:
                operation, i = DELETE, i - 1
            else:
                operation, j, before = INSERT, j - 1, value - 1
            operations.append(operation)
            value = before
            cells.append((i, j, value))
        return "".join(reversed(operations)), cells


def cell(rows: list[Row], i: int, j: int) -> int:
    """The distance between the first i words and the first j words of the reference."""
    more, less, _ = rows[i]
    left = (1 << j) - 1
    return i + (more & left).bit_count() - (less & left).bit_count()


class _TercomDistance(_EditDistance):
    """tercom goes on from a cell only if it is at most 20 worse than the best diagonal step into its row."""

    def _surely_found(self, count: int, value: int) -> bool:
        return value + (value + abs(count - self._size)) // 2 <= 2 * BEAM_WIDTH

    def _found(self, rows: list[Row], operations: str, cells: list[tuple[int, int, int]]) -> bool:
        # Neighbours differ by at most 1, and a cell is at least as far from 0 as from the diagonal: whatever is more
        # than 20 better than a cell of value v lies so far away that v and the way to the diagonal exceed 40.
        return all(
            value + abs(i - j) <= 2 * BEAM_WIDTH or value - min(self._values(rows, i)) <= BEAM_WIDTH
            for i, j, value in cells
            if i < len(rows) - 1
        )

    def _values(self, rows: list[Row], i: int) -> Iterator[int]:
        more, less, _ = rows[i]
        value = i
        yield value
        for j in range(self._size):
            value += (more >> j & 1) - (less >> j & 1)
            yield value

    def _pruned(self, words: list[str]) -> tuple[int, str]:
        """The distance and trace as tercom's beam finds them; what it does not reach has no value."""
        size = self._size
        table: list[list[tuple[int, str] | None]] = [[None] * (size + 1) for _ in range(len(words) + 1)]
        table[0][0] = 0, ""
        best_step = math.inf
        for i, row in enumerate(table):
            limit, best_step = best_step + BEAM_WIDTH, math.inf
            for j in range(size + 1):
                if row[j] is None or (i < len(words) and row[j][0] > limit):
                    continue
                value = row[j][0]
                if i < len(words) and j < size:
                    equal = words[i] == self._reference[j]
                    step = value + (not equal)
                    if _improve(table[i + 1], j + 1, step, KEEP if equal else SUBSTITUTE) or equal:
                        best_step = min(best_step, step)
                if i < len(words):
                    _improve(table[i + 1], j, value + 1, DELETE)
                if j < size:
                    _improve(row, j + 1, value + 1, INSERT)
        return table[-1][-1][0], _read_back(table)


def _improve(row: list[tuple[int, str] | None], j: int, value: int, operation: str) -> bool:
    better = row[j] is None or value < row[j][0]
    if better:
        row[j] = value, operation
    return better


def _read_back(table: list[list[tuple[int, str] | None]]) -> str:
    i, j, operations = len(table) - 1, len(table[0]) - 1, []
    while i or j:
        operation = table[i][j][1]
        operations.append(operation)
        i, j = i - (operation != INSERT), j - (operation != DELETE)
    return "".join(reversed(operations))


class _SacrebleuDistance(_EditDistance):
    """sacrebleu computes a band around the diagonal; called like its `BeamEditDistance`, which it stands in for."""

    def __init__(self, reference: list[str]) -> None:
        super().__init__(reference)
        self._pruned = lib_ter.BeamEditDistance(reference)

    def __call__(self, words: list[str]) -> _Traced:
        return _Traced(self, words)

    def _surely_found(self, count: int, value: int) -> bool:
        # The length difference is gaps that every path has; further gaps come in pairs, and cost an edit each.
        strayed = (value + abs(count - self._size)) // 2
        return self._size < lib_ter._BEAM_WIDTH or strayed < lib_ter._BEAM_WIDTH - 1

    def _found(self, rows: list[Row], operations: str, cells: list[tuple[int, int, int]]) -> bool:
        slope = self._size / (len(rows) - 1) if len(rows) > 1 else 1
        return all(
            -lib_ter._BEAM_WIDTH <= j - math.floor(i * slope) < lib_ter._BEAM_WIDTH for i, j, _ in cells if i and j
        ) and all(math.floor(i * slope) <= lib_ter._BEAM_WIDTH for i, j, _ in cells if not j)


class _Traced:
    """(distance, trace) of some words, as sacrebleu's search reads it; the trace is made only where it is asked for."""

    def __init__(self, distance: _EditDistance, words: list[str]) -> None:
        self._distance, self._words = distance, words

    def __getitem__(self, index: int) -> int:
        if index != 0:
            raise IndexError(index)
        return self._distance.distance(self._words)

    def __iter__(self) -> Iterator:
        return iter(self._distance.trace(self._words))
