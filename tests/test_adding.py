"""docs/adding.md, followed to the letter: its files are written, its commands run."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, SCRIPTS
from test_workflow import planned, snakemake

TEXT = (REPOSITORY / "docs" / "adding.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^snakemake (.*)$", TEXT, re.MULTILINE)


@pytest.fixture
def newcomer(tmp_path):
    """A folder as the page leaves it before its commands."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    assert list(FILES) == ["mine/train.jsonl", "mine/valid.jsonl", "mine/test.jsonl", "configs/tasks/tides.yaml"]
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_report_of_the_page_is_made(newcomer, shared_data):
    mirror = shared_data("gpt2_bpe").parent
    config = (newcomer / "configs" / "config.yaml").read_text()
    (newcomer / "configs" / "config.yaml").write_text(config.replace("mirror: []", f"mirror: [{mirror}]"))
    result = snakemake(newcomer, *shlex.split(COMMANDS[0]))
    assert result.returncode == 0, result.stderr
    text = (newcomer / "results" / "tides" / "data.txt").read_text()
    assert re.search(r"^examples +3 +1 +1$", text, re.MULTILINE) and re.search(
        r"^references +3 +1 +2$", text, re.MULTILINE
    )


def test_the_run_of_the_page_is_planned(newcomer):
    assert "-n" in shlex.split(COMMANDS[1])
    plan = planned(snakemake(newcomer, *shlex.split(COMMANDS[1])))
    assert (plan["prepare"], plan["train"], plan["table"]) == (1, 1, 1)
    plan = planned(snakemake(newcomer, "-n", "results/tides@2-1/bleu.txt"))
    assert (plan["prepare"], plan["draw_subset"], plan["train"]) == (1, 1, 1)


def test_the_reader_of_the_page_works(tmp_path):
    """Written into readers.py and listed there, it reads tab-separated files and names a bad line."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    scripts = tmp_path / "workflow" / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fairseq_prefix").symlink_to(REPOSITORY / "fairseq_prefix")
    readers = scripts / "readers.py"
    readers.write_text(f'{readers.read_text()}\n\n{code}\n\nREADERS["tsv"] = read_tsv\n')

    def prepare(text):
        (tmp_path / "test.tsv").write_text(text)
        command = [sys.executable, "workflow/scripts/prepare.py", "--reader", "tsv", "--input", "test=test.tsv"]
        return subprocess.run([*command, "--output-dir", "out"], cwd=tmp_path, capture_output=True, text=True)

    assert prepare("a\tb\nc\td\n").returncode == 0
    lines = (tmp_path / "out" / "test.jsonl").read_text().splitlines()
    assert [json.loads(line)["references"] for line in lines] == [["b"], ["d"]]
    assert "error: test.tsv, line 2: no tab between source and target" in prepare("a\tb\nc d\n").stderr
