"""Keep the log and the warnings of the program that imports the plugin as they are."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the root logger and the filters of warnings after the block, which imports fairseq.

    fairseq sends the DEBUG messages of the whole program to stderr (models/wav2vec/wav2vec2_classification.py) and
    logs which optional packages are missing. numpy, scipy and torch add filters of warnings.
    """
    root, fairseq, handler = logging.getLogger(), logging.getLogger("fairseq"), logging.NullHandler()
    level = fairseq.level
    root.addHandler(handler)  # with a handler, `logging.basicConfig` does nothing
    fairseq.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        fairseq.setLevel(level)
        root.removeHandler(handler)
