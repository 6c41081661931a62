"""Stands in for fairseq's commands in tests of the workflow: same arguments, same files, no learning."""
