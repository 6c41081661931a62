"""What a model family says of itself, and the registry of families."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def symbols(self) -> set[str]:
        """All symbols but `</s>`: none of them belongs to a text."""
        return {*self.before_source, *self.after_source, self.start, *self.before_target} - {"</s>"}
