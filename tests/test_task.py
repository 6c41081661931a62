"""Both tasks: what stands around source and target, truncation, no example lost; what makes a batch of joined texts."""

import contextlib
from argparse import Namespace

import numpy as np
import pytest
import tiny
import torch
from fairseq.data import ListDataset, indexed_dataset
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from fairseq_prefix.errors import UsageError
from fairseq_prefix.toolkit.task import (
    ConditionalGenerationConfig,
    ConditionalGenerationTask,
    ConditionalLMTask,
    PairTask,
)


def write_split(folder, split, pairs, symbols):
    for side, column in (("source", 0), ("target", 1)):
        stem = f"{folder}/{split}.source-target.{side}"
        builder = indexed_dataset.make_builder(f"{stem}.bin", impl="mmap", vocab_size=len(symbols))
        for pair in pairs:
            builder.add_item(torch.tensor([*pair[column], symbols.eos()]))
        builder.finalize(f"{stem}.idx")
        symbols.save(f"{folder}/dict.{side}.txt")


def task_of(kind, folder, pairs, **options):
    symbols = tiny.dictionary()
    for split in ("train", "valid", "test"):
        write_split(folder, split, pairs, symbols)
    cfg = ConditionalGenerationConfig(data=str(folder), **options)
    cfg.train_subset, cfg.dataset_impl, cfg.required_seq_len_multiple = "train", None, 1
    return kind.setup_task(cfg)


PAIRS = [(range(10, 10 + length), range(20, 20 + length)) for length in range(1, 22)]


@pytest.fixture
def task(tmp_path):
    return task_of(ConditionalGenerationTask, tmp_path, PAIRS, max_source_tokens=5, max_target_tokens=4)


@pytest.fixture
def lm_task(tmp_path):
    return task_of(ConditionalLMTask, tmp_path, PAIRS, max_source_tokens=5, max_target_tokens=4)


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
@pytest.mark.parametrize("kind", ["task", "lm_task"])
def test_no_example_is_left_out_of_a_pass(kind, limits, request):
    """fairseq drops the last batch unless its size is a multiple of 8."""
    task = request.getfixturevalue(kind)
    task.load_dataset("test")
    batches = task.get_batch_iterator(task.dataset("test"), required_batch_size_multiple=8, **limits).next_epoch_itr()
    seen = [number for batch in batches for number in batch["id"].tolist()]
    assert sorted(seen) == list(range(21))


def test_a_pair_that_does_not_fit_is_an_error_and_not_a_dropped_example(task):
    """In training fairseq would go on without it."""
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    with pytest.raises(UsageError, match=r"1 examples are too long, such as number 20 with 7 source and 23 target"):
        task.get_batch_iterator(dataset, max_sentences=4, max_positions=(256, 22), ignore_invalid_inputs=True)
    task.get_batch_iterator(dataset, max_sentences=4, max_positions=(256, 23))


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


# Lengths --------------------------------------------------------------------------------------------------------------

BOTH = [ConditionalGenerationTask, ConditionalLMTask]


@pytest.mark.parametrize("kind", BOTH)
def test_zero_leaves_sources_and_targets_uncut_wherever_they_come_from(kind, tmp_path):
    task = task_of(kind, tmp_path, PAIRS, max_source_tokens=0, max_target_tokens=0)
    task.load_dataset("train")
    typed = task.build_dataset_for_inference([torch.tensor([*source, 2]) for source, _ in PAIRS], [1] * len(PAIRS))
    dataset = task.dataset("train")
    for number, (source, target) in enumerate(PAIRS):
        assert dataset[number]["source"].tolist() == typed[number]["source"].tolist()
        assert [token for token in typed[number]["source"].tolist() if token > 2] == [*source]
        assert [token for token in dataset[number]["target"].tolist() if token > 2] == [*target]
        assert dataset.src_sizes[number] == typed.src_sizes[number] == len(typed[number]["source"])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("option", ["max_source_tokens", "max_target_tokens"])
def test_negative_lengths_are_refused(kind, option, tmp_path):
    with pytest.raises(UsageError, match=rf"--{option.replace('_', '-')} is -1; expected 0 \(not cut\) or more"):
        task_of(kind, tmp_path, PAIRS, **{option: -1})


@pytest.mark.parametrize(("arch", "kind"), [("full_bart_tiny", tiny.make_task), ("full_gpt2_tiny", tiny.make_lm_task)])
def test_a_source_that_is_not_cut_and_does_not_fit_is_refused_by_name(arch, kind):
    task = kind(max_source_tokens=0)
    task.build_model(tiny.make_args(arch, **{"encoder_layers": 1} if "bart" in arch else {}, decoder_layers=1))
    dataset = task.build_dataset_for_inference([torch.tensor([*range(4, 14), 2]), torch.full((601,), 7)], [11, 601])
    with pytest.raises(
        UsageError, match="(such as number|example) 1 (with|has) 60[0-9] .* cut sources with --max-source"
    ):
        task.get_batch_iterator(
            dataset, max_sentences=2, max_positions=task.max_positions(), ignore_invalid_inputs=True
        )


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("beam", 0, "1 or"), ("nbest", -2, "1 or"), ("min_len", -1, "0 or"), ("no_repeat_ngram_size", -1, "0 or")]
    + [("temperature", 0.0, "more than 0")],
)
def test_numbers_of_a_search_that_make_no_sense_are_refused(option, value, least):
    task = tiny.make_task()
    model = task.build_model(tiny.make_args("full_bart_tiny", encoder_layers=1, decoder_layers=1))
    with pytest.raises(UsageError, match=rf"--{option.replace('_', '-')} is {value}; expected {least}"):
        task.build_generator([model], Namespace(**{option: value}))


def built(given, *recorded):
    """The limit of a task for which `given` was said, with models whose checkpoints recorded this; None: a new one."""
    task = tiny.make_task(max_source_tokens=given)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 600}
    args = [tiny.make_args("full_bart_tiny", max_source_tokens=limit, **sizes) for limit in recorded]
    for one, number in zip(args, recorded, strict=True):
        task.build_model(one, from_checkpoint=number is not None)
        assert one.max_source_tokens == task.cfg.max_source_tokens, "what the next checkpoint records"
    return task.cfg.max_source_tokens


def test_a_search_takes_the_length_of_sources_from_the_checkpoint():
    assert built(None, 50) == built(None, 50, 50) == 50
    assert built(None, 0) == 0
    assert built(None, None) == 512, "a new training"
    assert built(40, 50) == 40, "given: whatever was trained over a base is verified when it is loaded"
    with pytest.raises(UsageError, match="trained with --max-source-tokens 50 and 60; pass the one to use"):
        built(None, 50, 60)


@pytest.mark.parametrize(("arch", "kind"), [("full_bart_tiny", tiny.make_task), ("full_gpt2_tiny", tiny.make_lm_task)])
def test_before_a_model_is_built_sources_are_cut_as_in_a_new_training(arch, kind):
    task = kind(max_source_tokens=None, required_seq_len_multiple=1)
    long = torch.tensor([*[7] * 600, 2])
    for dataset in (
        task.build_dataset_for_inference([long], [len(long)]),
        task._pairs(ListDataset([long], np.array([len(long)])), None, 0, shuffle=False),
    ):
        assert (dataset[0]["source"] == 7).sum() == 512
    assert task.conventions()["max_source_tokens"] == 512
    model = tiny.build(arch, task, decoder_layers=1, **{"encoder_layers": 1} if "bart" in arch else {})
    with contextlib.nullcontext() if "bart" in arch else pytest.raises(UsageError, match="leave no position"):
        task.build_generator([model], Namespace(beam=1))
    assert task.cfg.max_source_tokens is None, "what a checkpoint says is still to come"


def test_the_length_of_sources_is_recorded_in_options_of_any_kind(monkeypatch):
    """Such as those of a stock model, which take no new names."""
    monkeypatch.setattr(FairseqTask, "build_model", lambda *_: None)
    cfg = OmegaConf.create({"_name": "transformer"})
    OmegaConf.set_struct(cfg, True)
    PairTask.build_model(tiny.make_task(max_source_tokens=None), cfg)
    assert cfg.max_source_tokens == 512 and OmegaConf.is_struct(cfg)


# The language model's ------------------------------------------------------------------------------------------------


def test_a_target_follows_its_source_and_one_eos(lm_task):
    lm_task.load_dataset("train")
    sample = lm_task.dataset("train").collater([lm_task.dataset("train")[index] for index in (1, 9)])
    assert sample["net_input"]["src_tokens"].tolist() == [[10, 11, 12, 13, 14], [10, 11, 1, 1, 1]]
    assert sample["net_input"]["src_lengths"].tolist() == [5, 2]
    assert sample["net_input"]["prev_output_tokens"].tolist() == [[2, 20, 21, 22, 23], [2, 20, 21, 1, 1]]
    assert sample["target"].tolist() == [[20, 21, 22, 23, 2], [20, 21, 2, 1, 1]]
    assert sample["ntokens"] == 5 + 3, "tokens of the source do not count"


def test_joined_source_is_cut_always_and_target_in_training_only(lm_task):
    for split, target in (("train", [20, 21, 22, 23, 2]), ("valid", [*range(20, 30), 2])):
        lm_task.load_dataset(split)
        dataset = lm_task.dataset(split)
        assert dataset[9]["source"].tolist() == [10, 11, 12, 13, 14]
        assert dataset[9]["target"].tolist() == target
        assert dataset.size(9) == dataset.num_tokens(9) == 5 + len(target)


def test_batches_hold_texts_of_alike_total_length(tmp_path):
    """A short source with a long target and the other way round have the same length once they are joined."""
    rng = np.random.default_rng(0)
    pairs = [(range(10, 10 + length), range(10, 30 - length)) for length in rng.integers(1, 19, 40)]
    pairs += [(range(10, 12), range(10, 12))] * 40
    task = task_of(ConditionalLMTask, tmp_path, pairs)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batches = task.get_batch_iterator(dataset, max_tokens=84, required_batch_size_multiple=1).next_epoch_itr()
    sizes = [[dataset.size(number) for number in batch["id"].tolist()] for batch in batches]
    assert sorted(sum(sizes, [])) == [5] * 40 + [21] * 40
    assert all(max(batch) * len(batch) <= 84 for batch in sizes)
    assert sum(max(batch) * len(batch) - sum(batch) for batch in sizes) <= 3 * 16, "one batch may be mixed"


def test_a_pass_in_training_is_shuffled_and_one_in_evaluation_is_not(tmp_path):
    task = task_of(ConditionalLMTask, tmp_path, [(range(10, 13), range(10, 13))] * 30)
    for split, shuffled in (("train", True), ("valid", False)):
        task.load_dataset(split)
        assert (task.dataset(split).ordered_indices().tolist() != list(range(30))) is shuffled


def test_a_text_that_does_not_fit_is_an_error_and_not_a_dropped_example(lm_task):
    lm_task.load_dataset("valid")
    dataset = lm_task.dataset("valid")
    with pytest.raises(UsageError, match="example 20 has 27 tokens, source and target together, .* room for 26"):
        lm_task.get_batch_iterator(dataset, max_sentences=4, max_positions=26, ignore_invalid_inputs=True)
    lm_task.get_batch_iterator(dataset, max_sentences=4, max_positions=27)


def test_joined_interactive_input_is_cut_like_the_data(lm_task):
    lines = [torch.tensor([30, 31, 2]), torch.tensor([*range(30, 40), 2])]
    dataset = lm_task.build_dataset_for_inference(lines, [len(line) for line in lines])
    assert [dataset[index]["source"].tolist() for index in (0, 1)] == [[30, 31], [30, 31, 32, 33, 34]]
    sample = dataset.collater([dataset[0], dataset[1]])
    assert sample["net_input"]["src_lengths"].tolist() == [5, 2]


def test_sources_that_leave_no_room_in_a_language_model_are_refused_at_once(tmp_path):
    base = str(tiny.save_base(tmp_path, arch="full_gpt2_tiny", decoder_layers=1))
    args = tiny.make_args("prefix_gpt2_tiny", base_model=base, prefix_length=10, decoder_layers=1)
    with pytest.raises(
        UsageError, match="--max-source-tokens 501 exceeds the 500 that </s>, a target of one token and virtual"
    ):
        tiny.make_lm_task(max_source_tokens=501).build_model(args)
    tiny.make_lm_task(max_source_tokens=500).build_model(args)


def test_generation_stops_where_the_positions_end(tmp_path):
    """Whatever --max-len-b says: also after the longest source that is allowed."""
    symbols = tiny.dictionary(mask=False)
    base = str(tiny.save_base(tmp_path, arch="full_gpt2_tiny", decoder_layers=1, max_target_positions=32))
    task = tiny.make_lm_task(symbols, max_source_tokens=12)
    options = {"base_model": base, "prefix_length": 4, "decoder_layers": 1, "max_target_positions": 32}
    model = task.build_model(tiny.make_args("prefix_gpt2_tiny", **options))
    args = Namespace(beam=2, max_len_b=200, min_len=15)
    generator = task.build_generator([model], args)
    source = torch.arange(4, 16)[None]
    sample = {"net_input": {"src_tokens": source, "src_lengths": torch.tensor([12])}}
    for hypothesis in task.inference_step(generator, [model], sample)[0]:
        assert len(hypothesis["tokens"]) == 32 - 4 - 12  # the last one is put out and not read


def test_sources_that_are_not_cut_leave_the_other_positions_to_what_is_generated():
    symbols = tiny.dictionary(mask=False)
    task = tiny.make_lm_task(symbols, max_source_tokens=0)
    torch.manual_seed(0)
    model = task.build_model(tiny.make_args("full_gpt2_tiny", decoder_layers=1, max_target_positions=32)).eval()
    generator = task.build_generator([model], Namespace(beam=2, max_len_b=200, min_len=3))
    for length in (12, 27, 4):
        sample = {"net_input": {"src_tokens": torch.full((1, length), 7), "src_lengths": torch.tensor([length])}}
        model.decoder.output_projection.weight.data[symbols.eos()] = -9.0
        (found,) = task.inference_step(generator, [model], sample)
        assert len(found[0]["tokens"]) == 32 - length
