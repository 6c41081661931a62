"""The configuration: presets and the user's overlay, checked, and turned into command lines of fairseq.

`configs/config.yaml` (and what `--configfile` lays over it) says what to run; presets in configs/{tasks,models,methods}
say what a name means, one file each. Flags of fairseq come in layers, a later one wins:

    methods/{method}.yaml < models/{model}.yaml < tasks/{task}.yaml < `overrides` of the configuration

and inside each layer its own flags < its sections methods: {method} < models < tasks, whose own sections refine them
further. A section under `models` is called after a family (gpt2), a size (tiny), an architecture (gpt2_tiny) or a
model, one under `tasks` after a task, any subset (@), any of a size (@50) or a subset (e2e@50-1), in this order. Of a
method that `extends` another one, the latter comes first, and what the former changes after the tasks.

A task's name may carry `@SIZE-SEED`: the same preset with a subset of its examples; a method's name `~FLAG=VALUE~...`:
the same preset with these flags above all layers. Below all layers is the family's task of fairseq. The updates that a
preset sets are for the whole task; for a subset they are fitted to its size (`_updates_of_subset`). Pure Python;
whatever is wrong is a `UserError` that names file and key.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from common import SPLITS, UserError, single_line
from common import suggestion as _suggestion
from flags import COMMANDS, SCHEMAS, arguments, check_accepted, check_flag, known_flags, reading_flags
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from metrics import METRICS, check_options, is_score, score_names, unavailable
from readers import READERS
from subset import validation_pairs

KINDS = ("tasks", "models", "methods")
SINGULAR = {"tasks": "task", "models": "model", "methods": "method", "studies": "study"}


class Family(NamedTuple):
    """A family of the plugin's architectures.

    Attributes:
        task: the task of fairseq that reads its data; a method may choose another one.
        gpt2_vocabulary: the folder of its texts in GPT-2's BPE; None for a family that has sentencepiece alone.
        pretraining: how a base can be pretrained here.
    """

    task: str
    gpt2_vocabulary: str | None
    pretraining: tuple[str, ...]


FAMILIES = {
    "bart": Family("conditional_generation", "gpt2", ("noise",)),
    "gpt2": Family("conditional_lm", "gpt2_spaced", ("noise", "text")),  # its texts begin with a space
    "mbart": Family("conditional_generation", None, ()),
}
GPT2_VOCABULARIES = [family.gpt2_vocabulary for family in FAMILIES.values() if family.gpt2_vocabulary]
# The architectures, without prefix_ and full_, and their millions of parameters.
ARCHITECTURES = {
    "bart_large": 406,
    "bart_base": 140,
    "bart_tiny": 1,
    "mbart_large": 611,
    "mbart_base": 293,
    "mbart_tiny": 1,
    "gpt2_small": 124,
    "gpt2_medium": 355,
    "gpt2_large": 774,
    "gpt2_xl": 1558,
    "gpt2_tiny": 1,
}
# The updates of a subset, where no section is for its size: at least as many as the paper makes with 50 to 200 examples
# (section 6.3), and no more epochs than twice those of any recipe here.
FEWEST_UPDATES, MOST_EPOCHS = 200, 100
DEEPEST, LARGEST = 50, 100_000  # of the values in a file, which are a few hundred
# What a section under `models` may be called besides a model.
MODEL_GROUPS = {name for architecture in ARCHITECTURES for name in (architecture, *architecture.split("_"))}
# The plugin's defaults of how long a text may be, in tokens (0: any length).
TRUNCATION = {"max-source-tokens": 512, "max-target-tokens": 0}
GPT2_BPE_URL = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/"
GPT2_BPE = {  # file -> sha256; BART and GPT-2 share them
    "dict.txt": "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


@dataclass(frozen=True)
class Preset:
    """A checked YAML file of configs/; `file` is how error messages call it."""

    file: str
    values: dict  # laid over those of the preset that it extends
    own: dict  # what the file itself says


class Subset(NamedTuple):
    """What a name like e2e@50-1 says: 50 training examples of e2e, drawn with seed 1."""

    task: str
    size: int
    seed: int


def subset(name: str) -> Subset | None:
    """The subset that a task's name stands for; None where it is the whole task, or no such name."""
    found = re.fullmatch(r"([^@]+)@([1-9][0-9]*)-(0|[1-9][0-9]*)", name)
    return Subset(found[1], int(found[2]), int(found[3])) if found else None


class Variant(NamedTuple):
    """What a name like prefix~prefix-length=5~lr=1e-4 says: the method prefix with these flags."""

    method: str
    flags: dict


VARIANT = r"(?:~[a-z][a-z0-9-]*=[A-Za-z0-9_.,+-]+)*"  # what may follow a method's name


def variant(name: str) -> Variant:
    """The preset that a method's name is of, and the flags it sets besides, as texts; `null` leaves a flag out."""
    method, *settings = name.split("~")
    flags = (setting.partition("=") for setting in settings)
    return Variant(method, {flag: None if value == "null" else value for flag, _, value in flags})


def label(method: str, axis: Iterable[str]) -> str:
    """The method's name without the flags of a study's axis."""
    name, *settings = method.split("~")
    return "~".join([name, *(setting for setting in settings if setting.partition("=")[0] not in axis)])


def paired(rows: list[tuple[str, str, str, str | None]], pair: list[str]) -> list[tuple[int, int]]:
    """Indexes of the rows (model, label, method, x) that a study compares: those of one model at the same place.

    A method that has a single row is compared with the other one at each of its places.
    """
    found = []
    for model in dict.fromkeys(model for model, *_ in rows):
        first, second = (
            [index for index, row in enumerate(rows) if row[0] == model and name in row[1:3]] for name in pair
        )
        alone = 1 in (len(first), len(second))
        found += [(a, b) for a, b in itertools.product(first, second) if alone or rows[a][3] == rows[b][3]]
    return found


def _places(study: dict) -> dict[str, str | None]:
    """Where each method of a study is on its axis: its value of the flag, or of all flags of the axis, or None.

    The value alone says it where each method has one flag of the axis (the length of a prefix, of a prompt). Where a
    method has several, or two would be at one place, there is a value or "-" for each flag.
    """
    axis, flags = study.get("x", []), {}
    for method in study["methods"]:
        texts = dict(part.partition("=")[::2] for part in method.split("~")[1:])
        flags[method] = {flag: texts[flag] for flag in axis if flag in texts}
    single = [(label(method, axis), *found.values()) for method, found in flags.items()]
    if len({*single}) == len(single) and all(len(found) < 2 for found in flags.values()):
        return {method: next(iter(found.values()), None) for method, found in flags.items()}
    return {
        method: " / ".join(found.get(flag, "-") for flag in axis) if found else None for method, found in flags.items()
    }


def _preset_name(kind: str, name: str) -> str:
    """The name of the preset: of e2e@50-1 it is e2e, of prefix~lr=1e-4 it is prefix."""
    return {"tasks": _whole, "methods": lambda method: variant(method).method}.get(kind, str)(name)


def _task_names(name: str) -> tuple[str, ...]:
    """What sections for a task or a subset may be called, in the order in which they win."""
    found = subset(name)
    return (found.task, "@", f"@{found.size}", f"{found.task}@{found.size}", name) if found else (name,)


@functools.cache
def _generates(flag: str) -> bool:
    """Whether a flag in a variant's name changes generation: what is for training as well stays with training."""
    return flag in known_flags()["generate"].keys() - known_flags()["train"].keys() | reading_flags()


def _whole(task: str) -> str:
    """The name of the preset: of e2e@50-1 it is e2e."""
    found = subset(task)
    return found.task if found else task


class Configuration:
    """The whole configuration, checked as far as the names it lists reach; other presets are checked when asked for.

    Args:
        values: the merged configuration, as Snakemake hands it over; None for the presets alone.
        file: how error messages call it.
        folders: where the folders tasks, models and methods are looked for; the first that has a preset wins.
    """

    def __init__(self, values: dict | None, file: str, folders: Iterable[Path]) -> None:
        if values is None:
            values = dict.fromkeys((*KINDS, "seeds"), [])
        else:
            values = _with_lists(values)
            check(values, "config", file)
        self.file = file
        self.tasks, self.models, self.methods, self.seeds = (values[key] for key in (*KINDS, "seeds"))
        self.mirror = [os.path.expanduser(path) for path in values.get("mirror", [])]
        self.partial = values.get("partial", False)
        self.replace = values.get("replace", False)
        self._overrides = values.get("overrides", {})
        self._presets: dict[tuple[str, str], Preset] = {}
        self._faults: dict[tuple[str, str], str | None] = {}
        self._misnamed: list[str] = []
        self._paths = {kind: _preset_paths(kind, folders, self._misnamed) for kind in (*KINDS, "studies")}
        self._check_sections(self._overrides, file, "overrides")
        self._check_subsets(file)
        for kind in (*KINDS, "studies"):
            for name in values.get(kind, []):
                if _preset_name(kind, name) not in self._paths[kind]:
                    raise UserError(f"{file}: {kind}: {self._unknown(kind, name)}")
        for task in self._overrides.get("tasks", {}):
            if _whole(task) in self._paths["tasks"]:
                self.task(task)
        for method in self.methods:
            if not any(self.fits(method, model) for model in self.models):
                raise self._unfit(method, self.models[0])
        for task in self.tasks:
            self.check_runs(task, self._combinations())
        self._plans: dict[tuple[str, str], tuple[list[dict], list[str], list[str]]] = {}
        self.studies = self._tasks_of_studies(values.get("studies", []))
        for name, tasks in self.studies.items():
            for task in filter(self.known("tasks").__contains__, tasks):  # a study of a subset has no rule
                self.study_rows(name, task)

    def check_runs(self, task: str, pairs: Iterable[tuple[str, str]]) -> None:
        """Check what runs of a task need, for pairs of model and method: presets, flags and how they go together."""
        if fault := self._fault("tasks", _whole(task)):
            raise UserError(fault)
        self.task(task)
        for (model, method), command in itertools.product(pairs, COMMANDS):
            self.flags(command, task, model, method)

    # Presets ----------------------------------------------------------------------------------------------------------

    def known(self, kind: str) -> list[str]:
        """Names of all presets of a kind, broken ones too."""
        return sorted(self._paths[kind])

    def sound(self, kind: str) -> list[str]:
        """Names of the presets of a kind that can be used."""
        return [name for name in self.known(kind) if self._fault(kind, name) is None]

    def broken(self) -> list[str]:
        """What is wrong with each preset that cannot be used; it stops no run but those that need it."""
        self.downloads()  # two presets may contradict each other
        faults = [self._fault(kind, name) for kind in self._paths for name in self.known(kind)]
        return [*self._misnamed, *filter(None, faults)]

    def _fault(self, kind: str, name: str) -> str | None:
        if (kind, name) not in self._faults:
            try:
                self.task(name) if kind == "tasks" else self._preset(kind, name)
                self._faults[kind, name] = None
            except UserError as error:
                self._faults[kind, name] = str(error)
        return self._faults[kind, name]

    def task(self, name: str) -> dict:
        """The task's preset with the overlay's changes (for a subset, those for its own name too).

        `dataset` is always there.
        """
        whole = _whole(name)
        preset = self._preset("tasks", whole)
        change: dict = {}
        for section in _task_names(name):
            change = _laid_over(change, self._overrides.get("tasks", {}).get(section, {}))
        values = {"dataset": whole, **preset.values}
        # Another source of examples takes nothing over from the old one, nor does another reader from the old options.
        if "inputs" in change or "demo" in change:
            values = {key: value for key, value in values.items() if key not in ("inputs", "demo")}
        if change.get("reader", values["reader"]) != values["reader"]:
            values.pop("options", None)
        values = _without_pairs(values, change)
        values = _laid_over(values, {key: value for key, value in change.items() if key not in _LAYER_KEYS})
        values["metrics"] = {
            metric: {option: value for option, value in options.items() if value is not None}
            for metric, options in values["metrics"].items()
            if options is not None
        }
        _check_task(values, self.file if change else preset.file)
        pairs = values.get("pairs", {}).get("train", math.inf)
        if (found := subset(name)) and found.size > pairs:
            raise UserError(f"{self.file}: {name}: {whole} has only {pairs:,} pairs to train on")
        return values

    def model(self, name: str) -> dict:
        return self._preset("models", name).values

    def method(self, name: str) -> dict:
        """The preset's values; a variant differs from it in flags alone."""
        found = variant(name)
        self._check_variant(name, self.file)
        values = self._preset("methods", found.method).values
        if not values["trained"] and (idle := [flag for flag in found.flags if not _generates(flag)]):
            raise UserError(f"{self.file}: {name}: {found.method} is not trained, and {idle[0]} is for training alone")
        return values

    def _check_variant(self, name: str, where: str) -> None:
        """The flags of a variant, each given once, are fairseq's and may be set."""
        flags = variant(name).flags
        if len(flags) < name.count("~"):
            raise UserError(f"{where}: {name}: a flag stands twice")
        for flag, value in flags.items():
            trains = flag in known_flags()["train"] or flag not in known_flags()["generate"]
            check_flag("train" if trains else "generate", flag, value, f"{where}: {name}")

    def fits(self, method: str, model: str) -> bool:
        """Return whether the method is for the model's family."""
        return self.family(model) in self.method(method).get("families", FAMILIES)

    def runs(self) -> Iterator[tuple[str, str, int]]:
        """(model, method, seed) of every row of a table; an untrained model has no randomness: one run, seed 0."""
        for model, method in self._combinations():
            for seed in self._seeds_of(method):
                yield model, method, seed

    def _combinations(self) -> Iterator[tuple[str, str]]:
        """The configured models with those of the configured methods that fit them."""
        return (pair for pair in itertools.product(self.models, self.methods) if self.fits(pair[1], pair[0]))

    def _unfit(self, method: str, model: str) -> UserError:
        return UserError(f"{self.file}: {method} is not for {model}, but for {self.method(method)['families']} only")

    def gaps(self, task: str) -> list[str]:
        """Sentences about what was configured for a task and is not run, or not as it was meant."""
        smaller = self._validated(found.task, found.size) if (found := subset(task)) else []
        return [*smaller, *self._left_out(self.methods), *self._unsized(task, self.methods)]

    def notes(self, task: str) -> list[str]:
        """Sentences below a task's tables: `gaps`, and which flags `overrides` changes."""
        return [*self.gaps(task), *self._changed([(task, *pair) for pair in self._combinations()])]

    def _unsized(self, task: str, methods: Iterable[str]) -> list[str]:
        """Which methods have values for subsets of some sizes, and none for the whole task."""
        if subset(task):
            return []
        sizes = {method: self._sizes_of(variant(method).method, task) for method in methods}
        return [
            f"{method} has max-update for {', '.join(map(str, found))} examples; on all of {task} it gets the task's"
            for method, found in sizes.items()
            if found
        ]

    def _left_out(self, methods: Iterable[str], models: Iterable[str] | None = None) -> list[str]:
        return [
            f"{method} of {model}: left out, the method is for {' and '.join(self.method(method)['families'])} only"
            for model, method in itertools.product(models or self.models, methods)
            if not self.fits(method, model)
        ]

    def _changed(self, runs: Iterable[tuple[str, str, str]]) -> list[str]:
        """What `overrides` changes of the presets in some runs (task, model, method): a sentence for each change."""
        changes: dict[str, list[str]] = {}
        for task, model, method in runs if self._overrides else []:
            commands = COMMANDS if self.method(method)["trained"] else ("generate",)
            found = {}
            for keys in [("data", command) for command in commands]:
                preset = self._settings(keys, task, model, method, overrides={})
                for flag, (value, _) in self._settings(keys, task, model, method).items():
                    before = preset[flag][0] if flag in preset else None
                    if value != before and flag not in variant(method).flags:
                        found[flag] = f"{flag} {_written(value)} (preset: {_written(before)})"
            if found:
                changes.setdefault(", ".join(found.values()), []).append(f"{method} of {model}")
        return [f"overrides change {', '.join(dict.fromkeys(names))}: {flags}" for flags, names in changes.items()]

    def _seeds_of(self, method: str) -> list[int]:
        return self.seeds if self.method(method)["trained"] else [0]

    # Studies ----------------------------------------------------------------------------------------------------------

    def study(self, name: str) -> dict:
        return self._preset("studies", name).values

    def _tasks_of_studies(self, studies: list[str] | dict[str, list[str]]) -> dict[str, list[str]]:
        """The tasks of every study: its own, or those of the configured ones that the study makes sense for."""
        if isinstance(studies, list):
            return {name: [t for t in self.tasks if t in self.study(name).get("tasks", self.tasks)] for name in studies}
        for task in itertools.chain(*studies.values()):
            self.task(task)
        return studies

    def study_rows(self, name: str, task: str) -> list[dict]:
        """A study's rows on a task: {"model", "method", "x", "runs"}, x being the place on its axis or None.

        The runs of a row are its seeds, and with `sizes` those of all draws of a subset.

        Raises:
            UserError: the study cannot be made of this task, the configured models or their flags.
        """
        return self._plan(name, task)[0]

    def study_gaps(self, name: str, task: str) -> list[str]:
        """Sentences about what the study leaves out, or cannot do as it says."""
        return self._plan(name, task)[1]

    def study_notes(self, name: str, task: str) -> list[str]:
        """Sentences below the study's table: `study_gaps`, and which flags `overrides` changes."""
        return [*self._plan(name, task)[1], *self._plan(name, task)[2]]

    def _plan(self, name: str, task: str) -> tuple[list[dict], list[str], list[str]]:
        if (name, task) not in self._plans:
            self._plans[name, task] = self._planned(self._preset("studies", name), task)
        return self._plans[name, task]

    def _planned(self, preset: Preset, task: str) -> tuple[list[dict], list[str], list[str]]:
        """The rows of a study on a task, what it leaves out, and what `overrides` changes in it."""
        study, where = preset.values, f"{preset.file}, {task}"
        models = [m for m in self.models if {*self._model_groups(m)} & {*study.get("models", self._model_groups(m))}]
        if not models:
            raise UserError(f"{where}: the study is for {', '.join(study['models'])}, and no such model is configured")
        self._check_score(study, task, where)
        sizes, notes = self._sizes_of_study(study, task)
        places = _places(study)
        rows, runs = [], []
        for model, method in itertools.product(models, study["methods"]):
            if not self.fits(method, model):
                continue
            for size, tasks in sizes.items() if "sizes" in study else [(None, [task])]:
                folders = [f"runs/{each}/{model}/{method}/{seed}" for each in tasks for seed in self._seeds_of(method)]
                x = size or places[method]
                rows.append({"model": model, "method": method, "x": x, "runs": folders})
                runs += [(each, model, method) for each in tasks]
        notes += self._left_out(study["methods"], models)
        if not rows:
            raise UserError(f"{where}: nothing is left to run; {'; '.join(notes)}")
        for run in runs:
            for command in COMMANDS:
                self.flags(command, *run)
        whole = {method for each, _, method in runs if each == task}
        notes += self._unsized(task, filter(whole.__contains__, study["methods"]))
        return rows, notes, self._changed(runs)

    def _sizes_of_study(self, study: dict, task: str) -> tuple[dict[str, list[str]], list[str]]:
        """The tasks of every size that the task has examples for, and sentences about the sizes where it lacks some."""
        pairs = self.task(task).get("pairs", {})
        draws = range(1, study.get("draws", 1) + 1)
        sizes, notes = {}, []
        for size in study.get("sizes", []):
            if size == "all":
                sizes["all"] = [task]
            elif size > pairs.get("train", size):
                notes.append(f"{size:,} examples: left out, {task} has {pairs['train']:,} to train on")
            else:
                sizes[str(size)] = [f"{task}@{size}-{draw}" for draw in draws]
                notes += self._validated(task, size)
        return sizes, notes

    def _validated(self, task: str, size: int) -> list[str]:
        """A sentence where the task has fewer pairs than are meant to validate a subset of this size."""
        wanted = validation_pairs(size)
        there = self.task(task).get("pairs", {}).get("valid", wanted)
        if there >= wanted:
            return []
        return [f"{size:,} examples: validated on all {there:,} that {task} has, instead of {wanted:,}"]

    def _check_score(self, study: dict, task: str, where: str) -> None:
        """The study's score is one that the metrics of the task give on this machine."""
        if (score := study.get("score")) is None:
            return
        metrics = self.task(task)["metrics"]
        names = {name: metric for metric, options in metrics.items() for name in score_names(metric, options)}
        name, _, split = score.partition(":")
        if name not in names:
            raise UserError(f"{where}: score: the metrics of {task} do not give {score!r}{_suggestion(score, names)}")
        options = metrics[names[name]]
        known = ["seen", "unseen"] if options.get("protocol") == "webnlg" else []
        if split and split not in known and not options.get("groups"):
            raise UserError(f"{where}: score: {name} of {task} is not split into {split!r}{_suggestion(split, known)}")
        if reason := unavailable(names[name], options):
            raise UserError(f"{where}: score: {score} cannot be computed on this machine; it {reason}")

    # Flags ------------------------------------------------------------------------------------------------------------

    def flags(self, command: str, task: str, model: str, method: str) -> list[str]:
        """Arguments for fairseq-train or fairseq-generate (`command`: train, generate), without what the rules add."""
        if not self.fits(method, model):
            raise self._unfit(method, model)
        merged, run = self._flags(command, task, model, method), f"{self.file}: {task}, {model}, {method}"
        if command == "train" and self.method(method)["trained"]:
            if subset(task):
                merged |= self._updates_of_subset(merged, task, model, method)
            merged = _with_decay(merged, run)
            check_accepted(command, merged, run, f"{self.method(method)['architecture']}_{self.family(model)}")
            if merged.get("prefix-init") == "words":
                merged |= self._words(model, merged)
            shared = self.resources(task, model, method)
            merged = _shared_by(shared["gpus"] * shared["nodes"], merged, run)
        if command == "generate":
            check_accepted(command, merged, run)
        return arguments(merged)

    def resources(self, task: str, model: str, method: str) -> dict[str, int]:
        """What a training takes: `gpus` of each of its `nodes`; one process of fairseq-train runs on each GPU."""
        return {"gpus": 1, "nodes": 1} | self._layers(("resources",), task, model, method)

    def files_of_words(self, task: str, model: str, method: str) -> list[str]:
        """What encodes the words that a training begins with; nothing where it begins with random numbers."""
        if self._flags("train", task, model, method).get("prefix-init") != "words":
            return []
        return list(self.vocabulary_files(self.vocabulary(model)).values())

    def _words(self, model: str, flags: dict) -> dict:
        """Flags for fairseq's encoder of `prefix-init-text`, which begins as the model's texts do."""
        files = self.vocabulary_files(self.vocabulary(model))
        if "spm" in files:
            return {"bpe": "sentencepiece", "sentencepiece-model": files["spm"]}
        text = str(flags.get("prefix-init-text") or "")
        spaced = f" {text}" if text and self.family(model) == "gpt2" else text
        encoder = {"gpt2-encoder-json": files["encoder-json"], "gpt2-vocab-bpe": files["vocab-bpe"]}
        return {"bpe": "gpt2", "prefix-init-text": spaced, **encoder}

    def truncation(self, task: str, model: str) -> dict[str, int]:
        """How many tokens of a source and of a training target the first configured method reads."""
        given = self._flags("train", task, model, self.methods[0])
        return {flag: default if given.get(flag) is None else given[flag] for flag, default in TRUNCATION.items()}

    def _flags(self, command: str, task: str, model: str, method: str) -> dict:
        merged = {"task": FAMILIES[self.family(model)].task} | self._layers(("data", command), task, model, method)
        for flag, value in variant(method).flags.items():
            if flag in known_flags()[command] if command == "train" else _generates(flag):
                merged[flag] = value
        where = f"{self.file}: {task}, {model}, {method}"
        return {flag: check_flag(command, flag, value, where) for flag, value in merged.items()}

    def _updates_of_subset(self, flags: dict, task: str, model: str, method: str) -> dict:
        """max-update and warmup-updates of a training on a subset.

        A preset's numbers are for the whole task: a subset gets as many epochs, and the same share of warm-up. A number
        is taken as it is from a section for subsets, from `overrides`, a variant, or a method that extends another.

        Raises:
            UserError: the method has numbers for other sizes only, or nothing says how many epochs the whole task gets.
        """
        found, settings = subset(task), self._settings(("data", "train"), task, model, method)
        meant = {flag for flag, (_, where) in settings.items() if where[0] in _FOR_ANY_SIZE or "@" in "".join(where)}
        meant |= variant(method).flags.keys()
        updates, warmup, epochs = (_count(flags.get(name)) for name in ("max-update", "warmup-updates", "max-epoch"))
        if updates is None:
            return {}
        result = {}
        if "max-update" not in meant:
            run, size = f"{task}, {model}, {method}", found.size
            remedy = f'set it for this size: overrides: {{tasks: {{"@{size}": {{train: {{max-update: N}}}}}}}}'
            pairs, batch = self.task(task).get("pairs", {}).get("train"), _batch(flags)
            if sizes := self._sizes_of(variant(method).method, found.task):
                known = ", ".join(map(str, sizes))
                raise UserError(f"{run}: {method} has max-update for {known} examples, not for {size}; {remedy}")
            if batch and epochs:
                result["max-update"] = min(updates, epochs * math.ceil(size / batch))
            elif pairs:
                result["max-update"] = min(updates, max(FEWEST_UPDATES, _rounded(updates * size, pairs)))
            elif batch and updates * batch > MOST_EPOCHS * size:
                raise UserError(
                    f"{run}: max-update {updates} is for all of {found.task}, and would be {updates * batch // size:,} "
                    f"epochs of {size} examples; {remedy}, or say in the task how many pairs of source and reference "
                    "it has to train on: pairs: {train: N}"
                )
        preset = self._settings(("data", "train"), found.task, model, method, overrides={})
        whole = _count(preset.get("max-update", (None,))[0])
        if warmup and whole and "warmup-updates" not in meant:
            result["warmup-updates"] = min(warmup, _rounded(warmup * result.get("max-update", updates), whole))
        return result

    def _sizes_of(self, method: str, task: str) -> list[int]:
        """The sizes of subsets of the task for which the method's preset says the number of updates."""
        names = re.compile(rf"(?:{re.escape(task)})?@(\d+)")
        return sorted(
            {
                int(found[1])
                for preset in self._lineage("methods", method)
                for name, section in self._preset("methods", preset).own.get("tasks", {}).items()
                if (found := names.fullmatch(name)) and "max-update" in section.get("train", {})
            }
        )

    def _layers(self, keys: tuple[str, ...], task: str, model: str, method: str) -> dict:
        """What stands under these keys in all layers."""
        return {name: value for name, (value, _) in self._settings(keys, task, model, method).items()}

    def _settings(
        self, keys: tuple[str, ...], task: str, model: str, method: str, overrides: dict | None = None
    ) -> dict[str, tuple]:
        """(value, where it comes from) of what stands under these keys: where is the layer and then its sections."""
        tasks = _task_names(task)
        methods = self._lineage("methods", variant(method).method)
        first, *derived = methods
        own = (method,) if method not in methods else ()  # a variant
        names = {"tasks": tasks, "models": self._model_groups(model), "methods": (*methods, *own)}
        merged = {}
        for kind, name in (("methods", first), ("models", model), ("tasks", tasks[0])):
            merged |= _merged(self._preset(kind, name).values, keys, names, (kind,))
        for name in derived:  # what a method changes of another one is meant for all models and tasks
            merged |= _merged(self._preset("methods", name).own, keys, names, ("derived",))
        overrides = self._overrides if overrides is None else overrides
        return merged | _merged(overrides, keys, names, ("overrides",))

    def _model_groups(self, model: str) -> tuple[str, ...]:
        """What sections for a model may be called, in the order in which they win."""
        architecture = self.model(model)["architecture"]
        return (*architecture.split("_"), architecture, *self._lineage("models", model))

    def pretraining_flags(self, model: str) -> list[str]:
        """Arguments for the fairseq-train that makes the base: the model's own, then those of its pretraining."""
        preset = self._preset("models", model)
        own = {**preset.values.get("data", {}), **preset.values.get("train", {})}
        if "text" in preset.values["base"]["pretrained"]:
            own = {name: value for name, value in own.items() if name not in TRUNCATION}  # there are no pairs
        flags = {"task": _pretraining_task(preset.values)} | own | preset.values["base"]["pretrained"]["train"]
        flags = {flag: check_flag("train", flag, value, preset.file) for flag, value in flags.items()}
        flags = _with_decay(flags, preset.file)
        check_accepted("train", flags, preset.file, f"full_{self.family(model)}")
        return arguments(flags)

    # Files ------------------------------------------------------------------------------------------------------------

    def downloads(self) -> dict[str, dict]:
        """Everything that can be fetched: path below resources/ -> {"url": [...], "sha256": [...]}, 0 or 1 each."""
        owners: dict[str, str] = {}
        files = {
            f"gpt2_bpe/{name}": {"url": [GPT2_BPE_URL + name], "sha256": [digest]} for name, digest in GPT2_BPE.items()
        }

        # These first: what conflicts with them is a fault of a preset that nothing here needs.
        configured = {"tasks": [_whole(task) for task in self.tasks], "models": self.models}
        tasks = sorted(self.sound("tasks"), key=lambda name: name not in configured["tasks"])
        models = sorted(self.sound("models"), key=lambda name: name not in configured["models"])

        def add(folder: str, entry: dict, kind: str, owner: str) -> None:
            if "file" not in entry:
                return
            path = f"{folder}/{entry['file']}"
            value = {key: [entry[key]] if entry.get(key) else [] for key in ("url", "sha256")}
            other = owners.setdefault(path, owner)
            if files.setdefault(path, value) != value:
                fault = f"{owner}: {path} has another url or sha256 in {other}; name it differently"
                if owner in configured[kind]:
                    raise UserError(fault)
                self._faults[kind, owner] = fault

        for name in tasks:
            task = self.task(name)
            for entry in task.get("inputs", {}).values():
                add(f"data/{task['dataset']}", entry, "tasks", name)
        for name in models:
            base = self.model(name)["base"]
            for entry in base.get("files", {}).values():
                add(f"bases/{name}", entry, "models", name)
            if "archive" in base:
                add(f"bases/{name}", base["archive"], "models", name)
            for entry in base.get("pretrained", {}).get("inputs", {}).values():
                add(f"data/{base['pretrained'].get('dataset', name)}", entry, "models", name)
        return files

    def task_inputs(self, name: str) -> dict[str, str]:
        """Raw files of a whole task: the reader's name for each -> path."""
        task = self.task(name)
        if "demo" in task:
            return {split: f"resources/demo/{name}/{split}.jsonl" for split in SPLITS}
        return _paths(task["inputs"], f"resources/data/{task['dataset']}")

    def base_inputs(self, name: str) -> dict[str, str]:
        """Raw files of a model's base: the archive, the Hugging Face files, or the texts to pretrain on -> path."""
        base = self.model(name)["base"]
        if "pretrained" in base:
            pretrained = base["pretrained"]
            return _paths(pretrained.get("inputs", {}), f"resources/data/{pretrained.get('dataset', name)}")
        return _paths(base.get("files") or {"archive": base["archive"]}, f"resources/bases/{name}")

    def base_files(self, name: str) -> list[str]:
        """Return the files below bases/{model} that the plugin reads."""
        model = self.model(name)
        files = [*sorted(model["base"].get("files", ["model.pt"])), "dict.txt"]
        if model["vocabulary"] == "sentencepiece":
            files.append("spm.model")
        return [f"bases/{name}/{file}" for file in dict.fromkeys(files)]

    def methods_where(self, **values: bool) -> list[str]:
        """Methods whose presets have these values, such as trained=True."""
        return [name for name in self.sound("methods") if values.items() <= self.method(name).items()]

    def parameters(self, model: str) -> int:
        """Millions of parameters of the model."""
        return ARCHITECTURES[self.model(model)["architecture"]]

    def models_with(self, kind: str, vocabulary: str = "") -> list[str]:
        """Return the models whose base is of a kind (archive, files or pretrained), with this vocabulary or any."""
        models = {name: self.model(name) for name in self.sound("models")}
        return [name for name, model in models.items() if kind in model["base"] and vocabulary in model["vocabulary"]]

    def models_pretrained_with(self, key: str) -> list[str]:
        """Models that are pretrained here and say this of it: demo or inputs (their texts), noise or text (how)."""
        return [name for name in self.models_with("pretrained") if key in self.model(name)["base"]["pretrained"]]

    def family(self, model: str) -> str:
        """Return the key of the model's family, such as bart."""
        return self.model(model)["architecture"].split("_")[0]

    def vocabulary(self, model: str) -> str:
        """Return the name of the folder that holds a task's subword text for the model."""
        if self.model(model)["vocabulary"] == "sentencepiece":
            return model
        return FAMILIES[self.family(model)].gpt2_vocabulary

    def vocabulary_files(self, vocabulary: str) -> dict[str, str]:
        """Return the files that encode and decode text of a vocabulary, by the name of the option that takes them."""
        if vocabulary in GPT2_VOCABULARIES:
            return {"encoder-json": "resources/gpt2_bpe/encoder.json", "vocab-bpe": "resources/gpt2_bpe/vocab.bpe"}
        return {"spm": f"bases/{vocabulary}/spm.model"}

    # ------------------------------------------------------------------------------------------------------------------

    def _preset(self, kind: str, name: str) -> Preset:
        if name not in self._paths[kind]:
            raise UserError(self._unknown(kind, name))
        if (kind, name) not in self._presets:
            file = f"configs/{kind}/{self._paths[kind][name].name}"
            values = self._values(kind, name)
            check(values, SINGULAR[kind], file)
            if kind == "studies":
                self._check_study(values, file)
            else:
                self._check_sections(values, file)
                {"tasks": _check_task, "models": _check_model, "methods": _check_method}[kind](values, file)
            self._presets[kind, name] = Preset(file, values, load_yaml(self._paths[kind][name], file))
        return self._presets[kind, name]

    def _lineage(self, kind: str, name: str) -> tuple[str, ...]:
        """The presets that a preset extends, and its own name last: their sections are for it too."""
        base = self._preset(kind, name).own.get("extends")
        return (*(self._lineage(kind, base) if base else ()), name)

    def _values(self, kind: str, name: str, extended_by: tuple[str, ...] = ()) -> dict:
        """What a preset's file says, laid over the preset that it extends."""
        path = self._paths[kind][name]
        file = f"configs/{kind}/{path.name}"
        values = load_yaml(path, file)
        if not isinstance(values, dict) or "extends" not in values:
            return values
        base = values["extends"]
        if not (isinstance(base, str) and base in self._paths[kind]):
            raise UserError(f"{file}: extends: {self._unknown(kind, base)}")
        chain = (*extended_by, name)
        if base in chain:
            raise UserError(f"{file}: extends: a preset cannot extend itself ({' -> '.join((*chain, base))})")
        extended = self._values(kind, base, chain)
        check(extended, SINGULAR[kind], f"configs/{kind}/{self._paths[kind][base].name}")
        own = {key: value for key, value in values.items() if key != "extends"}
        return _laid_over({"dataset": base, **_without_pairs(extended, own)} if kind == "tasks" else extended, own)

    def _check_study(self, values: dict, file: str) -> None:
        if (values.get("x") == ["size"]) != ("sizes" in values):
            raise UserError(f"{file}: x: [size] and the list `sizes` go together")
        if "draws" in values and "sizes" not in values:
            raise UserError(f"{file}: draws: only subsets are drawn; give sizes and x: [size] too, or leave draws out")
        for kind in KINDS:
            groups = MODEL_GROUPS if kind == "models" else ()
            for name in values.get(kind, []):
                if _preset_name(kind, name) not in {*self._paths[kind], *groups}:
                    raise UserError(f"{file}: {kind}: {self._unknown(kind, name)}")
        for flag in values.get("x", []) if "sizes" not in values else []:
            if not any(flag in variant(method).flags for method in values["methods"]):
                flags = {flag for method in values["methods"] for flag in variant(method).flags}
                raise UserError(f"{file}: x: no method of this study sets {flag!r}{_suggestion(flag, flags)}")
        axis, places = values.get("x", []), _places(values)
        rows = [("", label(method, axis), method, places[method]) for method in values["methods"]]
        for a, b in itertools.combinations(rows, 2):
            if a[1] == b[1] and a[3] == b[3]:
                raise UserError(f"{file}: methods: {a[2]} and {b[2]} set the same flags, and are one row")
        names = {name for row in rows for name in row[1:3]}
        for pair in values.get("compare", []):
            for name in pair:
                if name not in names:
                    raise UserError(f"{file}: compare: no method of this study is {name!r}{_suggestion(name, names)}")
            if not paired(rows, pair):
                raise UserError(
                    f"{file}: compare: {pair[0]} and {pair[1]} have no value of {' / '.join(axis)} in common"
                )
        for number, point in enumerate(values.get("points", [])):
            self._check_point(point, "x" in values, f"{file}: points: {number}")

    def _check_point(self, point: dict, has_axis: bool, where: str) -> None:
        """The names of a point are those of presets, and its scores are numbers with names of scores."""
        for kind in KINDS:
            name = str(point[SINGULAR[kind]])
            if _preset_name(kind, name) not in self._paths[kind]:
                raise UserError(f"{where}: {SINGULAR[kind]}: {self._unknown(kind, name)}")
        if ("x" in point) != has_axis:
            raise UserError(
                f"{where}: x is {'missing: the study has an axis' if has_axis else 'for a study with an axis'}"
            )
        for name, value in point.items():
            if name not in ("task", "model", "method", "x"):
                if not is_score(name.partition(":")[0]):
                    raise UserError(f"{where}: no score is called {name!r}{_suggestion(name, METRICS)}")
                if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
                    raise UserError(f"{where}: {name}: expected a number, found {value!r}")

    def _check_subsets(self, file: str) -> None:
        """A subset is drawn from its task's examples: they can be changed under the task's own name only."""
        for name, section in self._overrides.get("tasks", {}).items():
            if "@" in name and (keys := sorted(section.keys() & _DATA_KEYS)):
                raise UserError(
                    f"{file}: overrides: tasks: {name}: {keys[0]} cannot be changed for a subset, whose examples are "
                    f"those of {name.split('@')[0] or 'its task'}; change it there"
                )

    def _unknown(self, kind: str, name: str, known: Iterable[str] | None = None) -> str:
        return f"no {SINGULAR[kind]} is called {name!r}{_suggestion(name, known or self._paths[kind])}"

    def _check_sections(self, layer: dict, file: str, *keys: str) -> None:
        """Flags of a layer and all of its sections are fairseq's and free to set; sections are called like presets."""
        for command in ("data", "train", "generate"):
            for flag, value in layer.get(command, {}).items():
                check_flag(command, flag, value, ": ".join((file, *keys, command)))
        for kind in KINDS:
            for name, section in layer.get(kind, {}).items():
                known = {*self._paths[kind], *(MODEL_GROUPS if kind == "models" else ())}
                subsets = re.fullmatch(r"(.*)@([1-9]\d*)?", name) if kind == "tasks" else None
                if _preset_name(kind, name) not in known and not (subsets and subsets[1] in ("", *known)):
                    raise UserError(f"{': '.join((file, *keys, kind))}: {self._unknown(kind, name, known)}")
                if kind == "methods":
                    check([name], "methods", ": ".join((file, *keys, kind)))
                    self._check_variant(name, ": ".join((file, *keys, kind)))
                self._check_sections(section, file, *keys, kind, name)


_FOR_ANY_SIZE = ("overrides", "derived")  # layers whose numbers are not meant for a whole task
_LAYER_KEYS = frozenset(("data", "train", "generate", "resources", *KINDS))
_DATA_KEYS = frozenset(("dataset", "reader", "options", "inputs", "demo", "expected", "pairs"))


def _laid_over(base, change):
    """Maps merged at every depth; anything else is replaced."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return base | {key: _laid_over(base[key], value) if key in base else value for key, value in change.items()}


def _merged(layer: dict, keys: tuple[str, ...], names: dict[str, tuple[str, ...]], where: tuple[str, ...]) -> dict:
    values = {name: (value, where) for key in keys for name, value in layer.get(key, {}).items()}
    for kind in ("methods", "models", "tasks"):
        for name in names[kind]:
            if section := layer.get(kind, {}).get(name):
                values |= _merged(section, keys, names, (*where, name))
    return values


def _without_pairs(values: dict, change: dict) -> dict:
    """Values of a task without the number of its pairs, where the change is about which examples there are."""
    if change.keys() & {"inputs", "demo", "reader", "expected"}:
        return {key: value for key, value in values.items() if key != "pairs"}
    return values


def _batch(flags: dict) -> int | None:
    """How many examples an update is made of; None where batches are counted in tokens."""
    size, freq = _count(flags.get("batch-size")), _count(flags.get("update-freq") or 1)
    return size * freq if size and freq and flags.get("max-tokens") is None else None


def _count(value) -> int | None:
    """The value of a flag that is a whole number above 0; None of anything else."""
    return value if type(value) is int and value > 0 else None


def _rounded(number: int, divisor: int) -> int:
    return (number + divisor // 2) // divisor


def _written(value) -> str:
    """A flag's value as YAML has it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shared_by(processes: int, flags: dict, run: str) -> dict:
    """The flags of each of several processes that together make the batches that the flags say.

    They first take over the batches that one process would have made one after another (update-freq).
    """
    if processes == 1:
        return flags
    freq = flags.get("update-freq") or 1
    one_after_another = math.gcd(processes, freq) if isinstance(freq, int) else 1
    side_by_side = processes // one_after_another
    size = flags.get("batch-size")
    if side_by_side > 1 and (flags.get("max-tokens") is not None or not size or size % side_by_side):
        raise UserError(
            f"{run}: {processes} GPUs cannot make equal shares of a batch (batch-size {size}, update-freq {freq}, "
            f"max-tokens {flags.get('max-tokens')}); batch-size times update-freq must be a multiple of their number"
        )
    shared = {"batch-size": size // side_by_side} if side_by_side > 1 else {}
    return flags | shared | ({"update-freq": freq // one_after_another} if one_after_another > 1 else {})


def _with_decay(flags: dict, run: str) -> dict:
    """A learning rate that decays to the end of training: max-update says both (fairseq wants it twice)."""
    if flags.get("lr-scheduler") != "polynomial_decay" or flags.get("total-num-update") is not None:
        return flags
    if not flags.get("max-update"):
        raise UserError(
            f"{run}: lr-scheduler polynomial_decay needs max-update, the number of updates that it decays over"
        )
    return {**flags, "total-num-update": flags["max-update"]}


def _paths(files: dict[str, dict], folder: str) -> dict[str, str]:
    return {
        key: os.path.expanduser(entry["path"]) if entry.get("path") else f"{folder}/{entry['file']}"
        for key, entry in files.items()
    }


# Checks ---------------------------------------------------------------------------------------------------------------


def _check_files(files: dict[str, dict], where: str) -> None:
    for key, entry in files.items():
        if ("path" in entry) == ("file" in entry) or ("path" in entry and len(entry) > 1):
            raise UserError(f"{where}: {key}: give either file (with url and sha256 where known), or path alone")


def _check_task(values: dict, file: str) -> None:
    if ("inputs" in values) == ("demo" in values):
        raise UserError(f"{file}: give either inputs or demo, as the place the examples come from")
    _check_files(values.get("inputs", {}), f"{file}: inputs")
    if values["reader"] not in READERS:
        suggestion = _suggestion(values["reader"], READERS)
        raise UserError(f"{file}: reader: no reader is called {values['reader']!r}{suggestion}")
    for metric, options in values["metrics"].items():
        if metric not in METRICS:
            raise UserError(f"{file}: metrics: no metric is called {metric!r}{_suggestion(metric, METRICS)}")
        try:
            check_options(metric, options or {})
        except UserError as error:
            raise UserError(f"{file}: metrics: {error}") from None


def _check_model(values: dict, file: str) -> None:
    base, name = values["base"], Path(file).stem
    if name in MODEL_GROUPS | {*GPT2_VOCABULARIES} and name != values["architecture"]:
        raise UserError(f"{file}: {name} is the name of a group of models or of a vocabulary; choose another one")
    if len(base) != 1:
        raise UserError(f"{file}: base: give exactly one of archive, files and pretrained")
    if values["architecture"] not in ARCHITECTURES:
        suggestion = _suggestion(values["architecture"], ARCHITECTURES)
        raise UserError(f"{file}: architecture: the plugin has no {values['architecture']!r}{suggestion}")
    family, sentencepiece = FAMILIES[values["architecture"].split("_")[0]], values["vocabulary"] == "sentencepiece"
    if not sentencepiece and ("pretrained" in base or not family.gpt2_vocabulary):
        what = "a base that is pretrained here" if "pretrained" in base else values["architecture"]
        raise UserError(f"{file}: vocabulary: expected sentencepiece for {what}, got gpt2")
    if "files" in base and sentencepiece != ("spm.model" in base["files"]):
        raise UserError(f"{file}: base: files: spm.model and vocabulary: sentencepiece go together")
    _check_files({"archive": base["archive"]} if "archive" in base else {}, f"{file}: base")
    _check_files(base.get("files", {}), f"{file}: base: files")
    if pretrained := base.get("pretrained"):
        if ("noise" in pretrained) == ("text" in pretrained):
            raise UserError(f"{file}: base: pretrained: give either noise (denoising) or text (language modelling)")
        if not family.pretraining:
            raise UserError(f"{file}: base: {values['architecture']} cannot be pretrained here; give archive or files")
        if "text" in pretrained and "text" not in family.pretraining:
            raise UserError(f"{file}: base: pretrained: text is for a language model; {values['architecture']} is none")
        task = _pretraining_task(values)
        if pretrained["train"].get("task", task) != task:
            raise UserError(f"{file}: base: pretrained: train: task is {task} here; leave it out, or write that")
        if ("inputs" in pretrained) == ("demo" in pretrained):
            raise UserError(f"{file}: base: pretrained: give either inputs or demo, as the place the texts come from")
        _check_files(pretrained.get("inputs", {}), f"{file}: base: pretrained: inputs")
        for flag, value in pretrained["train"].items():
            check_flag("train", flag, value, f"{file}: base: pretrained: train")


def _pretraining_task(values: dict) -> str:
    """The task of fairseq that pretrains a model: on text alone, or on the pairs that its family reads."""
    text_alone = "text" in values["base"]["pretrained"]
    return "language_modeling" if text_alone else FAMILIES[values["architecture"].split("_")[0]].task


def _check_method(values: dict, file: str) -> None:
    if values["exported"] and not (values["trained"] and values["architecture"] == "prefix"):
        raise UserError(f"{file}: exported: only a trained prefix can be exported")


def check(values, definition: str, file: str) -> None:
    """Check values against one definition of the schema; the first thing that is wrong is a `UserError`."""
    _check_size(values, file)
    validator = Draft202012Validator({**_schema(), "$ref": f"#/$defs/{definition}"})
    if error := best_match(validator.iter_errors(values)):
        raise UserError(": ".join((file, *map(str, error.absolute_path), _sentence(error))))


def _check_size(values, file: str) -> None:
    """YAML's aliases let a few lines stand for more values than fit into memory, or for a value within itself."""

    def size(value, above: tuple = ()) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) in above or len(above) > DEEPEST:
            raise UserError(f"{file}: values within values, deeper than {DEEPEST}; no configuration needs that")
        if id(value) not in sizes:
            parts = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(part, (*above, id(value))) for part in parts)
        return sizes[id(value)]

    sizes: dict[int, int] = {}
    if (found := size(values)) > LARGEST:
        raise UserError(f"{file}: stands for {found:,} values, aliases (*) resolved; {LARGEST:,} are allowed")


@functools.cache
def _schema() -> dict:
    return yaml.safe_load((SCHEMAS / "config.schema.yaml").read_text(encoding="utf-8"))


def _sentence(error: ValidationError) -> str:
    """What is wrong at the place that the error's path names."""
    expected = error.schema.get("description", "something else")
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        key = next(key for key in error.instance if key not in known)
        sections = [command for command in COMMANDS if command in known and key in known_flags()[command]]
        if sections:
            return f"unknown key {key!r}; it is a flag of fairseq: write it under {sections[0]}"
        return f"unknown key {key!r}{_suggestion(key, known)}"
    if error.validator == "required":
        key = next(key for key in error.validator_value if key not in error.instance)
        return f"the key {key!r} is missing"
    if error.validator == "uniqueItems":
        return f"something stands twice in {error.instance!r}"
    if error.validator in ("minItems", "minProperties"):
        return "must not be empty"
    if error.validator == "enum":
        return f"expected {expected}, found {error.instance!r}{_suggestion(error.instance, error.validator_value)}"
    if "propertyNames" in error.absolute_schema_path and isinstance(error.instance, str):
        spelt = error.instance.lower().replace("_", "-").strip("-")
        if re.search(str(error.schema.get("pattern")), spelt):
            return f"expected {expected}, found {error.instance!r}; did you mean {spelt!r}?"
    return f"expected {expected}, found {error.instance!r}"


# Files ----------------------------------------------------------------------------------------------------------------


def _with_lists(values: dict) -> dict:
    """The configuration with a list wherever one name or number stands alone, as in --config models=gpt2_medium."""
    lists = {key: value for key, value in values.items() if key in (*KINDS, "studies")}
    values = values | {key: [value] for key, value in lists.items() if isinstance(value, str)}
    if isinstance(seeds := values.get("seeds"), list | int):
        seeds = [seeds] if isinstance(seeds, int) else seeds
        # Snakemake hands over the numbers of a list on the command line as texts: --config 'seeds=[1, 2]'
        values["seeds"] = [int(seed) if isinstance(seed, str) and seed.isdecimal() else seed for seed in seeds]
    return values


def _preset_paths(kind: str, folders: Iterable[Path], misnamed: list[str]) -> dict[str, Path]:
    """Name -> file of all presets of a kind; `misnamed` gets a sentence about each file with an unusable name."""
    paths: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob(f"{kind}/*.yaml")):
            if re.fullmatch(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", path.stem):
                paths.setdefault(path.stem, path)
            else:
                misnamed.append(f"configs/{kind}/{path.name}: the name may hold letters, digits, '_' and '-' only")
    return paths


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def check_yaml(files: Iterable[str | Path]) -> None:
    """Check the files that Snakemake merges to the configuration: its own message names neither file nor line."""
    for path in map(Path, files):
        if path.exists() and path.suffix != ".json" and not isinstance(load_yaml(path, os.path.relpath(path)), dict):
            raise UserError(f"{os.path.relpath(path)}: expected keys, such as tasks: [xsum]")


def load_yaml(path: Path, file: str | None = None):
    """The value of a YAML file; `file` is how errors call it."""
    file = file or str(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 -- a safe loader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{file}, line {line}: not valid YAML ({error.problem})") from None
    except RecursionError:
        raise UserError(f"{file}: nested deeper than {DEEPEST}; no configuration needs that") from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        OverflowError,
        AttributeError,
    ) as error:  # keys and values of any kind
        raise UserError(f"{file}: not valid YAML ({single_line(str(error))})") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
