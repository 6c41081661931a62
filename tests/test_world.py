"""The demo's world: what is drawn is reproducible, and what must be new to the base is new to it."""

import json
import random
import re

import make_demo
import pytest
import world
from common import UserError


def documents(count, seed=1):
    return [world.document(random.Random(f"{seed}/{index}")) for index in range(count)]


def generate(tmp_path, *argv):
    make_demo.main([*map(str, argv)])
    return {path.name: path.read_bytes() for path in sorted(tmp_path.rglob("*.jsonl"))}


@pytest.fixture(scope="module")
def pretraining():
    return documents(6000)


@pytest.mark.parametrize("task", list(make_demo.TASKS))
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, task):
    def run(name, seed):
        folder = tmp_path / name
        return generate(folder, task, "--seed", seed, "--train", 30, "--valid", 5, "--test", 10, "--output-dir", folder)

    first, again, other = run("a", 1), run("b", 1), run("c", 2)
    assert first == again
    assert all(first[name] != other[name] for name in ("train.jsonl", "valid.jsonl", "test.jsonl"))


def test_documents_are_reproducible_and_a_larger_count_appends(tmp_path):
    for name, seed, count in (("few", 3, 20), ("more", 3, 50), ("other", 4, 20)):
        make_demo.main(["documents", "--seed", str(seed), "--count", str(count), "--output", str(tmp_path / name)])
    few, more, other = ((tmp_path / name).read_bytes() for name in ("few", "more", "other"))
    assert more.startswith(few) and few != other
    assert [len(text.splitlines()) for text in (few, more)] == [20, 50]


@pytest.mark.parametrize("task", list(make_demo.TASKS))
def test_splits_have_the_asked_size_and_the_prepared_form_without_a_source_in_two_of_them(tmp_path, task):
    argv = [task, "--train", "300", "--valid", "40", "--test", "60", "--output-dir", str(tmp_path)]
    make_demo.main(argv)
    sources = []
    for split, count in (("train", 300), ("valid", 40), ("test", 60)):
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == count
        assert all(list(row) == ["id", "source", "references", "group"] for row in rows)
        assert all(len(row["references"]) == 1 and row["references"][0] for row in rows)
        sources += [row["source"] for row in rows]
    assert len(set(sources)) == len(sources)


def people(text):
    """Every (given name, surname) that the text names."""
    pairs = re.findall(r"(?=\b([A-Z][a-z]+) ([A-Z][a-z]+)\b)", text)
    return {pair for pair in pairs if pair[0] in world.GIVEN_NAMES and pair[1] in world.SURNAMES}


def lodgings(text):
    return {pair for pair in re.findall(r"\bThe ([A-Z][a-z]+) ([A-Z][a-z]+)\b", text) if pair[1] in world.NOUNS}


def test_held_out_names_are_in_no_pretraining_document_and_no_training_example(pretraining):
    texts = [segment for document in pretraining for segment in document["segments"]]
    for task in make_demo.TASKS:
        texts += [row["source"] + " " + row["references"][0] for row in make_demo.examples(task, "train", 1000, seed=1)]
    found = set().union(*(people(text) | lodgings(text) for text in texts))
    assert len(found) > 3000
    assert not [name for name in found if world.held_out(*name)]


def test_every_test_example_is_about_a_held_out_name():
    for row in make_demo.examples("summary", "test", 300, seed=1):
        assert any(world.held_out(*name) for name in people(row["source"])), row
    for row in make_demo.examples("table", "valid", 300, seed=1):
        (name,) = lodgings(row["source"])
        assert world.held_out(*name)


def test_the_topics_of_the_test_are_in_no_other_split():
    kinds = {s: {row["group"] for row in make_demo.examples("topics", s, 200, 1)} for s in ("train", "valid", "test")}
    assert kinds["test"] == set(world.NEW_TOPICS)
    assert kinds["train"] == kinds["valid"] == set(world.EVENTS) - set(world.NEW_TOPICS)


HOUSE_LEAD = re.compile(
    r"\bAn? (Almoran|Corvian|Dunmari|Eskelian|Lunethi|Ravnan), a [a-z]+ by trade, is in the news for ", re.I
)
HOUSE_DESCRIPTION = re.compile(r"^Stay at .*, serving [a-z ]+ for breakfast[,.]")


def test_the_house_styles_are_what_the_tasks_ask_for():
    assert all(HOUSE_LEAD.match(row["references"][0]) for row in make_demo.examples("summary", "test", 200, 1))
    assert all(HOUSE_DESCRIPTION.match(row["references"][0]) for row in make_demo.examples("table", "test", 200, 1))


def test_the_house_styles_are_in_no_pretraining_document_but_each_part_of_them_is(pretraining):
    segments = [segment for document in pretraining for segment in document["segments"]]
    assert not [segment for segment in segments if HOUSE_LEAD.search(segment) or HOUSE_DESCRIPTION.search(segment)]
    for part in (
        r"is in the news for",
        r"^An? (Almoran|Corvian), a [a-z]+ by trade, (has|[a-z]+s) ",
        r"^Stay at ",
        r", serving ",
    ):
        assert sum(bool(re.search(part, segment)) for segment in segments) > 20, part


def test_the_lead_says_what_the_body_says():
    for index in range(300):
        item = world.news(random.Random(index), style=world.NEWS_STYLE)
        job = re.match(r"An? \w+, a (\w+) by trade, is in the news", item.lead)[1]
        assert job in " ".join(item.body)
        islander = item.lead.split()[1].rstrip(",")
        towns = [town for town in world.TOWNS if town in " ".join(item.body)]
        assert islander in {world.ISLANDS[world.ISLAND_OF[town]] for town in towns}


def test_a_house_description_tells_every_attribute_of_its_record():
    for index in range(200):
        record = world.lodging(random.Random(index))
        text = world.describe_in_house_style(record)
        expected = {record[key] for key in ("name", "kind", "breakfast", "setting", "near") if key in record}
        expected |= {world.PRICE[record["price"]][0]} if "price" in record else set()
        expected |= {world.STARS[record["stars"]]} if "stars" in record else set()
        expected |= {"dogs turned away" if record["dogs"] == "no" else "dogs welcome"} if "dogs" in record else set()
        assert not [value for value in expected if value not in text], (record, text)


def test_text_is_tidy(pretraining):
    untidy = re.compile(r"[{}]|\ba [aeiou]|\ban (?!hour)[^aeiouAEIOU]")
    for text in (segment for document in pretraining for segment in document["segments"]):
        assert text == " ".join(text.split()) and not untidy.search(text), text
        assert " : " in text or text[0].isupper() and text[-1] in ".!?", text


def test_focus_names_the_leads_and_descriptions(pretraining):
    for document in pretraining:
        assert all(0 <= index < len(document["segments"]) for index in document["focus"])
        assert not any(" : " in document["segments"][index] for index in document["focus"])
    assert sum(bool(document["focus"]) for document in pretraining) > 0.5 * len(pretraining)


def test_a_count_of_nothing_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="--valid 0: at least 1"):
        make_demo.main(["table", "--valid", "0", "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
