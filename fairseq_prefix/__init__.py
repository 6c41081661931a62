"""Prefix-tuning (Li & Liang, ACL 2021) for fairseq: `fairseq-train --user-dir fairseq_prefix --arch prefix_bart_large`.

Importing the package registers models, tasks and the criterion, and changes nothing of fairseq. fairseq's commands call
`install()` (by way of the folder tasks); a program that calls fairseq's functions itself may call it, too.
"""

from . import host

with host.undisturbed():
    from .families import bart, gpt2, mbart  # noqa: F401  (registration)
    from .toolkit import criterion, task  # noqa: F401  (registration)
    from .toolkit.hooks import install  # noqa: F401

__version__ = "0.1.0"
