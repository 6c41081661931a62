"""Install the hooks when one of fairseq's commands reads `--user-dir fairseq_prefix` (see the folder's docstring)."""

from ..toolkit import hooks

hooks.install()
