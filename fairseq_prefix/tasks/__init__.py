"""What `--user-dir fairseq_prefix` imports besides the package: fairseq imports all modules of a folder named `tasks`.

So only fairseq's commands, and `from_pretrained(user_dir=...)`, run install_hooks.py. Importing the package or the API
changes nothing of fairseq. The plugin's tasks themselves are in toolkit/task.py.
"""
