"""docs/adding.md, followed to the letter: its files are written, its commands run."""

import importlib.util
import re
import shlex
import shutil

import pytest
from conftest import REPOSITORY
from test_prepare import rows, run
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


def test_the_reader_of_the_page_works(tmp_path, monkeypatch):
    """Written into readers.py where the page says, it reads tab-separated files and names a bad line."""
    code = next(block for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    import prepare
    import readers

    source = (REPOSITORY / "workflow" / "scripts" / "readers.py").read_text() + code
    (tmp_path / "own_readers.py").write_text(source + 'READERS["tsv"] = read_tsv\n')
    spec = importlib.util.spec_from_file_location("own_readers", tmp_path / "own_readers.py")
    own = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "own_readers", own)
    spec.loader.exec_module(own)
    monkeypatch.setitem(readers.READERS, "tsv", lambda inputs, options: _as_examples(own, readers, inputs, options))
    (tmp_path / "test.tsv").write_text("a\tb\nc\td\n")
    run("tsv", {"test": tmp_path / "test.tsv"}, tmp_path / "out")
    assert [row["references"] for row in rows(tmp_path / "out" / "test.jsonl")] == [["b"], ["d"]]
    (tmp_path / "test.tsv").write_text("a\tb\nc d\n")
    with pytest.raises(prepare.UserError, match="test.tsv, line 2: no tab between source and target"):
        run("tsv", {"test": tmp_path / "test.tsv"}, tmp_path / "bad")


def _as_examples(own, readers, inputs, options):
    splits = own.READERS["tsv"](inputs, options)
    return {split: (readers.Example(*item) for item in items) for split, items in splits.items()}
