"""Prefix-tuning (Li & Liang, ACL 2021) for fairseq: `fairseq-train --user-dir fairseq_prefix --arch prefix_bart_large`.

Importing the package registers the models (bart.py, gpt2.py), the tasks (task.py) and the criterion (criterion.py).
"""

from . import averaging, bart, criterion, gpt2, loading, preemption, task  # noqa: F401  (registration)

__version__ = "0.1.0"

loading.trust_plain_types()
loading.make_copies_atomic()
loading.guard_loading()
averaging.average_weights_alone()
averaging.begin_with_the_model()
preemption.save_when_told_to_end()
preemption.resume_with_the_same_batches()
