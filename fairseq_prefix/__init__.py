"""Prefix-tuning (Li & Liang, ACL 2021) for fairseq: `fairseq-train --user-dir fairseq_prefix --arch prefix_bart_large`.

Importing the package registers the models (bart.py, gpt2.py), the tasks (task.py) and the criterion (criterion.py).
"""

from . import host

with host.undisturbed():
    from .families import bart, gpt2, mbart  # noqa: F401  (registration)
    from .files import loading, subwords
    from .toolkit import averaging, commands, criterion, preemption, task, training_options  # noqa: F401

__version__ = "0.1.0"

loading.trust_plain_types()
loading.make_copies_atomic()
loading.guard_loading()
averaging.average_weights_alone()
averaging.begin_with_the_model()
training_options.refuse_what_cannot_run()
preemption.save_when_told_to_end()
preemption.resume_with_the_same_batches()
subwords.ask_the_task_in_the_hub(task.PairTask)
commands.end_with_a_sentence()  # last, around all that is done in fairseq's entry points
