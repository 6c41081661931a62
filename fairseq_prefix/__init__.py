"""Prefix-tuning (Li & Liang, ACL 2021) for fairseq: `fairseq-train --user-dir fairseq_prefix --arch prefix_bart_large`.

Importing the package registers the models (bart.py, gpt2.py), the tasks (task.py) and the criterion (criterion.py).
"""

from . import host

with host.undisturbed():
    from . import bart, commands, criterion, gpt2, loading, preemption, task  # noqa: F401  (registration)

__version__ = "0.1.0"

loading.trust_plain_types()
loading.make_copies_atomic()
loading.guard_loading()
preemption.save_when_told_to_end()
preemption.resume_with_the_same_batches()
commands.end_with_a_sentence()
