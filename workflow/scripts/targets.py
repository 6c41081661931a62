"""Check the targets of a command line before Snakemake plans them.

Snakemake answers a typo such as results/xsum/rogue.txt with "No rule to produce", and one in the flags of prefix~lrr=1
with a traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
import sys
from collections.abc import Iterable

from common import UserError
from config import KINDS, Configuration
from metrics import METRICS

TABLES = ("scores", *METRICS, "costs", "data")
MOST = 500  # spellings of one target to try


def check_targets(workflow, study: Configuration) -> None:
    """Have the targets of this process checked as soon as Snakemake knows them, which is after it has read the rules.

    Where another version of Snakemake keeps them elsewhere, nothing is checked.
    """
    if not getattr(workflow, "is_main_process", False):
        return

    class Checked(type(workflow)):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "dag_settings":
                _check(self, value, study)
            super().__setattr__(name, value)

    with contextlib.suppress(TypeError):
        workflow.__class__ = Checked


def _check(workflow, settings, study: Configuration) -> None:
    """Check that a rule makes each target, and that the task, model and method in its name can be run.

    Raises:
        SystemExit: one is wrong; Snakemake would add a traceback to any other exception.
    """
    try:
        targets = sorted({*settings.targets, *settings.forcerun, *settings.until, *settings.omit_from})
        rules = {rule.name: rule for rule in workflow.rules}
        files = {target: target if os.path.isabs(target) else os.path.relpath(target) for target in targets}
        made = {target: _wildcards(rules.values(), files[target]) for target in targets if target not in rules}
    except (AttributeError, TypeError):
        return
    for target, wildcards in made.items():
        if wildcards is None and not os.path.isfile(target):
            sys.exit(f"error: {target}: no rule makes this file{_hint(target, rules, study)}")
        try:
            _check_names(wildcards or {}, study)
        except UserError as error:
            sys.exit(f"error: {target}: {error}")


def _wildcards(rules: Iterable, file: str) -> dict[str, str] | None:
    """The wildcards with which a rule makes a file; None if no rule does."""
    makers = [rule for rule in rules if rule.is_producer(file)]
    return dict(makers[0].get_wildcards(file)) if makers else None


def _check_names(wildcards: dict[str, str], study: Configuration) -> None:
    """Check what the names in a target stand for."""
    task, model, method = (wildcards.get(name) for name in ("task", "model", "method"))
    if model:
        study.model(model)
    if "study" in wildcards:
        runs = [run.split("/")[1:4] for row in study.study_rows(wildcards["study"], task) for run in row["runs"]]
        for each, *pair in dict.fromkeys(map(tuple, runs)):
            study.check_runs(each, [pair])
    elif task:
        configured = dict.fromkeys(run[:2] for run in study.runs()) if "table" in wildcards else ()
        study.check_runs(task, [(model, method)] if method else configured)


def _hint(target: str, rules: dict, study: Configuration) -> str:
    """The target that was meant, else an example."""

    def makes(file: str) -> bool:
        return _wildcards(rules.values(), file) is not None

    literal = {os.path.basename(str(file)) for rule in rules.values() for file in rule.products()}
    names = {*(name for kind in (*KINDS, "studies") for name in study.known(kind)), *rules}
    names |= {name for name in literal if "{" not in name}
    names |= {f"{name}.{kind}" for name in TABLES for kind in ("txt", "tsv")}
    parts = os.path.relpath(target).split(os.sep)
    spellings = itertools.islice(itertools.product(*(_spellings(part, names) for part in parts)), MOST)
    if meant := next((file for spelling in spellings if makes(file := "/".join(spelling)) or file in rules), None):
        return f"; did you mean {meant!r}?"
    inside = [f"{'/'.join(parts)}/{name}.txt" for name in TABLES]
    if inside := list(filter(makes, inside)):
        return f"; name a file, such as {inside[0]}"
    task = study.tasks[0]
    return f"; tables are called like results/{task}/{next(iter(study.task(task)['metrics']))}.txt"


def _spellings(part: str, names: set[str]) -> list[str]:
    """A part of a path, and the names that it may be a typo of; what follows @ and ~ stays."""
    head = re.match("[^@~]*", part)[0]
    if head in names:
        return [part]
    return [part, *(name + part[len(head) :] for name in difflib.get_close_matches(head, names, 3))]
