"""The beam search beside fairseq's, the n-gram block beside transformers', and linear layers on the CPU."""

import copy
import random
import sys
from argparse import Namespace

import methods
import pytest
import tiny
import torch
from fairseq.models.bart.model import BARTModel
from fairseq.sequence_generator import SequenceGenerator
from torch import nn

from fairseq_prefix import beams, linear
from fairseq_prefix.errors import UsageError
from fairseq_prefix.linear import FrozenLinear
from fairseq_prefix.search import NGramBlock, Searcher

EOS, PAD = 2, 1


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_tokens_that_would_repeat_an_ngram_are_those_that_transformers_bans(size):
    sys.modules.setdefault("torchaudio", None)  # transformers would load it, and it is not made for every torch
    from transformers import NoRepeatNGramLogitsProcessor

    for case in range(60):
        rng = random.Random(case)
        step, room = rng.randrange(0, 12), rng.randrange(0, 6)
        text = torch.tensor([[rng.randrange(4, 8) for _ in range(step)] for _ in range(5)], dtype=torch.long).view(
            5, step
        )
        buffer = torch.cat([torch.full((5, 1), EOS), text, torch.full((5, room), PAD)], dim=1)
        scores = torch.randn(5, 9)
        expected = NoRepeatNGramLogitsProcessor(size)(buffer[:, : step + 1], scores.clone())
        assert torch.equal(NGramBlock(size)(buffer, scores, 5, 1, step), expected), (case, step)


def test_a_size_of_one_lets_no_token_stand_twice_and_hypotheses_end():
    buffer = torch.tensor([[EOS, 5, 6, PAD, PAD]])
    blocked = NGramBlock(1)(buffer, torch.zeros(1, 9), 1, 1, 2)
    assert blocked.isinf().nonzero()[:, 1].tolist() == [5, 6]


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_generation_repeats_no_ngram_where_it_is_told_so(family, tmp_path):
    """fairseq's own block does nothing without its CUDA extension."""
    task = tiny.make_task() if family == "bart" else tiny.make_lm_task()
    symbols = task.target_dictionary
    base = tiny.save_base(tmp_path, symbols=symbols, arch=f"full_{family}_tiny")
    model = tiny.build(f"prefix_{family}_tiny", task, base_model=str(base), prefix_length=3).eval()
    source, lengths, _ = tiny.batch(rows=6)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}

    def generate(size):
        options = Namespace(beam=3, max_len_a=0, max_len_b=20, min_len=20, no_repeat_ngram_size=size)
        generator = task.build_generator([model], options)
        return [
            hypothesis["tokens"].tolist()
            for row in task.inference_step(generator, [model], sample)
            for hypothesis in row
        ]

    def repeats(tokens):
        pairs = list(zip(tokens, tokens[1:], strict=False))
        return len(set(pairs)) < len(pairs)

    assert any(repeats(tokens) for tokens in generate(0))
    assert not any(repeats(tokens) for tokens in generate(2))


needs_onednn = pytest.mark.skipif(not linear.available(), reason="this build of torch has no oneDNN")


@pytest.fixture(params=[False, True], ids=["as they are", "packed"])
def layers(request):
    """(nn.Linear, a FrozenLinear over the same weights)"""
    plain = nn.Linear(48, 96).requires_grad_(False)
    fast = FrozenLinear(plain)
    fast.packing = request.param
    return plain, fast


@needs_onednn
def test_frozen_weights_give_the_same_product(layers):
    plain, fast = layers
    for shape in ((1, 48), (24, 48), (3, 7, 48)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=0)
            assert (fast._packed is not None) == fast.packing


@needs_onednn
def test_frozen_weights_give_the_same_gradient(layers):
    plain, fast = layers
    for shape in ((24, 48), (7, 3, 48)):
        x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 96)
        gradients = []
        for layer in (plain, fast):
            leaf = x.clone().requires_grad_()
            y = layer(leaf.transpose(0, 1)) if x.dim() == 3 else layer(leaf)  # encoders have time first
            (y * upstream.transpose(0, 1) if x.dim() == 3 else y * upstream).sum().backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
        leaf = x.clone().requires_grad_()
        fast(leaf).sum().backward()  # its gradient is one number, expanded
        torch.testing.assert_close(leaf.grad, fast.weight.sum(dim=0).expand_as(leaf), atol=1e-5, rtol=0)
    assert fast._packed is None


@needs_onednn
def test_weights_are_packed_once_whatever_says_again_that_nothing_is_trained(layers):
    """Every generator of fairseq's calls `eval()`."""
    _, fast = layers
    fast.packing, x = True, torch.randn(5, 48)
    with torch.no_grad():
        fast.eval()(x)
        packed = fast._packed
        fast.eval()(x)
        assert fast._packed is packed
        fast.train().eval()(x)
        assert fast._packed is not packed, "an optimizer may have changed them meanwhile"


@needs_onednn
def test_weights_that_change_are_packed_anew(layers):
    plain, fast = layers
    x = torch.randn(5, 48)
    with torch.no_grad():
        fast(x)
        plain.weight.mul_(2)
        torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=0)
        plain.weight.data = torch.randn(96, 48)
        torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_what_is_thawed_gets_its_gradient_after_all(layers, trained):
    plain, fast = layers
    getattr(plain, trained).requires_grad_(True)
    fast(torch.randn(5, 48)).sum().backward()
    assert getattr(plain, trained).grad is not None


def test_half_precision_goes_through_the_weights_themselves(layers):
    plain, fast = layers
    x = torch.randn(5, 48).bfloat16()
    with torch.no_grad():
        assert torch.equal(fast.bfloat16()(x), plain.bfloat16()(x))


@needs_onednn
def test_what_is_trained_keeps_its_layers_and_the_base_gets_faster_ones(tmp_path):
    base = tiny.save_base(tmp_path)
    model = tiny.build("prefix_bart_tiny", base_model=str(base), prefix_length=3)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all((kind is nn.Linear) == name.startswith("prefix.") for name, kind in kinds.items())
    assert {type(module) for module in tiny.build("full_bart_tiny", base_model=str(base)).modules()}.isdisjoint(
        {FrozenLinear}
    )


@needs_onednn
def test_a_model_prepared_for_inference_keeps_its_parameters_and_copies(tmp_path):
    task = tiny.make_task()
    base = tiny.save_base(tmp_path, symbols=task.target_dictionary, scale=0.05)
    model = tiny.build("prefix_bart_tiny", task, base_model=str(base), prefix_length=3).eval()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    inputs = tiny.batch()
    with torch.no_grad():
        expected = model(*inputs)[0]
    linear.speed_up(model, packing=True)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    with torch.no_grad():
        for each in (model, copy.deepcopy(model)):
            torch.testing.assert_close(each(*inputs)[0], expected, atol=1e-5, rtol=0)
            assert each.decoder.output_projection._packed is not None


# The search beside fairseq's ------------------------------------------------------------------------------------------

BATCHES = 48  # of each of three models; 3.5 sentences each on average


@pytest.fixture(scope="module", params=["prefix_bart", "prefix_gpt2", "adapter_bart"])
def searched(request, tmp_path_factory):
    """(family, a model over attention of ours or of fairseq's, whose hypotheses end at different steps)"""
    method, family = request.param.split("_")
    base = methods.make_base(tmp_path_factory.mktemp("base"), family, scale=0.05)
    model = methods.strengthen(methods.build(method, family, base))
    return family, methods.ends_early(model, family, beam=3)


def random_options(rng):
    least = rng.choice((1, 1, 3))
    return {
        "beam": rng.choice((1, 2, 3, 5, 6)),
        "lenpen": rng.choice((0.6, 1.0, 2.0)),
        "unnormalized": rng.random() < 0.2,
        "min_len": least,
        "max_len_a": 0,
        "max_len_b": rng.randrange(least, 9),
        "no_repeat_ngram_size": rng.choice((0, 0, 1, 2, 3)),
        "temperature": rng.choice((1.0, 1.0, 0.7)),
        "unkpen": rng.choice((0.0, 0.5)),
    }


def stock_search(model, task, options, row):
    """fairseq's generator on one sentence, whose every step is a pass from the beginning; with an n-gram block."""
    generator = SequenceGenerator(
        [methods.Uncached(model, row)],
        task.target_dictionary,
        beam_size=options["beam"],
        len_penalty=options["lenpen"],
        normalize_scores=not options["unnormalized"],
        min_len=options["min_len"],
        max_len_b=options["max_len_b"],
        temperature=options["temperature"],
        unk_penalty=options["unkpen"],
    )
    if options["no_repeat_ngram_size"]:
        generator.repeat_ngram_blocker = NGramBlock(options["no_repeat_ngram_size"])
    sample = {"net_input": {"src_tokens": row[None], "src_lengths": torch.tensor([len(row)])}}
    return task.inference_step(generator, [model], sample)[0]


@pytest.mark.parametrize("part", range(4))
@torch.no_grad()
def test_hypotheses_and_scores_are_those_of_fairseq_on_each_sentence_alone(searched, part):
    family, model = searched
    task = methods.make_task(family)
    lengths_found = set()
    for case in range(part * BATCHES // 4, (part + 1) * BATCHES // 4):
        rng = random.Random(case)
        options, rows = random_options(rng), rng.randrange(1, 7)
        tokens, lengths = methods.sources(family, rows=rows, seed=case)
        sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
        generator = task.build_generator([model], Namespace(**options))
        assert type(generator) is Searcher
        found = task.inference_step(generator, [model], sample)
        for row, hypotheses in enumerate(found):
            expected = stock_search(model, task, options, tokens[row, : lengths[row]])
            assert len(hypotheses) == len(expected)
            for ours, theirs in zip(hypotheses, expected, strict=True):
                assert ours["tokens"].tolist() == theirs["tokens"].tolist(), (case, row, options)
                for score in ("score", "positional_scores"):
                    torch.testing.assert_close(ours[score], theirs[score], rtol=1e-5, atol=1e-5)
                lengths_found.add(len(ours["tokens"]))
    assert len(lengths_found) > 3


@torch.no_grad()
def test_what_is_fairseqs_alone_is_left_to_it(searched):
    """Two forced tokens; constraints and sampling go the same way."""
    family, model = searched
    task, options = methods.make_task(family), Namespace(beam=3, max_len_b=8)
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    forced = torch.tensor([[0, 7]]).repeat(len(tokens), 1)
    generator = task.build_generator([model], options)
    stock = task.build_generator([model], options, seq_gen_cls=SequenceGenerator)
    ours, theirs = (
        methods.token_lists(task.inference_step(one, [model], sample, forced)) for one in (generator, stock)
    )
    assert ours == theirs and all(hypothesis[:2] == [0, 7] for row in ours for hypothesis in row)
    sampled = task.build_generator([model], Namespace(beam=3, max_len_b=8, sampling=True))
    assert all(len(row) == 3 for row in task.inference_step(sampled, [model], sample))


@torch.no_grad()
def test_until_they_branch_hypotheses_are_computed_once_a_sentence(searched):
    family, model = searched
    task, rows = methods.make_task(family), []
    hook = model.decoder.output_projection.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    task.inference_step(task.build_generator([model], Namespace(beam=3, max_len_b=12)), [model], sample)
    hook.remove()
    single = 2 if family == "bart" else 1  # BART's first token is <s>
    assert rows[: single + 1] == [len(tokens)] * single + [3 * len(tokens)]
    assert sorted(rows[single:], reverse=True) == rows[single:] and rows[-1] < rows[single], "finished sentences leave"


@torch.no_grad()
def test_what_a_search_cannot_do_is_said(searched):
    family, model = searched
    task = methods.make_task(family)
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    with pytest.raises(UsageError, match="--min-len 9 exceeds the longest output, 5 tokens"):
        task.inference_step(task.build_generator([model], Namespace(beam=2, min_len=9, max_len_b=5)), [model], sample)
    damaged = copy.deepcopy(model)
    damaged.decoder.layers[0].fc1.weight.data.fill_(float("nan"))
    with pytest.raises(UsageError, match="no hypothesis has a score that is a number"):
        task.inference_step(task.build_generator([damaged], Namespace(beam=2, max_len_b=5)), [damaged], sample)


@torch.no_grad()
def test_very_many_hypotheses_copy_their_keys_and_stay_the_same(searched, monkeypatch):
    family, model = searched
    task = methods.make_task(family)
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    found = []
    for many in (16, 2):
        monkeypatch.setattr(beams, "MANY", many)
        generator = task.build_generator([model], Namespace(beam=4, max_len_b=12))
        found.append(methods.token_lists(task.inference_step(generator, [model], sample)))
    assert found[0] == found[1]


@torch.no_grad()
def test_another_librarys_model_is_searched_by_fairseq(tmp_path):
    """fairseq's own BART tells its attention the beam size, and computes nothing with one row per sentence."""
    task = tiny.make_task()
    model = BARTModel.build_model(tiny.make_args("full_bart_tiny"), task).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.3)
    tokens, lengths = methods.sources("bart")
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    found = [
        methods.token_lists(
            task.inference_step(
                task.build_generator([model], Namespace(beam=3, max_len_b=9), seq_gen_cls=kind), [model], sample
            )
        )
        for kind in (None, SequenceGenerator)
    ]
    assert found[0] == found[1]


@torch.no_grad()
def test_a_language_model_alone_is_searched_too(tmp_path):
    """Without a source it is not known which hypotheses belong together."""
    base = methods.make_base(tmp_path, "gpt2", scale=0.1)
    model = methods.build("full", "gpt2", base).eval()
    symbols = methods.make_task("gpt2").target_dictionary

    class Alone(nn.Module):
        """The decoder as fairseq's language models have it; without an incremental state if not `cached`."""

        def __init__(self, cached):
            super().__init__()
            self.cached, self.model = cached, model
            if cached:
                self.decoder = model.decoder

        def forward(self, tokens):
            return self.model.decoder(tokens)

        def get_normalized_probs(self, *args, **kwargs):
            return self.model.get_normalized_probs(*args, **kwargs)

        def max_decoder_positions(self):
            return 60

    prompts = torch.tensor([[7, 8, 9], [20, 21, 22]])
    sample = {"net_input": {"src_tokens": prompts, "src_lengths": torch.tensor([3, 3])}}
    found = []
    for cached in (True, False):
        generator = SequenceGenerator([Alone(cached)], symbols, beam_size=3, max_len_b=9)
        found.append(methods.token_lists(generator.generate([model], sample, prefix_tokens=prompts)))
    assert found[0] == found[1]


@torch.no_grad()
def test_a_forced_token_may_be_one_that_is_suppressed_elsewhere(tmp_path):
    base = methods.make_base(tmp_path, "bart", scale=0.05)
    model, task = methods.build("full", "bart", base).eval(), methods.make_task("bart")
    tokens, lengths = methods.sources("bart")
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    options = Namespace(beam=2, max_len_b=6, min_len=6)
    generator = task.build_generator([model], options, extra_gen_cls_kwargs={"tokens_to_suppress": ["<s>"]})
    for row in methods.token_lists(task.inference_step(generator, [model], sample)):
        assert all(hypothesis[0] == 0 and 0 not in hypothesis[1:] for hypothesis in row)
