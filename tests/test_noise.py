"""Denoising pairs: targets are the documents, sources the same with masks, whatever the number of workers."""

import json
import random
from collections import Counter

import noise
import pytest
import sentencepiece
from common import UserError
from conftest import write_world

SIDES = ["train.source", "train.target", "valid.source", "valid.target"]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """(documents.jsonl, spm.model) of a small part of the world"""
    folder = write_world(tmp_path_factory.mktemp("material"), 600)
    return folder / "documents.jsonl", folder / "spm.model"


def make(material, folder, *options):
    documents, model = material
    noise.main(["--documents", str(documents), "--spm", str(model), "--output-dir", str(folder), *map(str, options)])
    return {name: (folder / name).read_text(encoding="utf-8").splitlines() for name in SIDES}


def matches(source, target):
    """Whether filling each mask with any tokens can give the target."""
    spans = source.split("<mask>")
    position = 0
    if not target.startswith(spans[0].rstrip()):
        return False
    for span in (words for span in spans if (words := span.split())):
        needle = " " + " ".join(span) + " "
        found = (" " + target + " ").find(needle, position)
        if found < 0:
            return False
        position = found + len(needle) - 1
    return True


def test_targets_are_the_documents_in_order_and_none_is_lost(material, tmp_path):
    pairs = make(material, tmp_path, "--valid", 50)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(material[1]))
    texts = [" ".join(json.loads(line)["segments"]) for line in material[0].read_text().splitlines()]
    valid = [processor.decode_pieces(line.split()) for line in pairs["valid.target"]]
    train = [processor.decode_pieces(line.split()) for line in pairs["train.target"]]
    assert valid == texts[::12]
    assert train == [text for index, text in enumerate(texts) if index % 12]


def test_sources_are_their_targets_with_masks_in_place_of_spans(material, tmp_path):
    pairs = make(material, tmp_path, "--valid", 1, "--permute-probability", 0)
    for source, target in zip(pairs["train.source"], pairs["train.target"], strict=True):
        assert "<mask>" in source and "<mask>" not in target
        assert matches(source, target), (source, target)
        assert len(source.split()) <= len(target.split())


def test_permuted_sources_still_hold_only_tokens_of_their_targets(material, tmp_path):
    options = ("--valid", 1, "--permute-probability", 1, "--sentence-probability", 0)
    pairs = make(material, tmp_path, *options)
    moved = 0
    for source, target in zip(pairs["train.source"], pairs["train.target"], strict=True):
        tokens = Counter(source.split())
        del tokens["<mask>"]
        assert not tokens - Counter(target.split())
        moved += not matches(source, target)
    assert moved > 50


def test_the_number_of_workers_changes_no_byte_and_the_seed_does(material, tmp_path):
    one, three = make(material, tmp_path / "1", "--workers", 1), make(material, tmp_path / "3", "--workers", 3)
    other = make(material, tmp_path / "2", "--seed", 2)
    assert one == three
    assert one["train.target"] == other["train.target"] and one["train.source"] != other["train.source"]


def test_sentence_infilling_masks_one_whole_segment_and_prefers_the_focus():
    segments, focus = [["▁a", "b"], ["▁c", "d", "e"], ["▁f", "g"]], [1]
    settings = noise.Noise(sentence_probability=1, focus_probability=0.6, light_probability=0)
    drawn = Counter(" ".join(noise.corrupt(random.Random(seed), segments, focus, settings)) for seed in range(2000))
    assert set(drawn) == {"<mask> ▁c d e ▁f g", "▁a b <mask> ▁f g", "▁a b ▁c d e <mask>"}
    assert 0.6 + 0.4 / 3 - 0.05 < drawn["▁a b <mask> ▁f g"] / 2000 < 0.6 + 0.4 / 3 + 0.05


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40, 200])
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5])
def test_text_infilling_removes_the_asked_share_in_spans_that_never_touch(length, ratio):
    tokens = [f"t{index}" for index in range(length)]
    masks = []
    for seed in range(200):
        source = noise.infill(random.Random(seed), tokens, ratio, 3.0)
        kept = [token for token in source if token != "<mask>"]
        assert length - len(kept) == max(1, round(ratio * length))
        assert "<mask> <mask>" not in " ".join(source) and len(source) <= length
        assert [token for token in tokens if token in set(kept)] == kept
        masks.append(source.count("<mask>"))
    if length == 200 and ratio == 0.3:
        assert 60 / 3.4 < sum(masks) / len(masks) < 60 / 2.6  # 60 tokens in Poisson(3) spans


def test_spans_are_poisson():
    drawn = [noise.poisson(random.Random(seed), 3.0) for seed in range(20000)]
    mean = sum(drawn) / len(drawn)
    assert abs(mean - 3) < 0.06 and abs(sum((x - mean) ** 2 for x in drawn) / len(drawn) - 3) < 0.15


def test_long_documents_are_cut_between_segments_and_long_segments_between_words(material, tmp_path):
    segments = ["Short one.", "The ferry to Gullmouth was late that day. " * 6, "It rained.", "x" * 90, "The end."]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"segments": segments, "focus": [2]}) + "\n" for _ in range(2)))
    pairs = make((path, material[1]), tmp_path, "--valid", 1, "--max-tokens", 24)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(material[1]))
    lines = pairs["train.target"]
    assert all(0 < len(line.split()) <= 24 for line in lines)
    assert processor.decode_pieces(" ".join(lines).split()) == " ".join(" ".join(segments).split())
    assert all(len(source.split()) <= len(target.split()) for source, target in zip(
        pairs["train.source"], lines, strict=True))  # fmt: skip


def test_the_focus_follows_its_segment_into_its_part():
    segments = [["▁a"] * 5, ["▁b"] * 5, ["▁c"] * 3, ["▁d"] * 30]
    parts = list(noise.pack(segments, [1, 2, 3], limit=10))
    assert parts == [
        ([segments[0], segments[1]], [1]),
        ([segments[2]], [0]),
        ([["▁d"] * 10], [0]),
        ([["▁d"] * 10], [0]),
        ([["▁d"] * 10], [0]),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--valid", "600"], "--valid 600 leaves none of 600"),
        (["--mask-ratio", "0.7"], "--mask-ratio 0.7: must lie between"),
        (["--span-mean", "0"], "--span-mean"),
        (["--span-mean", "nan"], "--span-mean"),
        (["--max-tokens", "1"], "--max-tokens 1"),
        (["--workers", "0"], "--workers 0"),
        (["--spm", "missing.model"], "missing.model: not a sentencepiece model"),
    ],
)
def test_bad_options_are_one_sentence_and_write_nothing(material, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(material, tmp_path / "out", *options)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_named_and_nothing_is_written(material, tmp_path, workers):
    path = tmp_path / "documents.jsonl"
    path.write_text('{"segments": ["A text."]}\n' * 5 + '{"segments": [""]}\n')
    with pytest.raises(UserError, match="line 6: segment 0 is empty"):
        make((path, material[1]), tmp_path / "out", "--valid", 1, "--workers", workers)
    assert not list((tmp_path / "out").glob("*"))


def test_a_model_without_a_mask_or_that_is_no_model_is_refused(material, tmp_path):
    (tmp_path / "spm.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        make((material[0], tmp_path / "spm.model"), tmp_path / "out")
