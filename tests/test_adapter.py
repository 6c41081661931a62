"""Adapters against transformers' blocks with the same arithmetic written out behind them."""

import copy

import methods
import pytest
import test_bart
import test_gpt2
import tiny
import torch

from fairseq_prefix.methods.adapter import Adapter, adapter_size

bart_of_transformers = test_bart.hugging_face
gpt2_of_transformers = test_gpt2.hugging_face


def written_out(model, name):
    """x + up(relu(down(norm(x)))), from the model's state by name."""
    w = {key.removeprefix(f"{name}.adapter."): value for key, value in model.state_dict().items()}

    def adapter(x):
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        y = y * w["norm.weight"] + w["norm.bias"]
        y = (y @ w["down.weight"].T + w["down.bias"]).clamp(min=0)
        return x + y @ w["up.weight"].T + w["up.bias"]

    return adapter


def insert(blocks, model, side):
    """Behind each of transformers' blocks."""
    for number, block in enumerate(blocks):
        adapter = written_out(model, f"{side}.layers.{number}")

        def after(_, __, output, adapter=adapter):
            return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)

        block.register_forward_hook(after)


@torch.no_grad()
@pytest.mark.parametrize("gpt2_of_transformers", ["prefix_gpt2_tiny"], indirect=True)
def test_gpt2_equals_transformers_with_adapters_behind_its_blocks(gpt2_of_transformers):
    theirs, ours, symbols = gpt2_of_transformers
    theirs = copy.deepcopy(theirs)
    model = tiny.build(
        "adapter_gpt2_tiny",
        tiny.make_lm_task(symbols),
        base_model=str(ours.folder),
        max_target_positions=256,
        adapter_dim=8,
    )
    methods.strengthen(model)
    insert(theirs.transformer.h, model, "decoder")
    examples = test_gpt2.pairs(first=4, last=100)
    logits, _ = model(*test_gpt2.inputs(examples))
    for row, (source, target) in enumerate(examples):
        expected = theirs(test_gpt2.theirs_of(symbols, [*source, 2, *target])[None]).logits[0, len(source) :]
        found = logits[row, : len(target) + 1][:, test_gpt2.columns(symbols)]
        assert (found - expected).abs().max() < 2e-4


@torch.no_grad()
def test_bart_equals_transformers_with_adapters_behind_its_layers(bart_of_transformers):
    theirs, folder = bart_of_transformers
    theirs = copy.deepcopy(theirs).double()  # in fp32 strong adapters amplify its rounding to 1e-3
    model = methods.strengthen(tiny.build("adapter_bart_tiny", base_model=folder, adapter_dim=8)).double()
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.activation_fn = torch.nn.functional.gelu  # fairseq's goes through fp32, as its softmax
    for side in ("encoder", "decoder"):
        insert(getattr(theirs.model, side).layers, model, side)
    tokens, lengths, previous = tiny.batch()
    expected = theirs(tokens, attention_mask=tokens.ne(1), decoder_input_ids=previous).logits
    assert (model(tokens, lengths, previous)[0] - expected).abs().max() < 1e-4


def test_a_fresh_adapter_is_the_identity_and_learns():
    adapter, x = Adapter(16, 4), torch.randn(3, 2, 16)
    assert torch.equal(adapter(x), x)
    adapter(x).square().sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0
    assert adapter.down.weight.std() < 0.05
    assert sum(parameter.numel() for parameter in adapter.parameters()) == adapter_size(16, 4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_in_full_precision_whatever_the_base(dtype):
    adapter = Adapter(16, 4)
    torch.nn.init.normal_(adapter.up.weight)
    x = torch.randn(3, 16)
    half = copy.deepcopy(adapter).to(dtype)
    assert half.up.weight.dtype == torch.float32 and half(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(half(x.to(dtype)).float(), adapter(x.to(dtype).float()), atol=0.05, rtol=0.01)
