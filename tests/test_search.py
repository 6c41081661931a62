"""What is replaced of fairseq's beam search: the n-gram block, beside transformers' own; linear layers on the CPU."""

import copy
import random
import sys
from argparse import Namespace

import pytest
import tiny
import torch
from torch import nn

from fairseq_prefix import linear
from fairseq_prefix.linear import FrozenLinear
from fairseq_prefix.search import NGramBlock

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
