"""Define `Family` and its registry.

A family is one file: its `Family`, the model class that all methods share, and one call of `register_family`
(families/model.py). `families/mbart.py` is the simplest complete example; docs/architecture.md lists what a family must
provide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Framing:
    """The special symbols around a text, as the base has seen them in pretraining.

    An encoder reads `before_source`, the source, `after_source`. A decoder is fed `start` and learns to predict
    `before_target`, the target and `</s>`; a search forces `before_target`. A decoder-only model (`joined`) reads
    source, `start` and target as one text.
    """

    before_source: tuple[str, ...] = ()
    after_source: tuple[str, ...] = ("</s>",)
    start: str = "</s>"
    before_target: tuple[str, ...] = ()
    joined: bool = False
    others: tuple[str, ...] = ()  # symbols of the same kind that this framing does not use

    @property
    def symbols(self) -> set[str]:
        """All symbols but `</s>`: none of them belongs to a text."""
        return {*self.before_source, *self.after_source, self.start, *self.before_target, *self.others} - {"</s>"}


@dataclass(frozen=True)
class Base:
    """A base read from disk: weights under fairseq's names, symbols and recorded options.

    Attributes:
        path: the file or folder, for messages.
        state: name -> weight.
        symbols: the symbols of its dict.txt, or None where it has none.
        settings: recorded values of the options in `Family.settings`.
        rows: symbol -> row of the embedding, where rows are not in the dictionary's order.
        family: the family that recognises it; `read_base` sets it.
    """

    path: Path
    state: dict[str, Tensor]
    symbols: list[str] | None
    settings: dict[str, object]
    rows: dict[str, int] | None = None
    family: Family | None = None


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        key: in names of architectures, `prefix_{key}_large`.
        name: in messages.
        parts: sub-modules of the model that make up the base.
        embedding: the weight that has one row per symbol.
        tied: other names of that weight.
        settings: options that change what a model computes but no shape of its weights.
        config: what a Hugging Face config.json must have, `model_type` among it; a missing key counts as its value.
        convert: (family, folder, config.json, weights of a Hugging Face folder) -> base.
        recognises: (weights under fairseq's names, recorded options) -> whether they belong to this family.
        sites: attention sites that a prefix feeds.
        prompt_sites: stacks that take a prompt.
        default_task: the task of a checkpoint that is written without training.
        framing: values of the options in `recorded` -> symbols around a text.
        recorded: options of the family that a tuned file records, because the parameters depend on them.
        defaults: method -> defaults of its options that differ from the method's own.
        appended: symbols that the model has after those of dict.txt.
        mask_row: whether the embedding may have one more row than dict.txt names, for `<mask>`.
    """

    key: str
    name: str
    parts: tuple[str, ...]
    embedding: str
    tied: tuple[str, ...]
    settings: tuple[str, ...]
    config: Mapping[str, object]
    convert: Callable[[Family, Path, dict, dict[str, Tensor]], Base]
    recognises: Callable[[Mapping[str, Tensor], Mapping[str, object]], bool]
    sites: tuple[str, ...]
    prompt_sites: tuple[str, ...]
    default_task: str
    framing: Callable[[Mapping[str, object]], Framing]
    recorded: tuple[str, ...] = ()
    defaults: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    appended: tuple[str, ...] = ()
    mask_row: bool = False


SITES = ("encoder", "decoder", "cross")  # attention sites, of all families
FAMILIES: list[Family] = []  # families/model.py fills it


def family_of(state: object, settings: Mapping[str, object] | None = None) -> Family | None:
    """Return the family that recognises a whole model's weights and recorded options, or None."""
    if not isinstance(state, dict):
        return None
    # A later family may be a special case of an earlier one, as mBART is of BART.
    return next((family for family in reversed(FAMILIES) if family.recognises(state, settings or {})), None)


def known_families() -> str:
    """Return the names of all families, for messages."""
    return " or ".join(sorted(family.name for family in FAMILIES))
