"""Low-data subsets: how many, which, and the same ones everywhere."""

import json

import make_demo
import pytest
from common import UserError
from config import load_yaml
from conftest import REPOSITORY, example
from readers import READERS, Deferred
from subset import draw, main


@pytest.fixture
def whole(tmp_path, write_jsonl):
    """A prepared task: 40 training examples of one reference, 10 validation examples of three, 5 test examples."""
    rows = {"train": [example(n, f"source {n}", f"target {n}") for n in range(40)]}
    rows["valid"] = [example(n, f"source {n}", *(f"target {n} {k}" for k in range(3)), group="g") for n in range(10)]
    rows["test"] = [example(n, f"source {n}", "a", "b") for n in range(5)]
    counts = {}
    for split, values in rows.items():
        write_jsonl(f"whole/{split}.jsonl", values)
        counts[split] = {"examples": len(values), "references": sum(len(row["references"]) for row in values)}
    (tmp_path / "whole" / "data.json").write_text(json.dumps({"counts": counts, "absent": []}))
    return tmp_path / "whole"


def ids(folder, split):
    return [json.loads(line)["id"] for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_sizes_order_and_record(whole, tmp_path):
    report = draw(whole, "toy", 20, 1, tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "data.json").read_text())
    assert report["counts"]["train"] == {"examples": 20, "references": 20}
    assert report["counts"]["valid"]["references"] == 6
    assert (report["subset_of"], report["size"], report["seed"]) == ("toy", 20, 1)
    train = ids(tmp_path / "out", "train")
    assert train == sorted(set(train), key=int) and len(train) == 20
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == (whole / "test.jsonl").read_bytes()
    for line in (tmp_path / "out" / "valid.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["source"] == f"source {row['id']}" and row["group"] == "g"
        assert all(text.startswith(f"target {row['id']} ") for text in row["references"])


def test_the_drawn_examples_are_the_same_on_every_machine(whole, tmp_path):
    """These follow from SHA-256 alone; other ids here would mean other results for a published subset."""
    draw(whole, "toy", 5, 1, tmp_path / "one")
    draw(whole, "toy", 5, 2, tmp_path / "two")
    assert ids(tmp_path / "one", "train") == ["3", "25", "31", "33", "39"]
    assert ids(tmp_path / "two", "train") == ["14", "16", "17", "22", "38"]
    draw(whole, "other name", 5, 1, tmp_path / "again")
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == (tmp_path / "one" / "train.jsonl").read_bytes()


def test_the_order_of_the_set_does_not_choose(whole, tmp_path):
    draw(whole, "toy", 5, 1, tmp_path / "one")
    lines = (whole / "train.jsonl").read_text().splitlines(keepends=True)
    (whole / "train.jsonl").write_text("".join(lines[::-1]))
    draw(whole, "toy", 5, 1, tmp_path / "two")
    assert ids(tmp_path / "one", "train") == ids(tmp_path / "two", "train")[::-1]


def test_a_smaller_subset_lies_in_the_larger(whole, tmp_path):
    for size in (5, 10, 40):
        draw(whole, "toy", size, 7, tmp_path / str(size))
    small, middle, all_of_them = (set(ids(tmp_path / str(size), "train")) for size in (5, 10, 40))
    assert small < middle < all_of_them and len(all_of_them) == 40


def test_a_very_small_subset_has_one_pair_to_validate_with(whole, tmp_path):
    assert draw(whole, "toy", 1, 0, tmp_path / "out")["counts"]["valid"] == {"examples": 1, "references": 1}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("41", "toy@41-1: 41 examples are to be drawn from .*train.jsonl, which has only 40"),
        ("200", "toy@200-1: 200 examples are to be drawn from .*train.jsonl, which has only 40"),
    ],
)
def test_more_than_there_are_is_one_sentence_and_leaves_nothing(whole, tmp_path, size, message):
    argv = [
        "--input-dir",
        str(whole),
        "--task",
        "toy",
        "--size",
        size,
        "--seed",
        "1",
        "--output-dir",
        str(tmp_path / "o"),
    ]
    with pytest.raises(UserError, match=message):
        main(argv)
    assert not list((tmp_path / "o").iterdir())


def test_where_there_are_fewer_to_validate_with_all_are_taken_and_a_notice_says_so(whole, tmp_path, capsys):
    draw(whole, "toy", 40, 1, tmp_path / "enough")
    assert "notice" not in capsys.readouterr().err
    report = json.loads((whole / "data.json").read_text())
    text = "".join((whole / "valid.jsonl").read_text().splitlines(keepends=True)[:3])
    (whole / "valid.jsonl").write_text(text)
    report["counts"]["valid"] = {"examples": 3, "references": 9}
    (whole / "data.json").write_text(json.dumps(report))
    report = draw(whole, "toy", 40, 1, tmp_path / "out")
    assert (tmp_path / "out" / "valid.jsonl").read_text() == text
    assert (report["drawn"], report["counts"]["valid"]["references"]) == ({"train": 40, "valid": 9}, 9)
    assert "notice: toy@40-1 is validated on all 9 pairs of toy, not 12" in capsys.readouterr().err


def test_without_any_to_validate_with_there_is_no_subset(whole, tmp_path):
    report = json.loads((whole / "data.json").read_text())
    report["counts"]["valid"] = {"examples": 0, "references": 0}
    (whole / "data.json").write_text(json.dumps(report))
    (whole / "valid.jsonl").write_text("")
    with pytest.raises(UserError, match="toy@10-1: 1 examples are to be drawn from .*valid.jsonl, which has only 0"):
        draw(whole, "toy", 10, 1, tmp_path / "o")


@pytest.mark.parametrize("task", ["e2e", "aeslc", "dialogsum", "scitldr"])
def test_presets_say_how_many_pairs_the_real_data_has(shared_data, task):
    values = load_yaml(REPOSITORY / "configs" / "tasks" / f"{task}.yaml")
    packed = task in ("aeslc", "dialogsum")
    for split, count in values["pairs"].items():
        path = shared_data(f"{task}/{values['inputs'][split]['file']}{'.gz' if packed else ''}")
        examples = READERS[values["reader"]]({split: path}, values["options"])[split]
        made = (item.function(*item.arguments) if isinstance(item, Deferred) else item for item in examples)
        assert sum(len(example.references) for example in made) == count


@pytest.mark.parametrize("kind", ["summary", "table", "topics"])
def test_presets_say_how_many_pairs_the_made_up_tasks_have(kind):
    made = make_demo.build_parser().parse_args([kind, "--output-dir", "x"])
    values = load_yaml(REPOSITORY / "configs" / "tasks" / f"demo_{kind}.yaml")
    assert values["pairs"] == {"train": made.train, "valid": made.valid}
