"""Stands in for the plugin's commands in tests of the workflow."""
