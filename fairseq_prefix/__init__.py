"""Prefix-tuning (Li & Liang, ACL 2021) for fairseq: `fairseq-train --user-dir fairseq_prefix --arch prefix_bart_large`.

Importing the package registers every method and family, the tasks and the criterion, and changes no function of
fairseq. fairseq's commands call `install()` (the folder tasks says how); a program that calls fairseq's functions
itself may call it, too.
"""

import importlib
import pkgutil
from pathlib import Path

from . import host

__version__ = "0.1.0"

with host.undisturbed():
    for folder in ("methods", "families"):  # in this order: a family is registered for all methods
        for module in pkgutil.iter_modules([str(Path(__file__).parent / folder)]):
            importlib.import_module(f"{__name__}.{folder}.{module.name}")
    from .toolkit import criterion, task  # noqa: F401  (registration)
    from .toolkit.hooks import install  # noqa: F401
