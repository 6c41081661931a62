"""Prefix-tuning (Li & Liang, ACL 2021) for fairseq: `fairseq-train --user-dir fairseq_prefix --arch prefix_bart_large`.

Importing the package registers the models (bart.py), the task (task.py) and the criterion (criterion.py).
"""

from . import bart, checkpoint, criterion, task  # noqa: F401  (registration)

__version__ = "0.1.0"

checkpoint.trust_plain_types()
checkpoint.make_copies_atomic()
