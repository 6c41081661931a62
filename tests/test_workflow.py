"""The real Snakefile from raw data to tables, with stubs for fairseq's commands: what is planned, run, run again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from common import sha256_file
from conftest import REPOSITORY, example

STUBS = Path(__file__).parent / "stubs"
MODEL = {
    "architecture": "bart_tiny",
    "vocabulary": "sentencepiece",
    "base": {
        "pretrained": {
            "dataset": "toy_text",
            "inputs": {"text": {"file": "novel.txt"}},
            "documents": {"max-words": 20},
            "vocabulary": {"size": 340},
            "noise": {"valid": 5},
            "seed": 1,
            "train": {"task": "conditional_generation", "max-update": 2},
        }
    },
    "methods": {"prefix": {"train": {"max-update": 2}}, "finetune": {"train": {"max-update": 2}}},
}
TASK = {
    "dataset": "toy",
    "reader": "jsonl",
    "options": {"source": "source", "target": "references"},
    "inputs": {split: {"file": f"{split}.jsonl"} for split in ("train", "valid", "test")},
    "metrics": {"bleu": {}, "rouge": {}},
}
CONFIG = {"tasks": ["toy"], "models": ["toy"], "methods": ["base", "prefix", "finetune"], "seeds": [1, 2]}
CONFIG |= {"mirror": ["mirror"]}
OF_A_RUN = ["train", "export_prefix", "import_prefix", "generate", "hypotheses"]


def project(folder: Path) -> Path:
    """The folder of the Snakefile that the workflow in a folder runs: a copy of its own, or the repository's."""
    return folder / "project" if (folder / "project").exists() else REPOSITORY


def start_snakemake(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project(folder) / "Snakefile"), "--cores", "2"]
    command += ["--profile", str(REPOSITORY / "profiles" / "default"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(STUBS), **environment}
    environment.pop("PREFIX_MIRROR", None)
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def unlock(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "workflow" / "scripts" / "unlock.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def snakemake(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    process = start_snakemake(folder, *arguments, **environment)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def planned(result: subprocess.CompletedProcess) -> dict[str, int]:
    """Rule -> number of jobs, of a dry run."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    if "Nothing to be done" in output:
        return {}
    _, _, table = output.partition("Job stats:")
    rows = re.findall(r"^(\w+) +(\d+)$", table.partition("total")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule not in ("all", "job")}


def write_configuration(folder: Path, **changes) -> None:
    (folder / "configs" / "config.yaml").write_text(yaml.safe_dump(CONFIG | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a user's own task and model, in which the whole workflow has run."""
    folder = tmp_path_factory.mktemp("workflow")
    for name in ("workflow", "fairseq_prefix"):  # copies, for tests to edit
        shutil.copytree(REPOSITORY / name, folder / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("configs", "profiles"):
        (folder / "project" / name).symlink_to(REPOSITORY / name)
    shutil.copy(REPOSITORY / "Snakefile", folder / "project")
    for kind, values in (("models", MODEL), ("tasks", TASK)):
        (folder / "configs" / kind).mkdir(parents=True)
        (folder / "configs" / kind / "toy.yaml").write_text(yaml.safe_dump(values))
    write_configuration(folder)
    (folder / "mirror" / "toy_text").mkdir(parents=True)
    sentences = [
        f"The {n} ships of {place} sailed on day {n % 7}." for n in range(30) for place in ("Ayr", "Elgin", "Oban")
    ]
    (folder / "mirror" / "toy_text" / "novel.txt").write_text("\n".join(sentences) + "\n")
    (folder / "mirror" / "toy").mkdir()
    for split, count in (("train", 8), ("valid", 3), ("test", 4)):
        rows = [example(n, f"The ship {n} of Ayr, {split}.", f"Ship {n} sailed.") for n in range(count)]
        (folder / "mirror" / "toy" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = snakemake(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture
def workflow(finished, tmp_path):
    """A copy of the finished workflow, for a test to change."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


def tables(folder: Path) -> dict[str, bytes]:
    """The bytes of all tables but that of the costs, which are never the same twice."""
    paths = (folder / "results" / "toy").iterdir()
    return {path.name: path.read_bytes() for path in paths if path.stem != "costs"}


def argument(folder: Path, run: str, flag: str) -> str:
    """What fairseq-train was given for a flag in a run."""
    arguments = json.loads((folder / "runs" / "toy" / "toy" / run / "checkpoint.pt").read_text())["arguments"]
    return arguments[arguments.index(flag) + 1]


def test_a_table_for_every_metric_with_every_method(finished):
    for metric in ("bleu", "rouge"):
        text = (finished / "results" / "toy" / f"{metric}.txt").read_text()
        assert [line.split()[1] for line in text.splitlines()[4:7]] == CONFIG["methods"]
        assert (finished / "results" / "toy" / f"{metric}.tsv").exists()
    header = (finished / "results" / "toy" / "scores.txt").read_text().splitlines()[2]
    assert header.split()[-4:] == ["bleu", "rouge1", "rouge2", "rougeL"]


def test_fairseq_gets_data_base_seed_and_flags(finished):
    for seed in ("1", "2"):
        assert argument(finished, f"prefix/{seed}", "--seed") == seed
    expected = {"--arch": "prefix_bart_tiny", "--base-model": "bases/toy", "--lr": "5e-05", "--max-update": "2"}
    expected["--distributed-world-size"] = "1"  # whatever the number of GPUs
    assert {flag: argument(finished, "prefix/1", flag) for flag in expected} == expected
    assert argument(finished, "finetune/1", "--arch") == "full_bart_tiny"
    assert argument(finished, "prefix/1", "--adam-betas") == "(0.9, 0.999)"
    base = json.loads((finished / "bases" / "toy" / "model.pt").read_text())["arguments"]
    assert base[:3] == ["bases/toy/pretrain/bin", "--arch", "full_bart_tiny"] and "--base-model" not in base


def test_both_families_share_a_table(workflow):
    """A language model beside the BART; it is pretrained on plain text here."""
    pretrained = {**MODEL["base"]["pretrained"], "text": {"valid": 5}}
    pretrained["train"] = {"task": "language_modeling", "tokens-per-sample": 64, "max-update": 2}
    del pretrained["noise"]
    model = {**MODEL, "architecture": "gpt2_tiny", "base": {"pretrained": pretrained}, "data": {"max-source-tokens": 9}}
    (workflow / "configs" / "models" / "other.yaml").write_text(yaml.safe_dump(model))
    write_configuration(workflow, models=["toy", "other"], methods=["prefix"], seeds=[1])
    result = snakemake(workflow, "results/toy/bleu.txt", "results/toy/costs.txt")
    assert result.returncode == 0, result.stdout + result.stderr
    for table, models in (("bleu", ["toy", "other"]), ("costs", ["toy", "other"])):
        lines = (workflow / "results" / "toy" / f"{table}.txt").read_text().splitlines()
        assert [line.split()[0] for line in lines[4:6]] == models
    base = json.loads((workflow / "bases" / "other" / "model.pt").read_text())["arguments"]
    assert base[base.index("--task") + 1] == "language_modeling" and "--max-source-tokens" not in base
    assert base[:3] == ["bases/other/pretrain/bin", "--arch", "full_gpt2_tiny"]
    assert (workflow / "bases" / "other" / "pretrain" / "bin" / "train.bin").exists()
    run = json.loads((workflow / "runs/toy/other/prefix/1/checkpoint.pt").read_text())["arguments"]
    assert run[run.index("--task") + 1] == "conditional_lm" and run[run.index("--arch") + 1] == "prefix_gpt2_tiny"


def test_a_study_ends_in_tables_plots_and_a_page_and_names_what_failed(workflow):
    study = {"title": "Length", "question": "How long?", "paper": "200.", "x": ["prefix-length"]}
    study["methods"] = ["prefix~prefix-length=2", "prefix~prefix-length=3"]
    (workflow / "configs" / "studies").mkdir()
    (workflow / "configs" / "studies" / "mine.yaml").write_text(yaml.safe_dump(study))
    write_configuration(workflow, seeds=[1], studies=["mine"])
    result = snakemake(workflow, "results/studies/report.html")
    assert result.returncode == 0, result.stdout + result.stderr
    folder = workflow / "results" / "studies"
    assert {path.name for path in (folder / "mine").iterdir()} == {
        f"toy.{kind}" for kind in ("txt", "tsv", "svg", "png")
    }
    table = [line.split() for line in (folder / "mine" / "toy.txt").read_text().splitlines()]
    assert [row[2:4] for row in table if row[:2] == ["toy", "prefix"]] == [["2", "1"], ["3", "1"]]
    assert argument(workflow, "prefix~prefix-length=3/1", "--prefix-length") == "3"
    page = (folder / "report.html").read_text()
    (curve,) = re.findall(r"href='([^']+prefix-length=2/1/curve.svg)'", page)
    assert (folder / curve).read_text().lstrip().startswith("<?xml")

    shutil.rmtree(workflow / "runs" / "toy" / "toy" / "prefix~prefix-length=3")
    result = snakemake(workflow, "results/studies/report.html", "--config", "partial=True")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not finished (1):\n  runs/toy/toy/prefix~prefix-length=3/1\n" in (folder / "mine" / "toy.txt").read_text()
    assert "no record: it failed" in (folder / "report.html").read_text()
    assert not (workflow / "runs" / "toy" / "toy" / "prefix~prefix-length=3").exists()


def test_a_study_may_be_scored_on_the_validation_set_and_never_reads_the_test_set(workflow):
    study = {"title": "Length", "question": "How long?", "methods": ["prefix"], "split": "valid"}
    (workflow / "configs" / "studies").mkdir()
    (workflow / "configs" / "studies" / "mine.yaml").write_text(yaml.safe_dump(study))
    write_configuration(workflow, seeds=[1])
    shutil.rmtree(workflow / "results")
    for path in workflow.glob("runs/toy/toy/*/1/bleu.json"):
        path.unlink()
    result = snakemake(workflow, "results/studies/mine/toy.txt")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "scores: on the validation set" in (workflow / "results" / "studies" / "mine" / "toy.txt").read_text()
    run = workflow / "runs" / "toy" / "toy" / "prefix" / "1"
    assert len((run / "valid" / "hypotheses.txt").read_text().splitlines()) == 3  # of three examples
    assert json.loads((run / "valid" / "bleu.json").read_text())["count"] == 3
    log = workflow / "logs" / "runs" / "toy" / "toy" / "prefix" / "1" / "valid" / "generate.log"
    assert "--gen-subset valid" in log.read_text() and not (run / "bleu.json").exists()
    assert planned(snakemake(workflow, "--dry-run", "results/studies/mine/toy.txt")) == {}


def test_a_method_that_fits_one_of_two_models_is_left_out_for_the_other_with_a_note_and_changed_flags_too(tmp_path):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    values = {"tasks": ["e2e"], "models": ["bart_large", "gpt2_medium"], "methods": ["prefix", "infix"], "seeds": [1]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"overrides": {"train": {"lr": 0.5}}}))
    targets = ["results/e2e/bleu.txt", "results/e2e/costs.txt", "--configfile", "mine.yaml"]
    result = snakemake(tmp_path, "--dry-run", "--printshellcmds", *targets)
    assert planned(result)["train"] == 3
    assert result.stderr.count("notice: infix of bart_large: left out") == 1
    commands = [line for line in (result.stdout + result.stderr).splitlines() if re.search(r"(table|costs)\.py", line)]
    assert len(commands) == 2
    for command in commands:
        assert "'--note=infix of bart_large: left out, the method is for gpt2 only'" in command
        assert "lr 0.5 (preset: 8e-05)" in command


def test_what_is_scored_is_what_is_published(finished):
    log = (finished / "logs" / "runs" / "toy" / "toy" / "prefix" / "1" / "generate.log").read_text()
    assert "--path runs/toy/toy/prefix/1/imported.pt" in log and "{'base_model': 'bases/toy'}" in log
    assert "--distributed-world-size 1" in log  # or several GPUs would get a part of the texts each
    assert (finished / "runs" / "toy" / "toy" / "prefix" / "1" / "prefix.safetensors").exists()
    log = (finished / "logs" / "runs" / "toy" / "toy" / "finetune" / "1" / "generate.log").read_text()
    assert "--path runs/toy/toy/finetune/1/checkpoint.pt" in log and "base_model" not in log


def test_nothing_is_left_in_the_runs_but_what_is_kept(finished):
    names = {path.name for path in (finished / "runs" / "toy" / "toy" / "prefix" / "1").iterdir()}
    assert names == {
        *(
            "checkpoint.pt",
            "curve.svg",
            "curve.tsv",
            "prefix.safetensors",
            "run.json",
            ".generate.txt",
            ".trained",
            "generate.json",
            "generate.txt",
            "hypotheses.txt",
            "bleu.json",
            "rouge.json",
        )
    }


def test_a_second_run_does_nothing(finished):
    assert planned(snakemake(finished, "--dry-run")) == {}


def test_a_changed_flag_replaces_a_trained_run_only_on_demand(workflow):
    target, run = "results/toy/bleu.txt", workflow / "runs" / "toy" / "toy" / "prefix" / "2"
    changed = {"overrides": {"methods": {"prefix": {"train": {"lr": 0.5}}}}}
    write_configuration(workflow, **changed)
    before = digests_below(workflow / "runs")
    for arguments in (["--dry-run"], []):
        result = snakemake(workflow, target, *arguments)
        output = result.stdout + result.stderr  # Snakemake reports the errors of a dry run on stdout
        assert result.returncode != 0 and "Traceback" not in output and "File " not in output
        assert "Error: 2 trained runs would be replaced: runs/toy/toy/prefix/" in output
        assert "--lr 5e-05 -> 0.5" in output and "--config replace=True" in output
    assert digests_below(workflow / "runs") == before
    assert snakemake(workflow, "results/toy/data.txt").returncode == 0  # a target that trains nothing

    expected = dict.fromkeys(OF_A_RUN, 2) | {"score": 2, "check_runs": 1, "table": 1}
    assert planned(snakemake(workflow, target, "--dry-run", "--config", "replace=True")) == expected
    checkpoint = str(run.relative_to(workflow) / "checkpoint.pt")
    result = snakemake(workflow, checkpoint, "--config", "replace=True", STUB_TRAIN="fail")
    assert result.returncode != 0 and "--base-model x: no such folder" in result.stdout + result.stderr
    assert (run / ".trained" / "checkpoint.pt").exists()  # until its successor is whole
    write_configuration(workflow)
    assert snakemake(workflow, target, STUB_TRAIN="fail").returncode == 0  # with the former settings it comes back
    assert argument(workflow, "prefix/2", "--lr") == "5e-05"
    write_configuration(workflow, **changed)
    result = snakemake(workflow, target, "--config", "replace=True")
    assert result.returncode == 0, result.stderr
    assert argument(workflow, "prefix/2", "--lr") == "0.5"
    assert planned(snakemake(workflow, target, "--dry-run")) == {"check_runs": 1, "table": 1}  # once more, without it


def digests_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, without Snakemake's and our own notes."""
    return {
        str(path): sha256_file(path) for path in folder.rglob("*") if path.is_file() and ".sha256" not in path.parts
    }


def edit(script: Path, old: str, new: str) -> None:
    """Change a script, which becomes newer than all that it has made."""
    text = script.read_text()
    assert old in text
    script.write_text(text.replace(old, new))


def test_an_edit_of_code_that_changes_no_bytes_trains_and_decodes_nothing(workflow):
    scripts = workflow / "project" / "workflow" / "scripts"
    before = digests_below(workflow / "runs")
    for script, stages in (
        ("encode.py", {"encode", "binarise", "check_runs", "table", "costs"}),
        ("readers.py", {"prepare", "encode", "binarise", "check_runs", "hypotheses", "score", "table", "costs"}),
    ):
        edit(scripts / script, "from __future__", "# a comment\nfrom __future__")
        plan = planned(snakemake(workflow, "--dry-run"))
        assert set(plan) == stages, plan
        result = snakemake(workflow)
        assert result.returncode == 0, result.stderr
        assert planned(snakemake(workflow, "--dry-run")) == {}
    assert digests_below(workflow / "runs") == before


@pytest.mark.parametrize("script", ["vocabulary.py", pytest.param("noise.py", marks=pytest.mark.slow)])
def test_an_edit_of_code_that_changes_data_is_noticed_before_a_table_is_made(workflow, script):
    """Also one in a module that a script imports, and one that concerns the base only."""
    scripts = workflow / "project" / "workflow" / "scripts"
    before = digests_below(workflow / "runs")
    if script == "vocabulary.py":
        edit(
            scripts.parents[1] / "fairseq_prefix" / "files" / script,
            ".splitlines())).rstrip()",
            ".splitlines())).rstrip().upper()",
        )
    else:
        edit(scripts / script, 'random.Random(f"{self.seed}', 'random.Random(f"{self.seed}0')
    for _ in range(2):
        result = snakemake(workflow)
        assert result.returncode != 0 and "Traceback" not in result.stderr
        assert "trained runs would be replaced: " in result.stderr or "1 trained run would be replaced" in result.stderr
        assert "--config replace=True" in result.stderr
    assert digests_below(workflow / "runs") == before or script == "vocabulary.py"  # scores of other references
    result = snakemake(workflow, "--config", "replace=True")
    assert result.returncode == 0, result.stderr
    result = snakemake(workflow)
    assert result.returncode == 0, result.stderr
    assert planned(snakemake(workflow, "--dry-run")) == {}


def test_a_run_that_was_deleted_is_made_again(workflow):
    shutil.rmtree(workflow / "runs" / "toy" / "toy" / "finetune")
    expected = dict.fromkeys(["train", "generate", "hypotheses", "score"], 2) | {"table": 1}
    assert planned(snakemake(workflow, "--dry-run", "results/toy/bleu.txt")) == expected
    result = snakemake(workflow)
    assert result.returncode == 0, result.stderr
    assert planned(snakemake(workflow, "--dry-run")) == {}


def test_an_edit_beside_a_changed_beam_waits_for_the_data(workflow):
    """The decodings must not read files that are being made again."""
    edit(workflow / "project" / "workflow" / "scripts" / "encode.py", "from __future__", "# a comment\nfrom __future__")
    write_configuration(workflow, overrides={"tasks": {"toy": {"generate": {"beam": 2}}}})
    result = snakemake(workflow, "results/toy/bleu.txt", STUB_TRAIN="fail")  # trainings that have ended are kept
    assert result.returncode == 0, result.stdout + result.stderr
    ends = re.findall(r"done .*?(Binarising|Generating)", result.stdout + result.stderr)
    assert ends[0] == "Binarising" and ends.count("Generating") == 5


def test_a_result_of_a_study_whose_preset_is_broken_stops_no_other_target(tmp_path):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "results" / "studies" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "studies" / "mine" / "demo_table.txt").touch()
    (tmp_path / "configs" / "studies" / "mine.yaml").write_text("title: t\nquestion: q\nmethods: [prefx]\n")
    result = snakemake(tmp_path, "--dry-run", "--configfile", "configs/demo.yaml")
    assert planned(result)["train"] == 4


def test_the_runs_of_a_task_that_is_not_configured_are_checked_too(workflow):
    write_configuration(workflow, tasks=["toy@4-7"])
    result = snakemake(workflow, "results/toy/bleu.txt", "--dry-run", "--printshellcmds", "--forcerun", "check_runs")
    assert "--run bases/toy/pretrain runs/toy/toy/base/0" in result.stdout + result.stderr


def test_data_that_was_deleted_is_made_again_and_nothing_is_trained_or_decoded(workflow):
    shutil.rmtree(workflow / "data")
    (workflow / "results" / "toy" / "bleu.txt").unlink()
    shutil.rmtree(workflow / "runs" / "toy" / "toy" / "finetune" / "1" / ".trained")  # as of an earlier version
    checkpoints = {path: path.read_bytes() for path in workflow.glob("runs/toy/toy/*/*/checkpoint.pt")}
    result = snakemake(workflow, STUB_TRAIN="fail", STUB_GENERATE="drop")  # either would fail
    assert result.returncode == 0, result.stderr
    assert checkpoints == {path: path.read_bytes() for path in checkpoints}


def test_a_changed_beam_trains_nothing(workflow):
    write_configuration(workflow, overrides={"tasks": {"toy": {"generate": {"beam": 2}}}})
    assert planned(snakemake(workflow, "--dry-run")) == {
        **{"import_prefix": 2, "generate": 5, "hypotheses": 5, "score": 10, "table": 3, "costs": 1}
    }


def test_a_curve_is_no_reason_to_train_again(workflow):
    for path in [*workflow.glob("runs/toy/toy/*/*/curve.svg"), *workflow.glob("bases/toy/pretrain/curve.svg")]:
        path.unlink()
    assert planned(snakemake(workflow, "--dry-run")) == {}


def status(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(project(folder) / "workflow" / "scripts" / "status.py"), *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)


def test_the_status_tells_of_the_last_run_and_of_targets(workflow):
    result = status(workflow)
    assert result.returncode == 0 and ": ended" in result.stdout, result.stderr
    counts = json.loads(status(workflow, "--json").stdout)["counts"]
    assert counts["done"] > 40 and not any(counts[state] for state in ("running", "interrupted", "failed", "to do"))
    (workflow / "results" / "toy" / "bleu.txt").unlink()
    targets = ["results/toy/bleu.txt", "--profile", str(REPOSITORY / "profiles" / "default")]
    result = status(workflow, "--json", *targets)
    jobs = json.loads(result.stdout)["jobs"]
    assert [job["rule"] for job in jobs if job["state"] == "to do"] == ["table"]
    assert {job["state"] for job in jobs} == {"to do", "done"}
    result = status(workflow, "results/nothing.txt")
    assert result.returncode == 1 and "snakemake --dry-run failed" in result.stderr and "nothing.txt" in result.stderr


def test_another_seed_adds_its_runs_only(workflow):
    write_configuration(workflow, seeds=[1, 2, 3])
    assert planned(snakemake(workflow, "--dry-run")) == {
        **{"train": 2, "export_prefix": 1, "import_prefix": 1, "check_runs": 1},
        **{"generate": 2, "hypotheses": 2, "score": 4, "table": 3, "costs": 1},
    }


def test_a_subset_goes_through_like_a_task(workflow):
    """Its data is drawn from the task's, which is not prepared again; flags for it come under its own name."""
    overrides = {"tasks": {"toy@4-7": {"train": {"lr": 0.25}}}}
    write_configuration(workflow, tasks=["toy@4-7"], methods=["prefix"], seeds=[1], overrides=overrides)
    target = "results/toy@4-7/bleu.txt"
    plan = planned(snakemake(workflow, "--dry-run", target))
    once = ["draw_subset", "binarise", "check_runs", *OF_A_RUN, "score", "table"]
    assert plan == {"encode": 3} | dict.fromkeys(once, 1)
    result = snakemake(workflow, target)
    assert result.returncode == 0, result.stderr
    lines = (workflow / "data" / "toy@4-7" / "train.jsonl").read_text().splitlines()
    assert len(lines) == 4 and set(lines) < set((workflow / "data" / "toy" / "train.jsonl").read_text().splitlines())
    arguments = json.loads((workflow / "runs/toy@4-7/toy/prefix/1/checkpoint.pt").read_text())["arguments"]
    assert arguments[arguments.index("--lr") + 1] == "0.25"
    result = snakemake(workflow, "data/toy@9-7/train.jsonl")
    assert result.returncode != 0
    assert "toy@9-7: 9 examples are to be drawn from data/toy/train.jsonl, which has only 8" in result.stderr


def test_the_data_report_needs_no_training(workflow):
    for folder in ("runs", "results"):
        shutil.rmtree(workflow / folder)
    (workflow / "bases" / "toy" / "model.pt").unlink()
    assert planned(snakemake(workflow, "--dry-run", "results/toy/data.txt")) == {"describe": 1}
    result = snakemake(workflow, "results/toy/data.txt")
    assert result.returncode == 0, result.stderr
    text = (workflow / "results" / "toy" / "data.txt").read_text()
    assert re.search(r"^examples +8 +3 +4$", text, re.MULTILINE)
    assert "source tokens (toy): mean" in text and "sources cut to 512 tokens (toy)" in text


def test_training_without_a_training_set_is_one_sentence(workflow):
    shutil.rmtree(workflow / "runs")
    inputs = {split: {"file": f"{split}.jsonl"} for split in ("valid", "test")}
    write_configuration(workflow, overrides={"tasks": {"toy": {"inputs": inputs}}})
    result = snakemake(workflow, "runs/toy/toy/prefix/1/checkpoint.pt")
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert "data/toy/train.jsonl: no examples; this task was prepared without a train split" in result.stderr
    assert snakemake(workflow, "results/toy/data.txt").returncode == 0
    assert "absent" in (workflow / "results" / "toy" / "data.txt").read_text()


def test_another_mirror_changes_nothing(workflow):
    write_configuration(workflow, mirror=["elsewhere"])
    assert planned(snakemake(workflow, "--dry-run")) == {}


def test_an_interrupted_workflow_ends_with_the_same_tables(workflow):
    before = tables(workflow)
    shutil.rmtree(workflow / "runs")
    shutil.rmtree(workflow / "results")
    result = snakemake(workflow, STUB_TRAIN="fail")
    assert result.returncode != 0
    assert "error: fairseq_cli.train failed: --base-model x: no such folder" in result.stderr
    seen = status(workflow)
    assert seen.returncode == 1 and re.search(r"^failed +\d+ +train \d+$", seen.stdout, re.MULTILINE)
    assert "fairseq_cli.train failed: --base-model x: no such folder" in seen.stdout
    result = snakemake(workflow)
    assert result.returncode == 0, result.stderr
    assert json.loads((workflow / "runs" / "toy" / "toy" / "prefix" / "1" / "checkpoint.pt").read_text())["resumed"]
    assert tables(workflow) == before
    assert status(workflow).returncode == 0


@pytest.mark.parametrize("target, trained", [("results/xsum/rouge.txt", "xsum"), ("results/e2e/bleu.txt", "e2e")])
def test_the_shipped_configuration_plans_the_papers_runs(tmp_path, target, trained):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    result = snakemake(tmp_path, "--dry-run", "--printshellcmds", target)
    plan = planned(result)
    of_one_run = [*OF_A_RUN, "check_runs", "score", "table", "prepare", "binarise", "unpack_base"]
    assert plan == dict.fromkeys(of_one_run, 1) | {"encode": 3, "fetch": 6 if trained == "xsum" else 7}
    assert "--arch prefix_bart_large" in result.stdout + result.stderr


def test_texts_of_gpt2_begin_with_a_space_in_every_step_and_barts_do_not(tmp_path):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    overlay = tmp_path / "mine.yaml"
    for model, spaced in (("gpt2_medium", True), ("bart_large", False)):
        overlay.write_text(yaml.safe_dump({"tasks": ["e2e"], "models": [model], "methods": ["prefix"], "seeds": [1]}))
        targets = ["results/e2e/bleu.txt", "results/e2e/data.txt"]
        result = snakemake(tmp_path, "--dry-run", "--printshellcmds", *targets, "--configfile", str(overlay))
        output = result.stdout + result.stderr
        steps = [line for line in output.splitlines() if re.search(r"scripts/(encode|hypotheses|describe)\.py", line)]
        assert len(steps) == 5 and all(("leading-space" in line) == spaced for line in steps), output
        assert ("data/e2e/gpt2_spaced/bin" in output) == spaced


@pytest.mark.parametrize(
    "model, rules",
    [
        ("mbart_large", {"unpack_base": 1, "unpack_vocabulary": 1}),
        ("mbart_large_hf", {"place_base_file": 3, "write_base_dictionary": 1}),
    ],
)
def test_a_base_may_bring_its_own_vocabulary(tmp_path, model, rules):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    targets = ["results/e2e/bleu.txt", "--config", f"models={model}"]
    result = snakemake(tmp_path, "--dry-run", "--printshellcmds", *targets)
    plan, output = planned(result), result.stdout + result.stderr
    assert {rule: count for rule, count in plan.items() if "base" in rule or "vocabulary" in rule} == rules
    assert f"--spm bases/{model}/spm.model" in output and f"--dict bases/{model}/dict.txt" in output
    assert "--arch prefix_mbart_large" in output and "gpt2_bpe" not in output


def test_a_hugging_face_base_is_put_in_place_with_the_dictionary(workflow):
    files = {name: {"path": f"mine/{name}"} for name in ("config.json", "model.safetensors")}
    model = {"architecture": "gpt2_small", "vocabulary": "gpt2", "base": {"files": files}}
    (workflow / "configs" / "models" / "other.yaml").write_text(yaml.safe_dump(model))
    for path in ("mine/config.json", "mine/model.safetensors", "resources/gpt2_bpe/dict.txt"):
        (workflow / path).parent.mkdir(parents=True, exist_ok=True)
        (workflow / path).write_text(path)
    placed = {"config.json": "mine/", "model.safetensors": "mine/", "dict.txt": "resources/gpt2_bpe/"}
    result = snakemake(workflow, *(f"bases/other/{name}" for name in placed))
    assert result.returncode == 0, result.stdout + result.stderr
    for name, folder in placed.items():
        assert (workflow / "bases" / "other" / name).read_text() == folder + name


@pytest.mark.parametrize("name, models", [("demo", 1), ("small", 2)])
def test_the_shipped_overlays_plan_three_methods_per_task_and_model(tmp_path, name, models):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    plan = planned(snakemake(tmp_path, "--dry-run", "--configfile", f"configs/{name}.yaml"))
    assert (plan["pretrain"], plan["train"], plan["generate"]) == (models, 2 * 2 * models, 2 * 3 * models)
    assert plan["table"] >= 2  # one for each score that this machine can compute


def test_a_mistake_is_one_sentence_before_anything_runs(workflow):
    write_configuration(workflow, overrides={"train": {"max-updates": 3}})
    result = snakemake(workflow)
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert (
        "configs/config.yaml: overrides: train: fairseq-train has no flag --max-updates; did you mean 'max-update'?"
        in output
    )
    assert "Traceback" not in output


def test_a_missing_file_says_how_to_supply_it(workflow):
    shutil.rmtree(workflow / "resources" / "data" / "toy_text")
    shutil.rmtree(workflow / "mirror" / "toy_text")
    result = snakemake(workflow, "resources/data/toy_text/novel.txt")
    assert result.returncode != 0
    assert "toy_text/novel.txt" in result.stderr and "PREFIX_MIRROR" in result.stderr


def test_a_lock_that_a_killed_snakemake_left_is_taken_away(workflow):
    locks = workflow / ".snakemake" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.output.lock").write_text("results/toy/bleu.txt\n")
    (workflow / "results" / "toy" / "bleu.txt").unlink()
    result = snakemake(workflow)
    assert result.returncode == 0, result.stderr
    assert "notice: taking away the lock of a Snakemake that was killed" in result.stderr


def test_after_make_clean_only_tables_are_made_again(workflow):
    subprocess.run(["make", "-f", REPOSITORY / "Makefile", "clean"], cwd=workflow, check=True)
    assert planned(snakemake(workflow, "--dry-run")) == {"table": 3, "costs": 1}


def share(cache: Path, workflow: Path, folder: Path) -> Path:
    """A folder of another user, with the configuration of a workflow and links to a cache."""
    folder.mkdir()
    for name in ("configs", "mirror"):
        shutil.copytree(workflow / name, folder / name)
    for name in ("bases", "data", "resources"):
        (cache / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache / name)
    return folder


def test_a_filled_cache_is_only_read_by_other_workflows(workflow, tmp_path):
    """Bases and data of one workflow, through links; with a mirror that cannot be written."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("bases", "data", "resources"):
        (workflow / name).rename(cache / name)
    other = share(cache, workflow, tmp_path / "other")
    shutil.rmtree(other / "mirror")
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    result = snakemake(other)
    assert result.returncode == 0, result.stdout + result.stderr
    assert tables(other) == tables(workflow)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_two_workflows_that_fill_one_cache_at_once_end_with_the_same_files(workflow, tmp_path):
    """If one finds a file of its own replaced by the other's it may fail; run again, it ends well."""
    folders = [share(tmp_path / "cache", workflow, tmp_path / name) for name in ("one", "two")]
    processes = [start_snakemake(folder, "--retries", "2") for folder in folders]
    for process in processes:
        process.communicate()
    for folder in folders:
        result = snakemake(folder)
        assert result.returncode == 0, result.stdout + result.stderr
        assert tables(folder) == tables(workflow)
    for name in ("data/toy/train.jsonl", "bases/toy/spm.model", "data/toy/toy/bin/train.source-target.source.bin"):
        assert (tmp_path / "cache" / name).read_bytes() == (workflow / name).read_bytes()
    assert not list((tmp_path / "cache").rglob("*.part")) and not list((tmp_path / "cache").rglob("work-*"))


def test_slurm_jobs_that_a_killed_snakemake_left_are_cancelled_and_no_others(stand_in, tmp_path):
    """Those sent from this very folder; the Snakemake inside of one of them is no living workflow."""
    jobs = f"7|{tmp_path}|rule_train_wildcards_x\n8|/elsewhere|rule_train_wildcards_x\n9|{tmp_path}|mine\n"
    programs = {"squeue": f"test -e cancelled || printf '{jobs}'", "scancel": 'echo "$@" > cancelled'}
    for name, script in programs.items():
        stand_in(name, script)
    program = tmp_path / "snakemake"
    program.write_text("import sys; print(flush=True); sys.stdin.read()")
    of_a_job = subprocess.Popen(
        [sys.executable, str(program), "--mode", "remote"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    of_a_job.stdout.readline()
    result = unlock(tmp_path)
    of_a_job.communicate("")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "cancelled").read_text() == "7\n"
    assert "cancelling Slurm jobs of a Snakemake that was killed: 7" in result.stderr


@pytest.mark.parametrize("sent", [True, False])
def test_a_lock_stays_while_slurm_does_not_answer_of_the_jobs_sent_from_here(stand_in, tmp_path, sent):
    """Slurm's commands are there on machines of no cluster, too, and fail."""
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    if sent:
        (tmp_path / ".snakemake" / "slurm_logs").mkdir()
    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.write_text("x\n")
    stand_in("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1")
    result = unlock(tmp_path)
    assert (result.returncode == 1) == lock.exists() == sent, result.stderr
    assert ("squeue failed (slurm_load_jobs error: Unable to contact" in result.stderr) == sent


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_in_a_batch_job_the_training_learns_of_a_signal_to_snakemake_alone(workflow, tmp_path, number):
    shutil.rmtree(workflow / "runs")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    target = "runs/toy/toy/prefix/1/checkpoint.pt"
    in_a_job = ["--mode", "remote", "--nolock", "--allowed-rules", "train", "--", target]
    process = start_snakemake(workflow, *in_a_job, STUB_TRAIN="hang", STUB_PIPE=str(pipe))
    training = psutil.Process(int(pipe.read_text()))  # it waits for a signal now
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and not training.is_running()
    assert "SIGTERM: interrupted" in errors and not (workflow / target).exists()


def test_the_lock_of_a_living_snakemake_stays(tmp_path):
    locks = tmp_path / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("x\n")
    program = tmp_path / "snakemake"
    program.write_text("import sys; print(flush=True); sys.stdin.read()")
    living = subprocess.Popen(
        [sys.executable, str(program)], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    living.stdout.readline()
    result = unlock(tmp_path)
    living.communicate("")
    assert result.returncode == 1
    assert f"process {living.pid}" in result.stderr and "wait for it to end" in result.stderr
    assert list(locks.iterdir())
