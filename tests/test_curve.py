"""The plot of a training's curve, and a curve.tsv that is none; test_train_script.py has how it is made."""

import re

import curve
import pytest
from common import UserError

HEAD = "\t".join(curve.COLUMNS) + "\n"
ROWS = "1\t1\t4.5\t\t0.1\t2.0\t3.3\n2\t1\tinf\t\t0.2\t\t\n3\t1\t3.5\t4.0\tnan\t\t\n"


@pytest.fixture
def draw(tmp_path):
    """A function from the bytes of a curve.tsv to its plot."""

    def plot(table: bytes) -> str:
        (tmp_path / "curve.tsv").write_bytes(table)
        arguments = ["--input", str(tmp_path / "curve.tsv"), "--title", "prefix & co", "--output"]
        curve.main([*arguments, str(tmp_path / "curve.svg")])
        return (tmp_path / "curve.svg").read_text()

    return plot


def test_the_plot_is_the_same_for_the_same_rows_and_differs_for_others(draw):
    plot = draw((HEAD + ROWS).encode())
    assert plot == draw((HEAD + ROWS).encode()) and "<svg" in plot and "prefix &amp; co" in plot
    without_validation = draw((HEAD + ROWS.replace("4.0", "")).encode())
    assert plot != without_validation != draw(HEAD.encode())


@pytest.mark.parametrize(
    "table, message",
    [
        (b"", "not a curve.tsv"),
        (HEAD.replace("loss", "perplexity").encode(), "not a curve.tsv"),
        ((HEAD + ROWS + "4\t1\tlow\t\t\t\t\n").encode(), "line 5: expected 7 columns"),
        ((HEAD + "1\t1\t4.5\n").encode(), "line 2: expected 7 columns"),
        ((HEAD + "\t1\t4.5\t\t\t\t\n").encode(), "line 2: expected 7 columns"),
        (HEAD.encode() + b"1\t1\t\xff\t\t\t\t\n", "line 2: not UTF-8"),
    ],
)
def test_a_table_that_is_none_is_refused(draw, tmp_path, table, message):
    with pytest.raises(UserError, match=re.escape(message)):
        draw(table)
    assert not (tmp_path / "curve.svg").exists()


def test_a_table_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        curve.main(["--input", str(tmp_path / "none.tsv"), "--title", "t", "--output", str(tmp_path / "curve.svg")])
