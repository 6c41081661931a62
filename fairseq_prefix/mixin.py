"""The base of classes that are mixed into fairseq's, which is untyped: a type checker cannot know their attributes."""

from typing import Any

Mixin: Any = object
