"""Conditional generation: <s> on both sides, truncation, no example lost."""

import numpy as np
import pytest
import tiny
import torch
from fairseq.data import indexed_dataset

from fairseq_prefix.errors import UsageError
from fairseq_prefix.task import ConditionalGenerationConfig, ConditionalGenerationTask


def write_split(folder, split, pairs, symbols):
    for side, column in (("source", 0), ("target", 1)):
        stem = f"{folder}/{split}.source-target.{side}"
        builder = indexed_dataset.make_builder(f"{stem}.bin", impl="mmap", vocab_size=len(symbols))
        for pair in pairs:
            builder.add_item(torch.tensor([*pair[column], symbols.eos()]))
        builder.finalize(f"{stem}.idx")
        symbols.save(f"{folder}/dict.{side}.txt")


@pytest.fixture
def task(tmp_path):
    symbols = tiny.dictionary()
    pairs = [(range(10, 10 + length), range(20, 20 + length)) for length in range(1, 22)]
    for split in ("train", "valid", "test"):
        write_split(tmp_path, split, pairs, symbols)
    cfg = ConditionalGenerationConfig(data=str(tmp_path), max_source_tokens=5, max_target_tokens=4)
    cfg.train_subset, cfg.dataset_impl, cfg.required_seq_len_multiple = "train", None, 1
    return ConditionalGenerationTask.setup_task(cfg)


def test_bos_and_eos_stand_on_both_sides(task):
    task.load_dataset("train")
    sample = task.dataset("train").collater([task.dataset("train")[1]])
    assert sample["net_input"]["src_tokens"].tolist() == [[0, 10, 11, 2]]
    assert sample["target"].tolist() == [[0, 20, 21, 2]]
    assert sample["net_input"]["prev_output_tokens"].tolist() == [[2, 0, 20, 21]]


def test_source_is_cut_always_and_target_in_training_only(task):
    for split, target in (("train", [0, 20, 21, 22, 23, 2]), ("valid", [0, *range(20, 30), 2])):
        task.load_dataset(split)
        pair = task.dataset(split)[9]
        assert pair["source"].tolist() == [0, 10, 11, 12, 13, 14, 2]
        assert pair["target"].tolist() == target


@pytest.mark.parametrize("limits", [{"max_sentences": 8}, {"max_sentences": 7}, {"max_tokens": 30}])
def test_no_example_is_left_out_of_a_pass(task, limits):
    """fairseq drops the last batch unless its size is a multiple of 8."""
    task.load_dataset("test")
    batches = task.get_batch_iterator(task.dataset("test"), required_batch_size_multiple=8, **limits).next_epoch_itr()
    seen = [number for batch in batches for number in batch["id"].tolist()]
    assert sorted(seen) == list(range(21))


def test_interactive_input_is_marked_and_cut_like_the_data(task):
    lines = [torch.tensor([30, 31, 2]), torch.tensor([*range(30, 40), 2])]
    dataset = task.build_dataset_for_inference(lines, [len(line) for line in lines])
    assert [dataset[index]["source"].tolist() for index in (0, 1)] == [[0, 30, 31, 2], [0, 30, 31, 32, 33, 34, 2]]
    assert np.array_equal(dataset.src_sizes, [4, 7])


def test_missing_pieces_are_one_sentence(task, tmp_path):
    with pytest.raises(UsageError, match="no split 'dev'"):
        task.load_dataset("dev")
    cfg = ConditionalGenerationConfig(data=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="is .*nowhere a folder that fairseq-preprocess wrote"):
        ConditionalGenerationTask.setup_task(cfg)


def test_sources_that_cannot_fit_the_model_are_refused_at_once(tmp_path):
    args = tiny.make_args("prefix_bart_tiny", base_model=str(tiny.save_base(tmp_path)), prefix_length=2)
    with pytest.raises(UsageError, match="--max-source-tokens 255 exceeds the model's 254"):
        tiny.make_task(max_source_tokens=255).build_model(args)
