"""Many tasks over one base: a bank of prefixes, of which each row of a batch has its own.

    bank = PrefixBank({"xsum": prefix, "webnlg": other})
    model.use(bank)
    bank.select(["xsum", "webnlg", None])  # a batch of three; the last one is for the base alone
    model(**sample["net_input"])           # or a search

A selection serves one pass over a batch of its size: a forward pass with its backward pass, or a search. Another batch
requires a selection of its own. fairseq sorts the rows of a batch by length: its `sample["id"]` says which example a
row is.

Prefixes may differ in length, in their sites, and in how they are parametrised. In training the gradients reach those
of the batch's rows. A bank serves one thread at a time.

Letters at line ends: B rows of a batch (sentences), P virtual tokens of the longest prefix, H heads, d width of a head.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .prefix import Prefix
from .virtual_tokens import SITES, KeysAndValues


class Selection(NamedTuple):
    """The keys and values of one forward pass, a row per sentence. Later selections leave them as they are."""

    evaluations: list[KeysAndValues | None]  # of each prefix of the batch; None is the base alone
    places: list[int]  # B, of the rows among these
    longest: dict[str, int]  # site -> virtual tokens of the row that has most
    of_rows: dict[str, int | Tensor]  # site -> those of each row, B x 1, or one number for all

    def length(self, site: str) -> int:
        """Virtual tokens at this site of the row that has most."""
        return self.longest[site]

    def row_lengths(self, site: str) -> int | Tensor:
        """How many each row has: B x 1, or one number for all."""
        return self.of_rows[site]

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of one attention layer, each B x H x P x d, filled up with zeros where a row has fewer; or
        1 x H x P x d, if all rows have the same; or None, if none has any.
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
    """Stands in for one `Prefix`: attention layers ask it for keys and values (`key_value`), a row per sentence.

    Where all rows have the same prefix it is that prefix: one row for all, as without a bank.
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
        """The prefixes' names, in the order in which they were added."""
        return list(self._names)

    def __getitem__(self, name: str) -> Prefix:
        """A prefix by its name.

        Raises:
            UsageError: there is none.
        """
        return self.prefixes[self._number(name)]

    def _number(self, name: str) -> int:
        if name not in self._names:
            raise UsageError(f"there is no prefix {name!r}; there are: {', '.join(self._names) or 'none'}")
        return self._names.index(name)

    def add(self, name: str, prefix: Prefix) -> None:
        """Put a prefix into the bank.

        Raises:
            UsageError: the name is taken, or none; or this is no prefix.
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
        """Take a prefix out of the bank.

        Raises:
            UsageError: there is none of this name.
        """
        number = self._number(name)
        del self._names[number]
        del self.prefixes[number]
        self._chosen = None

    def select(self, rows: Sequence[str | None]) -> None:
        """Say which prefix each row of the next batch has; None is the base alone.

        Raises:
            UsageError: there is no prefix of one of these names.
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
        self._chosen = None  # what was chosen is on the device where the bank was
        return super()._apply(fn, recurse)

    def begin(self, rows: int) -> None:
        """Use the selection for the pass over a batch of `rows` sentences that begins.

        Raises:
            UsageError: the selection has another size or was used before, or there is none.
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
        """Evaluate the prefixes of the batch anew for the forward pass that begins, as `Prefix.refresh` does."""
        for prefix in self._selected():
            if prefix is not None:
                prefix.refresh()

    def length(self, site: str) -> int:
        """Virtual tokens at this site of the row that has most."""
        return 0 if self._chosen is None else self._longest[site]

    def row_lengths(self, site: str) -> int | Tensor:
        """How many each row has: B x 1, or one number for all."""
        return 0 if self._chosen is None else self._lengths[site]

    def current(self) -> Selection:
        """Keys and values of the forward pass that runs now.

        Raises:
            UsageError: `select` was not called.
        """
        evaluations = [None if prefix is None else prefix.current() for prefix in self._selected()]
        return Selection(evaluations, self._places, self._longest, self._lengths)

    def key_value(self, site: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """As `Selection.key_value`, of the forward pass that runs now."""
        return self.current().key_value(site, layer)

    def _selected(self) -> list[Prefix | None]:
        if self._chosen is None:
            raise UsageError("no prefixes are selected for the rows of the batch; call the bank's select(...) first")
        return self._chosen

    @property
    def folded_size(self) -> int:
        """Parameters of all folded prefixes."""
        return sum(prefix.folded_size for prefix in self.prefixes)
