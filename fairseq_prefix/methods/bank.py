"""Many tasks over one base: a bank of prefixes, one for each row of a batch.

    bank = PrefixBank({"xsum": prefix, "webnlg": other})
    model.use(bank)
    bank.select(["xsum", "webnlg", None])  # a batch of three rows; the last one uses the base alone
    model(**sample["net_input"])           # or a search

A selection serves one pass over a batch of its size: a forward pass with its backward pass, or a search. The next batch
requires a new selection. fairseq sorts the rows of a batch by length: `sample["id"]` names the example of each row.

Prefixes may differ in length, sites and parametrisation. In training, gradients reach the prefixes of the batch's rows.
A bank serves one thread at a time.

Shape letters in comments: B rows of a batch (sentences), P virtual tokens of the longest prefix, H heads, d width of a
head.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..interfaces.family import SITES
from .prefix import Prefix
from .virtual_tokens import KeysAndValues


class Selection(NamedTuple):
    """The keys and values of one forward pass, a row per sentence; later selections do not change them."""

    evaluations: list[KeysAndValues | None]  # of each distinct prefix of the batch; None is the base alone
    places: list[int]  # B, index of each row's prefix in `evaluations`
    longest: dict[str, int]  # site -> virtual tokens of the row that has most
    of_rows: dict[str, int | Tensor]  # site -> virtual tokens of each row, B x 1, or one number for all

    def length(self, site: str) -> int:
        """Return the number of virtual tokens at a site, of the row that has most."""
        return self.longest[site]

    def row_lengths(self, site: str) -> int | Tensor:
        """Return the number of virtual tokens of each row, B x 1, or one number for all."""
        return self.of_rows[site]

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of one attention layer.

        Each is B x H x P x d, padded with zeros where a row has fewer virtual tokens; 1 x H x P x d if all rows have
        the same prefix; None if no row has one.
        """
        found = [None if own is None else own.key_value(site, layer) for own in self.evaluations]
        if len(found) == 1 or not any(found):
            return found[0] if found else None
        nothing = next(filter(None, found))[0][:, :, :0]  # 1 x H x 0 x d
        tables = zip(*(pair or (nothing, nothing) for pair in found), strict=True)
        filled = ([self._filled(table, site) for table in same] for same in tables)
        key, value = (torch.cat([same[place] for place in self.places]) for same in filled)
        return key, value

    def _filled(self, table: Tensor, site: str) -> Tensor:
        return F.pad(table, (0, 0, 0, self.longest[site] - table.size(2)))  # 1 x H x P x d


class PrefixBank(nn.Module):
    """Replace a model's `Prefix`: each row of a batch has its own.

    The path of a prefix to its row: `select` chooses, the pass begins (`begin`, called by the family's encoder or
    decoder), every attention layer reads `key_value(site, layer)`, and `attend` puts the keys before those of the text.
    If all rows have the same prefix, one row serves all, as without a bank.
    """

    def __init__(self, prefixes: Mapping[str, Prefix] | None = None):
        super().__init__()
        self.prefixes = nn.ModuleList()  # a ModuleDict would refuse names such as "v1.1" and "train"
        self._names: list[str] = []
        self._chosen: list[Prefix | None] | None = None  # those of the batch, each once
        self._begun = False  # whether a pass has used the selection
        for name, prefix in (prefixes or {}).items():
            self.add(name, prefix)

    @property
    def names(self) -> list[str]:
        """Names of the prefixes, in the order in which they were added."""
        return list(self._names)

    def __getitem__(self, name: str) -> Prefix:
        """Return a prefix by its name.

        Raises:
            UsageError: no prefix has this name.
        """
        prefix: Any = self.prefixes[self._number(name)]
        return prefix

    def _number(self, name: str) -> int:
        if name not in self._names:
            raise UsageError(f"unknown prefix {name!r}; expected one of {', '.join(self._names) or 'none'}")
        return self._names.index(name)

    def add(self, name: str, prefix: Prefix) -> None:
        """Add a prefix.

        Raises:
            UsageError: the name is taken or empty, or this is not a prefix.
        """
        if not (isinstance(name, str) and name):
            raise UsageError(f"the name of a prefix must be a non-empty string, not {name!r}")
        if name in self._names:
            raise UsageError(f"there is a prefix {name!r} already; remove it first, or name the other one differently")
        if not isinstance(prefix, Prefix):
            raise UsageError(f"prefix {name!r} is {reprlib.repr(prefix)}; expected a Prefix, such as a model's prefix")
        self._names.append(name)
        self.prefixes.append(prefix)

    def remove(self, name: str) -> None:
        """Remove a prefix.

        Raises:
            UsageError: no prefix has this name.
        """
        number = self._number(name)
        del self._names[number]
        del self.prefixes[number]
        self._chosen = None

    def select(self, rows: Sequence[str | None]) -> None:
        """Choose the prefix of each row of the next batch; None is the base alone.

        Raises:
            UsageError: no prefix has one of these names.
        """
        if isinstance(rows, str):
            raise UsageError(f"select takes a name for each row of a batch; {rows!r} is one name")
        rows = list(rows)
        for name in rows:
            if name is not None:
                self._number(name)
        distinct = list(dict.fromkeys(rows))
        self._chosen = [None if name is None else self[name] for name in distinct]
        self._begun = False
        device = next((parameter.device for parameter in self.parameters()), None)
        self._places = [distinct.index(name) for name in rows]  # B, among those chosen
        of_rows = torch.tensor(self._places, dtype=torch.long, device=device)
        lengths = {site: [0 if prefix is None else prefix.length(site) for prefix in self._chosen] for site in SITES}
        self._longest = {site: max(found, default=0) for site, found in lengths.items()}
        self._lengths = {
            site: torch.tensor(found, device=device)[of_rows, None] if len({*found}) > 1 else self._longest[site]
            for site, found in lengths.items()
        }

    def _apply(self, fn, recurse: bool = True) -> PrefixBank:
        self._chosen = None  # the selection is on the old device
        return super()._apply(fn, recurse)

    def begin(self, rows: int) -> None:
        """Mark the selection as used by a new pass over `rows` sentences.

        Raises:
            UsageError: there is no selection, it has another size, or an earlier pass has used it.
        """
        self._selected()
        if len(self._places) != rows:
            raise UsageError(
                f"prefixes are selected for {len(self._places)} rows, but the batch has {rows}; "
                "call the bank's select(...) with a name for each row"
            )
        if self._begun:
            raise UsageError(
                f"the prefixes selected for {rows} rows were used for an earlier batch; "
                "call the bank's select(...) before each pass"
            )
        self._begun = True

    def refresh(self) -> None:
        """Evaluate the prefixes of the batch for the forward pass that begins, as `Prefix.refresh` does."""
        for prefix in self._selected():
            if prefix is not None:
                prefix.refresh()

    def length(self, site: str) -> int:
        """Return the number of virtual tokens at a site, of the row that has most."""
        return 0 if self._chosen is None else self._longest[site]

    def row_lengths(self, site: str) -> int | Tensor:
        """Return the number of virtual tokens of each row, B x 1, or one number for all."""
        return 0 if self._chosen is None else self._lengths[site]

    def current(self) -> Selection:
        """Return the keys and values of the running forward pass.

        Raises:
            UsageError: `select` was not called.
        """
        evaluations = [None if prefix is None else prefix.current() for prefix in self._selected()]
        return Selection(evaluations, self._places, self._longest, self._lengths)

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return `Selection.key_value` of the running forward pass."""
        return self.current().key_value(site, layer)

    def _selected(self) -> list[Prefix | None]:
        if self._chosen is None:
            raise UsageError("no prefixes selected: call the bank's select(...) with a name for each row first")
        return self._chosen

    @property
    def folded_size(self) -> int:
        """How many numbers all folded prefixes hold."""
        return sum(self[name].folded_size for name in self.names)
