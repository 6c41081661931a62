"""Which examples a split holds: every naming convention and option of fairseq's translation task reads what fairseq
reads, or is refused in one sentence. docs/plugin.md lists them.
"""

import contextlib
import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from fairseq.data import indexed_dataset
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_prefix.errors import UsageError
from fairseq_prefix.toolkit import training_options
from fairseq_prefix.toolkit.task import ConditionalGenerationConfig, ConditionalGenerationTask, ConditionalLMTask

SYMBOLS = tiny.dictionary()
TASKS = [ConditionalGenerationTask, ConditionalLMTask]


def pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(10, 60, rng.integers(1, 9)) for _ in range(2)) for _ in range(count)]


def write(folder, name, rows, impl="mmap", sides="de en", symbols=SYMBOLS):
    """A split as fairseq-preprocess lays it down, called `name`, such as train.de-en."""
    folder.mkdir(exist_ok=True)
    for side, column in zip(sides.split(), (0, 1), strict=True):
        stem = f"{folder}/{name}.{side}"
        texts = [torch.tensor([*row[column], symbols.eos()]) for row in rows]
        if impl == "raw":
            with open(stem, "w") as file:
                file.writelines(symbols.string(text) + "\n" for text in texts)
        else:
            builder = indexed_dataset.make_builder(f"{stem}.bin", impl=impl, vocab_size=len(symbols))
            for text in texts:
                builder.add_item(text)
            builder.finalize(f"{stem}.idx")
        symbols.save(f"{folder}/dict.{side}.txt")
    return folder


def make(kind, data, **options):
    config = {TranslationTask: TranslationConfig}.get(kind, ConditionalGenerationConfig)()
    options = {"train_subset": "train", "dataset_impl": None, "required_seq_len_multiple": 1, **options}
    if kind is TranslationTask:
        options = {"upsample_primary": 1, **options}
    for name, value in {"data": str(data), "source_lang": "de", "target_lang": "en", **options}.items():
        setattr(config, name, value)
    if kind is not TranslationTask:
        config.max_source_tokens = 0
    return kind.setup_task(config)


def examples(task, split, **options):
    """(source, target) of every example, without what stands around them."""
    task.load_dataset(split, **options)
    dataset = task.dataset(split)
    if dataset.supports_prefetch:
        dataset.prefetch(range(len(dataset)))
    special = {SYMBOLS.bos(), SYMBOLS.eos()}
    return [
        tuple([token for token in dataset[n][side].tolist() if token not in special] for side in ("source", "target"))
        for n in range(len(dataset))
    ]


def assert_as_in_fairseq(kind, data, split="train", options=None, **loading):
    """Returns how many examples the split has."""
    ours, theirs = (examples(make(task, data, **(options or {})), split, **loading) for task in (kind, TranslationTask))
    assert ours == theirs
    return len(ours)


@pytest.mark.parametrize("kind", TASKS)
def test_each_epoch_reads_the_next_folder_and_validation_the_first(kind, tmp_path):
    for folder, count in (("a", 64), ("b", 128)):
        write(tmp_path / folder, "train.de-en", pairs(count, count))
        write(tmp_path / folder, "valid.de-en", pairs(count // 8, count))
    data = f"{tmp_path}/a:{tmp_path}/b"
    counts = [assert_as_in_fairseq(kind, data, epoch=epoch, combine=True) for epoch in (1, 2, 3)]
    assert counts == [64, 128, 64]
    assert assert_as_in_fairseq(kind, data, "valid", epoch=2) == 8


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(
    ("split", "options", "loading", "count"),
    [
        ("train", {}, {"combine": True}, 10 + 20 + 30),
        ("train", {}, {}, 10),
        ("train", {"upsample_primary": 3}, {"combine": True}, 3 * 10 + 20 + 30),
        ("train", {"upsample_primary": 3}, {}, 10),
        ("train1", {"train_subset": "train1"}, {"combine": True}, 20 + 5),
        ("valid", {}, {"combine": True}, 4 + 6),
        ("valid1", {}, {}, 6),
        ("valid", {"upsample_primary": 3}, {}, 4),
    ],
)
def test_numbered_parts_of_a_split_belong_to_it_where_fairseq_combines_them(
    kind, split, options, loading, count, tmp_path
):
    for name, size in (("train", 10), ("train1", 20), ("train11", 5), ("train2", 30), ("valid", 4), ("valid1", 6)):
        write(tmp_path, f"{name}.de-en", pairs(size, size))
    assert assert_as_in_fairseq(kind, tmp_path, split, options, **loading) == count


@pytest.mark.parametrize("kind", TASKS)
def test_files_that_name_the_languages_in_the_other_order_are_read(kind, tmp_path):
    write(tmp_path, "train.en-de", pairs(7))
    write(tmp_path, "train1.de-en", pairs(5, 1))
    assert assert_as_in_fairseq(kind, tmp_path, combine=True) == 12


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(
    ("written", "impl"),
    [("raw", "raw"), ("lazy", "lazy"), ("lazy", "cached"), ("lazy", None), ("mmap", None), ("mmap", "mmap")],
)
def test_every_form_of_data_holds_the_same_examples(kind, written, impl, tmp_path):
    for name, size in (("train", 9), ("train1", 4)):
        write(tmp_path, f"{name}.de-en", pairs(size, size), written)
    assert assert_as_in_fairseq(kind, tmp_path, options={"dataset_impl": impl}, combine=True) == 13


@pytest.mark.parametrize(
    "options", [{"max_tokens": 60}, {"max_sentences": 4}, {"max_sentences": 4, "update_epoch_batch_itr": True}]
)
def test_batches_of_later_epochs_are_fairseqs(options, tmp_path):
    """Also where they are made anew for every epoch, which sorts texts of one length anew."""
    write(tmp_path, "train.de-en", pairs(40))
    found = []
    for kind in (ConditionalGenerationTask, TranslationTask):
        task = make(kind, tmp_path)
        task.load_dataset("train")
        dataset = task.dataset("train")
        dataset.src_sizes, dataset.tgt_sizes = dataset.src_sizes * 0 + 9, dataset.tgt_sizes * 0 + 9
        epochs = [task.get_batch_iterator(dataset, epoch=epoch, **options).next_epoch_itr() for epoch in (1, 2)]
        found.append([[batch["id"].tolist() for batch in epoch] for epoch in epochs])
    assert found[0] == found[1]
    same_batches = sorted(map(sorted, found[0][0])) == sorted(map(sorted, found[0][1]))
    assert same_batches is ("update_epoch_batch_itr" not in options)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data", "train.de-en", pairs(9))


def load(kind, data, **options):
    make(kind, data, **options).load_dataset("train", combine=True)


def test_all_folders_are_looked_at_before_the_first_epoch(data, tmp_path):
    write(tmp_path / "second", "valid.de-en", pairs(3))
    with pytest.raises(UsageError, match=r"second/train\.de-en\.de\.idx: no such file; the data has no split 'train'"):
        load(ConditionalGenerationTask, f"{data}:{tmp_path}/second")


def test_folders_with_different_dictionaries_are_refused(data, tmp_path):
    write(tmp_path / "second", "train.de-en", pairs(3), symbols=tiny.dictionary(words=70))
    with pytest.raises(UsageError, match=r"second/dict\.de\.txt differs from the dictionary in .*/data;"):
        load(ConditionalGenerationTask, f"{data}:{tmp_path}/second")


def test_parts_whose_sides_differ_in_number_are_refused_although_their_sums_are_equal(data):
    rows = pairs(12)
    for name, sizes in (("train", (5, 7)), ("train1", (7, 5))):
        for side, size in zip(("de", "en"), sizes, strict=True):
            write(data.parent / side, f"{name}.de-en", rows[:size])
            for end in ("bin", "idx"):
                (data.parent / side / f"{name}.de-en.{side}.{end}").rename(data / f"{name}.de-en.{side}.{end}")
    with pytest.raises(UsageError, match=r"train\.de-en: 5 sources but 7 targets"):
        load(ConditionalGenerationTask, data)


def test_a_training_without_targets_is_refused(data):
    for path in data.glob("train.de-en.en.*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"train\.de-en\.en\.idx: no such file; a training requires targets"):
        load(ConditionalLMTask, data)
    make(ConditionalLMTask, data).load_dataset("train")  # as fairseq-generate does it


def test_a_split_of_which_some_parts_have_targets_is_refused(data):
    for name in ("test", "test1"):
        write(data, f"{name}.de-en", pairs(3))
    for path in data.glob("test1.de-en.en.*"):
        path.unlink()
    with pytest.raises(UsageError, match="some parts of split 'test' have targets, others have none"):
        make(ConditionalGenerationTask, data).load_dataset("test", combine=True)


def test_data_of_another_form_than_the_option_says_are_refused(data):
    with pytest.raises(
        UsageError, match=r"train\.de-en\.de cannot be read \(.*\); is it damaged, or is --dataset-impl"
    ):
        load(ConditionalGenerationTask, data, dataset_impl="cached")


def test_a_form_that_data_are_never_in_is_refused(data):
    with pytest.raises(UsageError, match=r"train\.de-en\.de is not in the format of --dataset-impl fasta"):
        load(ConditionalGenerationTask, data, dataset_impl="fasta")


def test_data_that_are_cut_off_are_refused(data):
    path = data / "train.de-en.en.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UsageError, match=r"train\.de-en\.en cannot be read \(.*\); is it damaged"):
        load(ConditionalGenerationTask, data)


def test_upsampling_without_further_parts_is_refused(data):
    with pytest.raises(UsageError, match="--upsample-primary is 2, but there is no train1; leave it out"):
        load(ConditionalGenerationTask, data, upsample_primary=2)


def test_texts_that_are_joined_cannot_be_padded_to_a_multiple(data):
    load(ConditionalGenerationTask, data, required_seq_len_multiple=8)
    with pytest.raises(UsageError, match="--required-seq-len-multiple 8 is not supported by --task conditional_lm"):
        load(ConditionalLMTask, data, required_seq_len_multiple=8)


def test_batches_are_padded_to_a_multiple_where_source_and_target_are_apart(data):
    shapes = []
    for kind in (ConditionalGenerationTask, TranslationTask):
        task = make(kind, data, required_seq_len_multiple=8)
        task.load_dataset("train")
        batch = next(task.get_batch_iterator(task.dataset("train"), max_sentences=9).next_epoch_itr(shuffle=False))
        shapes.append([batch["net_input"]["src_tokens"].shape, batch["target"].shape])
    assert all(shape[1] % 8 == 0 for shape in shapes[0] + shapes[1])


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sentences": 0}, "--batch-size is 0; expected 1 or more"),
        ({"max_tokens": -1}, "--max-tokens is -1; expected 1 or more"),
        ({"max_sentences": 4, "required_batch_size_multiple": 0}, "--required-batch-size-multiple is 0; expected 1"),
        ({"max_tokens": 5}, r"an example has \d+ tokens, but a batch holds 5 \(--max-tokens"),
    ],
)
def test_batches_of_no_size_are_refused(kind, options, message, data):
    """fairseq takes them for unlimited, or dies of a division by zero."""
    task = make(kind, data)
    task.load_dataset("train")
    with pytest.raises(UsageError, match=message):
        task.get_batch_iterator(task.dataset("train"), **options)


@pytest.mark.parametrize("kind", TASKS)
def test_data_in_other_languages_than_asked_for_say_which(kind, data):
    with pytest.raises(UsageError, match=r"dict\.source\.txt: no such file; .* holds de and en: pass -s and -t"):
        load(kind, data, source_lang="source", target_lang="target")


@pytest.mark.parametrize("kind", TASKS)
def test_source_and_target_need_one_dictionary(kind, data):
    tiny.dictionary(words=70).save(str(data / "dict.en.txt"))
    with pytest.raises(
        UsageError, match="different dictionaries, but the base has one for both; .* --joined-dictionary"
    ):
        load(kind, data)


# Options of a training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fp16": True}, "--fp16 requires a CUDA GPU, but this machine has none .*; leave --fp16 out"),
        ({"fp16": True, "cpu": True}, "--fp16 requires a CUDA GPU, but --cpu is given; leave --fp16 out"),
        ({"fp16": True, "amp": True}, "--fp16 and --amp exclude each other"),
        ({"bf16": True, "tpu": True}, "--bf16 requires torch_xla and a TPU"),
        ({"tpu": True}, "--tpu requires torch_xla and a TPU"),
        ({"ddp_backend": "fully_sharded"}, "--ddp-backend fully_sharded is not supported by this plugin"),
        ({"zero_sharding": "os"}, "--zero-sharding os is not supported by this plugin"),
        ({"cpu_offload": True}, "--cpu-offload is not supported by this plugin"),
        ({"model_parallel_size": 2}, "--model-parallel-size 2 is not supported by this plugin"),
        ({"update_freq": [1, 0]}, "--update-freq is 0; expected 1 or more"),
        ({"seed": -1}, "--seed is -1; expected 0 or more"),
        ({"num_workers": -1}, "--num-workers is -1; expected 0 or more"),
        ({"pipeline_model_parallel": True}, "--pipeline-model-parallel is not supported by this plugin"),
    ],
)
def test_options_that_cannot_work_here_are_refused(given, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=message):
        training_options.check(settings(**given))


@pytest.mark.parametrize(
    ("task", "model", "own"),
    [("translation", "transformer", False), ("translation", None, False), ("conditional_lm", "transformer", True)]
    + [("translation", "prefix_bart_tiny", True), ("translation", "full_gpt2", True)],
)
def test_what_the_plugin_does_not_support_is_left_to_stock_models_of_stock_tasks(task, model, own):
    for given in ({"ddp_backend": "fully_sharded"}, {"zero_sharding": "os"}, {"cpu_offload": True}):
        cfg = settings(**given)
        cfg.task._name, cfg.model = task, SimpleNamespace(_name=model)
        with pytest.raises(UsageError, match="not supported by this plugin") if own else contextlib.nullcontext():
            training_options.check(cfg)


def test_validation_data_that_would_be_left_out_are_refused(data):
    """fairseq's own check, without its traceback."""
    write(data, "valid1.de-en", pairs(3))
    with pytest.raises(UsageError, match=r"Valid paths .*valid1.* will be ignored. Set --combine-val"):
        training_options.check(settings(data=str(data)))
    training_options.check(settings(data=str(data), combine_valid_subsets=True))


def test_half_precision_is_not_refused_where_it_works(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given in ({}, {"fp16": True, "memory_efficient_fp16": True}, {"amp": True}):
        training_options.check(settings(**given))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training_options.check(settings(fp16=True))


@pytest.mark.parametrize(
    ("command", "function", "trains"),
    [("train", "main", True), ("hydra_train", "pre_main", True), ("interactive", "main", False)]
    + [("validate", "main", False), ("eval_lm", "main", False), ("hydra_validate", "validate", False)],
)
def test_options_are_those_of_a_training_in_trainings_alone(command, function, trains, monkeypatch):
    """Every command of fairseq has a criterion."""
    checked, ran = [], []
    monkeypatch.setattr(training_options, "check", checked.append)
    call_main = training_options.check_first(lambda cfg, main: ran.append(main))
    main, cfg = getattr(importlib.import_module(f"fairseq_cli.{command}"), function), {"criterion": "cross_entropy"}
    call_main(cfg, main)
    assert ran == [main] and checked == [cfg] * trains


def test_a_training_is_recognised_as_the_program_itself(monkeypatch):
    program = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    exec("def main(): pass", vars(program))
    for file, trains in (("/x/fairseq_cli/train.py", True), ("/x/fairseq_cli/validate.py", False), (None, False)):
        program.__file__ = file
        assert training_options._trains(program.main) is trains


def settings(**given):
    """fairseq's configuration of a training, with these options."""
    sections = {
        "common": {"seed": 1, "model_parallel_size": 1}
        | dict.fromkeys(("fp16", "bf16", "amp", "tpu", "cpu", "memory_efficient_fp16"), False),
        "distributed_training": {"ddp_backend": "pytorch_ddp", "zero_sharding": "none"}
        | dict.fromkeys(("cpu_offload", "pipeline_model_parallel"), False),
        "optimization": {"update_freq": [1]},
        "dataset": {"num_workers": 1, "valid_subset": "valid"}
        | dict.fromkeys(("ignore_unused_valid_subsets", "combine_valid_subsets", "disable_validation"), False),
        "task": {"data": "nowhere", "_name": "conditional_generation"},
    }
    return SimpleNamespace(
        **{
            name: SimpleNamespace(**section | {k: given[k] for k in given if k in section})
            for name, section in sections.items()
        }
    )
