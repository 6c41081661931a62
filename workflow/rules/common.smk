# What the rules share: the checked configuration, wildcards, and input functions. No rules here.

import contextlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

PROJECT = Path(workflow.basedir)
sys.path.insert(0, str(PROJECT / "workflow" / "scripts"))  # before an installed package called config, or the like

from common import PROGRESS, UserError
from config import GPT2_VOCABULARIES, VARIANT, Configuration, check_yaml
from flags import arguments
from metrics import METRICS, unavailable
from imports import imported
from snakemake_hooks import AT_START, OF_RULES, install
from targets import check_targets
from trained import PLAN, REPLACE, watch_plan

install(workflow, AT_START)


def checked(function, *arguments):
    """The function's result; a mistake ends Snakemake with its sentence, which a WorkflowError would wrap in a traceback."""
    try:
        return function(*arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


checked(check_yaml, ["configs/config.yaml", *workflow.configfiles])


configfile: "configs/config.yaml"


study = checked(
    Configuration,
    config,
    ", ".join(dict.fromkeys(map(os.path.relpath, workflow.configfiles))),
    dict.fromkeys([Path("configs").resolve(), PROJECT / "configs"]),
)

checked(study.downloads)

# Before every command: Snakemake's own safeguards, which a prefix replaces; `python` is the one that runs Snakemake, also where
# its environment is not activated; the plugin is found from any working directory; watch.py draws the progress bars; mirrors and
# the permission to replace come by environment, because a change of a parameter would make files that are there out of date.
# `logged LOG COMMAND` copies stderr to the log and waits until the log is whole; tee outlives a signal to the whole group.
shell.prefix(
    (
        "set -euo pipefail;"
        f" export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        f" PYTHONPATH=${{PYTHONPATH:+$PYTHONPATH:}}{shlex.quote(str(PROJECT))}"
        f" {PROGRESS}=lines {REPLACE}={'yes' if study.replace else ''}"
        f" PREFIX_MIRROR={shlex.quote(os.pathsep.join(study.mirror))}${{PREFIX_MIRROR:+{os.pathsep}$PREFIX_MIRROR}};"
        ' logged() { local log=$1; shift; { "$@" 2>&1 >&3 | (trap "" HUP INT TERM; exec tee -- "$log") >&2; } 3>&1; }; '
    )
    .replace("{", "{{")
    .replace("}", "}}")
)


def any_of(names):
    """A regular expression for exactly these names; one that matches nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def methods_named(names):
    """A regular expression for methods of these names and for their variants."""
    return f"(?:{any_of(names)}){VARIANT}"


TASK = any_of(study.known("tasks"))  # without the suffix of a subset


wildcard_constraints:
    task=rf"(?:{TASK})(?:@[1-9]\d*-(?:0|[1-9]\d*))?",
    model=any_of(study.known("models")),
    method=methods_named(study.known("methods")),
    vocabulary=any_of([*GPT2_VOCABULARIES, *study.known("models")]),
    split="train|valid|test",
    part="(?:valid/)?",  # what is written of a run: of the test set, or below `valid/` of the validation set
    side="source|target",
    seed=r"\d+",
    metric=any_of(METRICS),
    table=any_of([*METRICS, "scores"]),
    study=any_of(study.known("studies")),


def script(name):
    """A script's path: below the working directory where it is, so that nothing depends on where the project lies."""
    path = PROJECT / "workflow" / "scripts" / name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def modules(name):
    """The modules of the project that a script imports: an edit of one of them may change what the script writes."""
    return [os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path) for path in imported(PROJECT, name)]


def pairs(files):
    """{"train": "a.csv"} -> ["train=a.csv"], as the scripts take named files."""
    return [f"{key}={path}" for key, path in files.items()]


def compact_json(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


BINARISED = expand(
    "{split}.source-target.{side}.{suffix}",
    split=["train", "valid", "test"],
    side=["source", "target"],
    suffix=["bin", "idx"],
)


def folder_of(files):
    """The folder that some files of a rule lie in."""
    return os.path.dirname(files[0])


def vocabulary_options(vocabulary):
    """The files, and how they are used: options of the scripts."""
    spaced = {"leading-space": True} if vocabulary == "gpt2_spaced" else {}
    return study.vocabulary_files(vocabulary) | spaced


def dictionary(vocabulary):
    return (
        f"bases/{vocabulary}/dict.txt" if "spm" in study.vocabulary_files(vocabulary) else "resources/gpt2_bpe/dict.txt"
    )


def binarised(task, model):
    """The folder of a task's data for a model, and the files in it that a command reads."""
    folder = f"data/{task}/{study.vocabulary(model)}/bin"
    return [f"{folder}/{file}" for file in ("dict.source.txt", "dict.target.txt", *BINARISED)]


def described_models():
    """What a data report needs to know of each configured model: its vocabulary."""
    return {model: vocabulary_options(study.vocabulary(model)) for model in study.models}


def run_folders(task):
    """The runs that a task's tables compare."""
    return [f"runs/{task}/{model}/{method}/{seed}" for model, method, seed in study.runs()]


def planned_runs(task, model):
    """The runs of a model on a task that tables and studies compare, and the pretraining of its base."""
    targets = [Path(target).parts for target in workflow.dag_settings.targets]
    asked = {
        parts[2]: [parts[3].partition(".")[0]]
        for parts in targets
        if parts[:2] == ("results", "studies") and len(parts) > 3
    }
    runs = run_folders(task)
    runs += [
        run for name, tasks in (asked | study.studies).items() for each in tasks for run in runs_of_study(name, each)
    ]
    pretrained = [f"bases/{model}/pretrain"] if model in study.models_with("pretrained") else []
    return pretrained + sorted({run for run in runs if run.startswith(f"runs/{task}/{model}/")})


def kept(files, *results):
    """Inputs of a training or a decoding. Where its results are there, the inputs are taken as they are on the disk: that they
    are made again is no reason to repeat it, for as a rule they get the same bytes; check_runs stops where they do not. An
    ancient() input alone would not do: Snakemake then overlooks other reasons to run the job.
    """
    settings = workflow.dag_settings
    forced = settings.forceall or settings.forcerun or settings.forcetargets or PLAN.waits
    if study.replace or forced or not there([*files, *results]) == [*files, *results]:
        return files
    return [ancient(before_update(file)) for file in files]


def run_folder(wildcards):
    return f"runs/{wildcards.task}/{wildcards.model}/{wildcards.method}/{wildcards.seed}"


def kept_if_trained(wildcards, files):
    return kept(files, f"{run_folder(wildcards)}/checkpoint.pt", f"{run_folder(wildcards)}/run.json")


def kept_if_decoded(wildcards, files):
    return kept(files, f"{run_folder(wildcards)}/{wildcards.part}generate.txt")


def checks(scores):
    """What check_runs leaves where the runs with these scores were made from the data and the bases that are there."""
    pairs = sorted({Path(file).parts[1:3] for file in scores})
    return [f"data/{task}/checked/{model}.json" for task, model in pairs]


def there(files):
    return [file for file in files if os.path.exists(file)]


def generated_from(wildcards):
    """The checkpoint that hypotheses come from: of the exported prefix, where there is one."""
    name = "imported.pt" if study.method(wildcards.method)["exported"] else "checkpoint.pt"
    return f"{run_folder(wildcards)}/{name}"


def split_of(wildcards):
    """The split that a run's hypotheses and scores are of."""
    return "valid" if wildcards.part else "test"


def split_option(wildcards):
    return ["--split", "valid"] if wildcards.part else []


def evaluated_examples(wildcards):
    return f"data/{wildcards.task}/{split_of(wildcards)}.jsonl"


def base_option(wildcards):
    """Where the base is, for a checkpoint that does not hold it."""
    holds_base = study.method(wildcards.method)["architecture"] == "full"
    return [] if holds_base else ["--base-model", f"bases/{wildcards.model}"]


def architecture(wildcards):
    return f"{study.method(wildcards.method)['architecture']}_{study.model(wildcards.model)['architecture']}"


def language_tags(wildcards):
    """The flags for the languages of an untuned mBART's texts; nothing for other models."""
    flags = study.flags("train", wildcards.task, wildcards.model, wildcards.method)
    tags = [f"{flag} {value}" for flag, value in zip(flags, flags[1:]) if flag in ("--source-tag", "--target-tag")]
    return f" -- {' '.join(tags)}" if tags else ""


# What a job may take. On a cluster, jobs that are killed for memory or time are sent again (`retries` of its profile), and
# the second attempt asks for twice as much, the third for three times. `gpu_jobs` counts the GPUs that a job takes of the
# machine that it runs on: how many there are is in profiles/default, and is of no concern to a cluster.


def growing(amount):
    """A resource that grows with the attempts: a number, or a function of the wildcards."""
    if callable(amount):
        return lambda wildcards, attempt: attempt * amount(wildcards)
    return lambda wildcards, attempt: attempt * amount


def is_small(wildcards):
    """Whether the model is trained on a CPU's core, several side by side."""
    return study.parameters(wildcards.model) < 10


def threads_of(wildcards):
    """Measured: a second thread does not make a small model faster, and next to another job it slows both down."""
    return 1 if is_small(wildcards) else 8


def gpus_of(wildcards):
    return 0 if is_small(wildcards) else 1


def mb_of_training(wildcards):
    """Of the machine, not of the GPU: weights as read and as loaded, and those and Adam's moments when they are saved."""
    return 8000 + 20 * study.parameters(wildcards.model)


def mb_of_decoding(wildcards):
    """Weights as read, as loaded and as brought into the model."""
    return 8000 + 12 * study.parameters(wildcards.model)


def shares(wildcards):
    """The GPUs of each node, and the nodes, that a training of a method is shared by."""
    return study.resources(wildcards.task, wildcards.model, wildcards.method)


def if_across_nodes(value):
    """A resource that only a training across several nodes asks for: a function of `shares` and of whether it is small.

    Snakemake leaves out a resource that is None. One process of the training is one task of the batch system then, and
    the job is declared an MPI one, which leaves it to the job itself to start them (train.py, with srun).
    """

    def resource(wildcards):
        shared = shares(wildcards)
        return value(shared, is_small(wildcards)) if shared["nodes"] > 1 else None

    return resource


def processes_here(wildcards):
    """How many processes of a training share a task of the batch system: all of a node's, but across nodes each is one."""
    shared = shares(wildcards)
    return shared["gpus"] if shared["nodes"] == 1 else 1


def gpus_of_training(wildcards):
    """All on one node; across nodes `gres` says how many each of them is to have."""
    shared = shares(wildcards)
    return gpus_of(wildcards) * shared["gpus"] if shared["nodes"] == 1 else None


def preparation_threads(wildcards):
    """One where a small model is pretrained meanwhile: on two cores, the other would otherwise have nothing to do."""
    return 1 if wildcards.vocabulary in study.models_with("pretrained") else 4


def pretraining(wildcards):
    return study.model(wildcards.model)["base"]["pretrained"]


def pretraining_data(wildcards):
    """What a base is pretrained on: pairs with noise in the source, or plain text for a language model."""
    folder = f"bases/{wildcards.model}/pretrain/bin"
    if "noise" in pretraining(wildcards):
        pairs_of_text = [file for file in BINARISED if not file.startswith("test")]
        return [f"{folder}/{file}" for file in ("dict.source.txt", "dict.target.txt", *pairs_of_text)]
    return [f"{folder}/{file}" for file in ("dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx")]


def pretrained_from(wildcards):
    """What a base was pretrained on, as far as it is there: the base may be there without it."""
    if wildcards.model not in study.models_with("pretrained"):
        return []
    files = pretraining_data(wildcards)
    return there(files) if os.path.exists(f"bases/{wildcards.model}/model.pt") else files


def scored_metrics(task):
    """Metrics of a task that this machine can compute, and a sentence about each of the others."""
    metrics = study.task(task)["metrics"]
    missing = {metric: unavailable(metric, options) for metric, options in metrics.items()}
    return (
        [metric for metric in metrics if not missing[metric]],
        [f"{metric}: not computed; it {reason}" for metric, reason in missing.items() if reason],
    )


def tabulated(wildcards):
    """The metrics of a table (one, or for `scores` all of the task's), and sentences about what is missing or changed."""
    announce(study.gaps(wildcards.task))
    metrics, missing = scored_metrics(wildcards.task) if wildcards.table == "scores" else ([wildcards.table], [])
    return metrics, missing + study.notes(wildcards.task)


def benchmarks(task):
    """What Snakemake measured of a task's runs; of an untuned model there is no training."""
    return [
        f"logs/runs/{task}/{model}/{method}/{seed}/{command}.benchmark.tsv"
        for model, method, seed in study.runs()
        for command in (["train", "generate"] if study.method(method)["trained"] else ["generate"])
    ]


def main_metric(task):
    """The first of the task's metrics that this machine can compute, in a list that is empty if there is none."""
    return scored_metrics(task)[0][:1]


def scored(task, metrics):
    return [f"{run}/{metric}.json" for run in run_folders(task) for metric in metrics]


notices = set()


def announce(sentences):
    """Say while planning, once each, what is not run as it was configured; the tables say it again."""
    for sentence in sentences:
        if sentence not in notices:
            notices.add(sentence)
            print(f"notice: {sentence}", file=sys.stderr)


def rows_of_study(name, task):
    """What study.py gets: the rows, and the sentences below them where there are any."""
    notes = study.study_notes(name, task)
    return {"rows": study.study_rows(name, task)} | ({"notes": notes} if notes else {})


def runs_of_study(name, task):
    return [run for row in study.study_rows(name, task) for run in row["runs"]]


def scores_of_study(name, task):
    """The scores that a study's runs end in; with `partial: true` those that are there, the others count as failed."""
    announce(study.study_gaps(name, task))
    part = "valid/" if study.study(name).get("split") == "valid" else ""
    files = [f"{run}/{part}{metric}.json" for run in runs_of_study(name, task) for metric in scored_metrics(task)[0]]
    return [file for file in files if os.path.exists(file)] if study.partial else files


def studies_on_tasks():
    return [f"results/studies/{name}/{task}.txt" for name, tasks in study.studies.items() for task in tasks]


def tables():
    """The tables of the configured tasks: one of each score that this machine can compute, of all together, of costs."""
    return [
        f"results/{task}/{name}.txt"
        for task in study.tasks
        for name in [*scored_metrics(task)[0], *(["scores"] if len(study.task(task)["metrics"]) > 1 else []), "costs"]
    ]


def made_from(task, metrics):
    """What a table of a task is made from, with these scores of each run."""
    scores = scored(task, metrics)
    return [
        *checks(scores),
        *scores,
        *(f"{run}/{name}" for run in run_folders(task) for name in ("run.json", "hypotheses.txt")),
    ]


def incomplete():
    """Tables and studies that are there while something that they are made from is not."""
    made = {}
    for path in Path("results").glob("*/*.txt"):
        task, table = path.parts[1], path.stem
        if re.fullmatch(TASK, task.partition("@")[0]) and table in (*METRICS, "scores", "costs"):
            with contextlib.suppress(UserError):  # of a preset that is broken now, and only matters if it is asked for
                metrics = {"scores": scored_metrics(task)[0], "costs": main_metric(task)}.get(table, [table])
                made[path] = made_from(task, metrics)
    for path in Path("results/studies").glob("*/*.txt"):
        name, task = path.parts[2], path.stem
        if name in study.known("studies") and re.fullmatch(TASK, task):
            with contextlib.suppress(UserError):
                scores = scores_of_study(name, task)
                made[path] = [*checks(scores), *scores]
    return [str(table) for table, files in made.items() if there(files) != files]


if workflow.is_main_process:
    watch_plan(workflow, incomplete, study.replace)
