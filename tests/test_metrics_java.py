"""METEOR, the tokeniser and what builds on them: with Java where it is, and how they fail, with a stand-in for it."""

import stat
import sys

import java_tools
import pytest
from common import UserError
from metrics import Segments, statistics


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """A function (script) that puts a shell script called java first on the PATH, and an empty package beside it."""
    package = tmp_path / "site" / "pycocoevalcap"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    java_tools.ptb_tokens.cache_clear()

    def write(script: str) -> None:
        java = tmp_path / "bin" / "java"
        java.parent.mkdir(exist_ok=True)
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(java.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{java.parent}:/usr/bin:/bin")

    return write


def test_a_failing_program_is_one_sentence(fake_java):
    fake_java("echo 'Error: Could not reserve memory' >&2; echo second line >&2; exit 1")
    with pytest.raises(UserError) as error:
        java_tools.meteor_statistics(["a"], [["a"]])
    assert str(error.value) == "meteor-1.5 failed with status 1 (Error: Could not reserve memory)"
    with pytest.raises(UserError, match="stanford-corenlp-3.4.1 failed with status 1"):
        java_tools.ptb_tokens(("a",))


@pytest.mark.parametrize("script", ["exit 0", "cat >/dev/null; echo one; echo two", "kill -9 $$"])
def test_a_dead_or_babbling_program_is_one_sentence(fake_java, script):
    fake_java(script)
    with pytest.raises(UserError, match="gave . lines|failed with status"):
        java_tools.meteor_statistics(["a"], [["a"]])
    with pytest.raises(UserError, match="gave . lines|failed with status"):
        java_tools.ptb_tokens(("a", "b", "c"))


def test_the_memory_and_the_encoding_are_given(fake_java, tmp_path):
    fake_java(f'echo "$@" > {tmp_path}/arguments; cat')
    assert java_tools.ptb_tokens(("Café .", "b\u2028c"), "77M") == ("Café", "b c")
    arguments = (tmp_path / "arguments").read_text()
    assert "-Xmx77M" in arguments and "-Dfile.encoding=UTF-8" in arguments and "-preserveLines -lowerCase" in arguments


def test_meteor_gets_every_line_and_leaves_no_file(fake_java, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    numbers = " ".join(["1.0"] * 23)
    fake_java(f'while [ "$1" != -jar ]; do shift; done; cp "$3" "$4" {tmp_path}; echo {numbers}; echo {numbers}')
    assert java_tools.meteor_statistics(["a\tb", ""], [["c"], ["d", "e"]]) == [[1.0] * 23] * 2
    assert (tmp_path / "hypotheses").read_text() == "a b\n\n"
    assert (tmp_path / "references").read_text() == "c\n\nd\ne\n"  # padded to two each
    assert not list(folder.iterdir())


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "make setup-scores" in java_tools.unavailable()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Java" in java_tools.unavailable()


def test_meteor_of_statistics_by_hand(monkeypatch):
    # 4 words against 5, of which 1 and 2 are function words; 2 content words and 1 function word match, in 2 chunks
    row = [4, 5, 1, 2, 2, 2, 1, 1, *[0] * 12, 2, 3, 3]
    whole = [2, 2, 0, 0, 2, 2, 0, 0, *[0] * 12, 1, 2, 2]
    monkeypatch.setattr(java_tools, "unavailable", lambda: None)
    monkeypatch.setattr(java_tools, "meteor_statistics", lambda *_: [row, whole])
    result = statistics("meteor", Segments(["x", "y"], [["x"], ["y"]]), {})
    precision, recall = (0.75 * 2 + 0.25) / (0.75 * 3 + 0.25), (0.75 * 2 + 0.25) / (0.75 * 3 + 0.25 * 2)
    mean = 1 / (0.15 / precision + 0.85 / recall)
    assert result.subset([0]).scores() == pytest.approx([100 * mean * (1 - 0.6 * (2 / 3) ** 0.2)])
    assert result.subset([1]).scores() == pytest.approx([100])  # everything in one chunk is no fragmentation
    # Together: two chunks, for the one of the whole match does not count
    precision, recall = (0.75 * 4 + 0.25) / (0.75 * 5 + 0.25), (0.75 * 4 + 0.25) / (0.75 * 5 + 0.25 * 2)
    mean = 1 / (0.15 / precision + 0.85 / recall)
    assert result.scores() == pytest.approx([100 * mean * (1 - 0.6 * (2 / 5) ** 0.2)])


# With Java ------------------------------------------------------------------------------------------------------------

with_java = pytest.mark.skipif(
    bool(java_tools.unavailable()), reason=f"METEOR and the tokeniser: it {java_tools.unavailable()}"
)


@with_java
def test_tokens():
    texts = ("The Vaults - a pub, isn't it?", "", "Café (5 out of 5) costs £20-25.")
    assert java_tools.ptb_tokens(texts) == (
        "the vaults a pub is n't it",
        "",
        "café -lrb- 5 out of 5 -rrb- costs # 20-25",
    )


@with_java
def test_cider_and_rouge_of_captions():
    hypotheses = ["A cat sat on the mat.", "Dogs run!", "nothing alike"]
    references = [["a cat sat on the mat"], ["Dogs run", "cats sleep"], ["one two three"]]
    cider = statistics("cider", Segments(hypotheses, references), {"protocol": "e2e"})
    # All four orders of n-grams equal in the first: 10. Two words make two orders of four, for one of two references.
    assert list(cider.rows[:, 0]) == pytest.approx([10, 2.5, 0])
    nothing = statistics("cider", Segments(["🙂", ":"], [["🙂"], [":"]]), {})  # the tokeniser leaves no word of these
    assert nothing.scores() == [0]
    rouge = statistics("rouge", Segments(hypotheses, references), {"protocol": "e2e"})
    assert list(rouge.rows[:, 0]) == pytest.approx([1, 1, 0])


@with_java
@pytest.mark.slow
def test_meteor():
    hypotheses, references = ["the cats sat", "", "x"], [["the cat sat", "y"], ["z"], ["x"]]
    result = statistics("meteor", Segments(hypotheses, references), {})
    assert len(result.rows) == 3 and result.subset([2]).scores() == pytest.approx([100])
    assert result.subset([1]).scores() == [0]
    assert 0 < result.subset([0]).scores()[0] < 100  # "cats" matches by its stem only
