"""What a person reads who has mistyped a target, a configuration file or a name in it, before anything is planned."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY
from snakemake.settings.types import DAGSettings
from targets import check_targets
from test_config import configuration


def snakemake(folder, *arguments: str) -> str:
    """The last line of a dry run that fails."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--dry-run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.yaml").write_text(
        "tasks: [xsum]\nmodels: [bart_large]\nmethods: [prefix]\nseeds: [1]\n"
    )
    return tmp_path


def test_a_target_is_checked_before_it_is_planned_whatever_modules_the_working_folder_holds(folder):
    for name in ("config", "metrics", "common", "state", "plugin", "flags"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the working folder')")
    line = snakemake(folder, "results/xsum/rogue.txt")
    assert line == "error: results/xsum/rogue.txt: no rule makes this file; did you mean 'results/xsum/rouge.txt'?"


class Rule:
    """As much of a rule of Snakemake's as the check of targets asks for."""

    def __init__(self, name: str, pattern: str, file: str):
        self.name, self._pattern, self._file = name, re.compile(pattern), file

    def is_producer(self, file: str) -> bool:
        return self._pattern.fullmatch(file) is not None

    def get_wildcards(self, file: str) -> dict[str, str]:
        return self._pattern.fullmatch(file).groupdict()

    def products(self) -> list[str]:
        return [self._file]


TABLE = r"results/(?P<task>xsum|e2e)(?:@\d+-\d+)?/(?P<table>rouge|bleu|scores)\.txt"
RUN = r"runs/(?P<task>xsum|e2e|mine)/(?P<model>bart_large|demo_gpt2)/(?P<method>(?:pre|in)fix[^/]*)/\d+/checkpoint\.pt"


class Workflow:
    is_main_process = True
    rules = (
        Rule("table", TABLE, "{table}.txt"),
        Rule("train", RUN, "runs/checkpoint.pt"),
        Rule("report", "results/studies/report.html", "results/studies/report.html"),
    )


@pytest.mark.parametrize(
    "target, sentence",
    [
        ("results/xsmu/rouge.txt", "no rule makes this file; did you mean 'results/xsum/rouge.txt'?"),
        ("results/xsmu@50-1/rogue.txt", "no rule makes this file; did you mean 'results/xsum@50-1/rouge.txt'?"),
        ("runs/xsum/bart_lrge/prefx~lr=1/1/chekpoint.pt", "'runs/xsum/bart_large/prefix~lr=1/1/checkpoint.pt'?"),
        ("results/xsum", "no rule makes this file; name a file, such as results/xsum/scores.txt"),
        ("rport", "no rule makes this file; did you mean 'report'?"),
        ("nothing.txt", "no rule makes this file; tables are called like results/xsum/rouge.txt"),
        ("runs/xsum/bart_large/prefix~lrr=1/1/checkpoint.pt", "prefix~lrr=1: fairseq-train has no flag --lrr"),
        ("runs/xsum/bart_large/infix/1/checkpoint.pt", "infix is not for bart_large"),
        ("runs/mine/bart_large/prefix/1/checkpoint.pt", "configs/tasks/mine.yaml: the key 'metrics' is missing"),
    ],
)
def test_a_target_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch, target, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text("reader: e2e\n")
    workflow = Workflow()
    check_targets(workflow, configuration(tmp_path))
    with pytest.raises(SystemExit) as ended:
        workflow.dag_settings = DAGSettings(targets={target})
    assert ended.value.code.startswith(f"error: {target}: ") and sentence in ended.value.code


def test_a_target_that_can_be_made_or_is_there_passes_and_so_does_all_with_another_snakemake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("")
    workflow = Workflow()
    check_targets(workflow, configuration())
    workflow.dag_settings = DAGSettings(targets={"results/e2e@50-1/bleu.txt", "report", "own.txt"}, forcerun={"train"})
    workflow.dag_settings = object()
    other = SimpleNamespace(is_main_process=True)
    check_targets(other, configuration())
    other.dag_settings = DAGSettings(targets={"rport"})


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            "tasks: [xsum]\n\tmodels: [bart_large]\n",
            "error: configs/config.yaml, line 2: not valid YAML (found char",
        ),
        ("tasks: [xsum]\ntasks: [e2e]\n", "error: configs/config.yaml, line 2: not valid YAML (the key 'tasks' stands"),
        ("- xsum\n", "error: configs/config.yaml: expected keys, such as tasks: [xsum]"),
    ],
)
def test_a_mistake_in_the_configuration_file_names_file_and_line(folder, text, sentence):
    (folder / "configs" / "config.yaml").write_text(text)
    assert snakemake(folder).startswith(sentence)
