"""A model may say which symbols stand around its texts: here mBART's, over a tiny BART."""

from argparse import Namespace

import numpy as np
import pytest
import tiny
import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator
from fairseq_cli.generate import get_symbols_to_strip_from_output
from test_task import PAIRS, write_split

from fairseq_prefix.errors import UsageError
from fairseq_prefix.interfaces.family import Framing
from fairseq_prefix.toolkit.task import ConditionalGenerationConfig, ConditionalGenerationTask, ConditionalLMTask

MBART = Framing((), ("</s>", "[en_XX]"), "[ro_RO]", ())
FORCED = Framing(("[en_XX]",), ("</s>",), "</s>", ("[ro_RO]",))  # M2M-100's
SIZES = {"encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 32}
OPTIONS = Namespace(beam=2, max_len_b=6, min_len=3)


@pytest.fixture
def symbols():
    symbols = tiny.dictionary()
    for tag in ("[en_XX]", "[ro_RO]"):
        symbols.add_symbol(tag)
    return symbols


@pytest.fixture
def build(tmp_path, symbols, monkeypatch):
    """A function that builds (task, model) for a framing, with data to read."""

    def build(framing, kind=ConditionalGenerationTask, **options):
        for split in ("train", "valid"):
            write_split(tmp_path, split, PAIRS, symbols)
        cfg = ConditionalGenerationConfig(data=str(tmp_path), **{"max_source_tokens": 5, **options})
        cfg.train_subset, cfg.dataset_impl, cfg.required_seq_len_multiple = "train", None, 1
        task = kind.setup_task(cfg)
        arch = "full_gpt2_tiny" if framing.joined else "full_bart_tiny"
        monkeypatch.setattr(ARCH_MODEL_REGISTRY[arch], "framing", framing, raising=False)
        torch.manual_seed(0)
        return task, task.build_model(tiny.make_args(arch, **({"decoder_layers": 1} if framing.joined else SIZES)))

    return build


@pytest.mark.parametrize(
    ("framing", "source", "target", "previous"),
    [
        (MBART, [10, 11, "</s>", "[en_XX]"], [20, 21, "</s>"], ["[ro_RO]", 20, 21]),
        (FORCED, ["[en_XX]", 10, 11, "</s>"], ["[ro_RO]", 20, 21, "</s>"], ["</s>", "[ro_RO]", 20, 21]),
    ],
)
def test_the_symbols_of_the_model_are_put_around_source_and_target(build, symbols, framing, source, target, previous):
    task, _ = build(framing)
    task.load_dataset("train")
    sample = task.dataset("train").collater([task.dataset("train")[1]])
    found = (sample["net_input"]["src_tokens"], sample["target"], sample["net_input"]["prev_output_tokens"])
    for tokens, expected in zip(found, (source, target, previous), strict=True):
        assert tokens[0].tolist() == [symbols.index(part) if isinstance(part, str) else part for part in expected]


@pytest.mark.parametrize("framing", [MBART, FORCED])
def test_typed_texts_are_framed_and_cut_like_the_data_once(build, symbols, framing):
    task, _ = build(framing)
    task.load_dataset("valid")
    data, english = task.dataset("valid"), symbols.index("[en_XX]")
    lines = [torch.tensor([10, 11, 2]), torch.tensor([*range(10, 18), 2]), torch.tensor([10, 11, english, 2])]
    typed = task.build_dataset_for_inference(lines, [len(line) for line in lines])
    for number, like in enumerate((1, 7, 1)):
        assert torch.equal(typed[number]["source"], data[like]["source"])
        assert typed.src_sizes[number] == len(typed[number]["source"])


@pytest.mark.parametrize("generator", [None, SequenceGenerator])
@pytest.mark.parametrize("framing", [MBART, FORCED])
def test_a_search_starts_with_the_symbols_of_the_model(build, symbols, framing, generator):
    """Its scores are those of the decoder that reads them; they are not printed."""
    task, model = build(framing)
    model.eval()
    dataset = task.build_dataset_for_inference([torch.tensor([30, 31, 32, 2]), torch.tensor([40, 2])], [4, 2])
    sample = dataset.collater([dataset[0], dataset[1]])
    search = task.build_generator([model], OPTIONS, generator)
    sources, lengths = sample["net_input"]["src_tokens"], sample["net_input"]["src_lengths"]
    for row, (found, _) in enumerate(task.inference_step(search, [model], sample)):
        tokens = found["tokens"]
        previous = torch.cat([torch.tensor([symbols.index(framing.start)]), tokens[:-1]])
        with torch.no_grad():
            logits, _ = model(sources[row : row + 1, : lengths[row]], lengths[row : row + 1], previous[None])
        scores = logits[0].log_softmax(dim=1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(scores, found["positional_scores"], atol=1e-5, rtol=1e-5)
        if framing.before_target:
            assert tokens[0] == symbols.index("[ro_RO]")
        printed = symbols.string(
            torch.cat([tokens[:-1], torch.tensor([symbols.index("[en_XX]")]), tokens[-1:]]),
            extra_symbols_to_ignore=get_symbols_to_strip_from_output(search),
        )
        assert printed and "[" not in printed


def test_a_prefix_given_to_a_search_holds_the_forced_symbols_itself(build, symbols):
    task, model = build(FORCED)
    dataset = task.build_dataset_for_inference([torch.tensor([30, 31, 2])], [3])
    search = task.build_generator([model.eval()], OPTIONS)
    forced = torch.tensor([[symbols.index("[ro_RO]"), 33, 34]])
    found = task.inference_step(search, [model], dataset.collater([dataset[0]]), prefix_tokens=forced)
    assert found[0][0]["tokens"][:3].tolist() == forced[0].tolist()


def test_a_model_that_reads_one_text_may_frame_it_too(build, symbols):
    """The start symbol separates source and target; sizes are exact, so that batches are."""
    task, model = build(Framing(("<s>",), ("[en_XX]",), "[ro_RO]", joined=True), ConditionalLMTask)
    task.load_dataset("train")
    dataset, (english, romanian) = task.dataset("train"), map(symbols.index, ("[en_XX]", "[ro_RO]"))
    sample = dataset.collater([dataset[1]])
    assert sample["net_input"]["src_tokens"].tolist() == [[0, 10, 11, english]]
    assert sample["net_input"]["prev_output_tokens"].tolist() == [[romanian, 20, 21]]
    assert np.array_equal(dataset.sizes, [len(pair["source"]) + len(pair["target"]) for pair in dataset])
    assert task.build_generator([model], Namespace(beam=1)).max_len == model.max_positions() - 5 - 2


def test_the_symbols_take_positions_of_the_source(build):
    build(MBART, max_source_tokens=30)
    with pytest.raises(UsageError, match=r"--max-source-tokens 31 .* 30 \(32 positions less </s> and \[en_XX\]\)"):
        build(MBART, max_source_tokens=31)


def test_a_symbol_that_the_dictionary_lacks_is_named(build):
    with pytest.raises(UsageError, match=r"dict.txt has no '\[cs_CZ\]', which the model expects around a text"):
        build(Framing((), ("</s>", "[cs_CZ]"), "</s>"))


def test_models_that_frame_texts_differently_are_not_searched_together(build, monkeypatch):
    task, _ = build(MBART)
    monkeypatch.setattr(ARCH_MODEL_REGISTRY["full_bart_tiny"], "framing", FORCED)
    with pytest.raises(UsageError, match="frame texts by different symbols"):
        task.build_model(tiny.make_args("full_bart_tiny", **SIZES))
