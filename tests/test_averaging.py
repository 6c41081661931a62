"""fairseq's averages of weights, and its other ways through a model's state."""

from argparse import Namespace

import methods
import pytest
import test_training
import torch
from fairseq import checkpoint_utils
from fairseq.models.ema import EMA
from torch import nn

from fairseq_prefix.errors import UsageError
from fairseq_prefix.files.checkpoint import describe
from fairseq_prefix.files.dictionary import ABSENT_SYMBOLS
from fairseq_prefix.files.metadata import METADATA_KEY

pytestmark = pytest.mark.usefixtures("hooks")
ALL = ("full", "prefix", *methods.METHODS)
DECAY = 0.75


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {f: methods.make_base(tmp_path_factory.mktemp(f"base_{f}"), f, scale=0.1) for f in methods.FAMILIES}


def change(model, seed):
    """As an update of a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("family", methods.FAMILIES)
def test_an_exponential_average_is_that_of_what_is_trained_and_loads(bases, family, method, fp32):
    model = methods.build(method, family, bases[family])
    config = {"ema_decay": DECAY, "ema_start_update": 0, "ema_seed_model": None, "ema_update_freq": 1, "ema_fp32": fp32}
    average = EMA(model, Namespace(**config))
    expected = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for seed in range(3):
        change(model, seed)
        average.step(model)
        current = dict(model.named_parameters())
        expected = {name: DECAY * p + (1 - DECAY) * current[name].detach() for name, p in expected.items()}
    found = average.get_model().state_dict()
    for name, parameter in expected.items():
        if method != "full" or name != model.family.embedding:  # fairseq averages tied weights once for each name
            torch.testing.assert_close(found[name], parameter, rtol=1e-5, atol=1e-6)
    resumed = EMA(methods.build(method, family, bases[family]), Namespace(**config))
    resumed.restore(found)
    other = methods.build(method, family, bases[family])
    other.load_state_dict(found, strict=True)
    data = methods.inputs(family)
    with torch.no_grad():
        outputs = [each.eval()(*data)[0] for each in (average.get_model(), resumed.get_model(), other)]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], model.eval()(*data)[0])


def average_checkpoints(states):
    """As fairseq's scripts/average_checkpoints.py, which is in no installed package."""
    total = {name: tensor.clone() for name, tensor in states[0].items()}
    for state in states[1:]:
        for name, tensor in state.items():
            total[name] += tensor.float() if tensor.dtype == torch.half else tensor
    for tensor in total.values():
        if tensor.is_floating_point():
            tensor.div_(len(states))
        else:
            tensor //= len(states)
    return total


@pytest.mark.parametrize("family", methods.FAMILIES)
def test_whole_models_can_be_averaged(bases, family):
    models = [methods.build("full", family, bases[family]) for _ in range(3)]
    for seed, model in enumerate(models):
        change(model, seed)
        if family == "gpt2":
            model.decoder.absent_symbols[1] = True
    averaged = methods.build("full", family, bases[family])
    averaged.load_state_dict(average_checkpoints([model.state_dict() for model in models]), strict=True)
    for name, parameter in averaged.named_parameters():
        mean = sum(dict(model.named_parameters())[name].detach() for model in models) / 3
        torch.testing.assert_close(parameter.detach(), mean)
    if family == "gpt2":
        assert averaged.decoder.absent_symbols.tolist() == models[0].decoder.absent_symbols.tolist()
        assert averaged(*methods.inputs(family))[0][..., 1].eq(-1e4).all()


def test_checkpoints_whose_mask_is_boolean_are_still_read(bases):
    model = methods.build("full", "gpt2", bases["gpt2"])
    state = model.state_dict()
    state[ABSENT_SYMBOLS] = torch.arange(len(state[ABSENT_SYMBOLS])) == 1
    model.load_state_dict(state, strict=True)
    assert model.decoder.absent_symbols.nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("method", ["prefix", *methods.METHODS])
@pytest.mark.parametrize("family", methods.FAMILIES)
def test_averages_of_prefixes_and_the_like_are_refused(bases, family, method):
    models = [methods.build(method, family, bases[family]) for _ in range(2)]
    with pytest.raises(UsageError, match="cannot be averaged"):
        models[0].load_state_dict(average_checkpoints([model.state_dict() for model in models]))


@pytest.mark.parametrize("method", ["prefix", *methods.METHODS])
@pytest.mark.parametrize("family", methods.FAMILIES)
def test_a_model_can_be_a_part_of_another_module(bases, family, method):
    """As in torch's DistributedDataParallel: its state has the names of a part, and is verified when it is loaded."""
    model = methods.strengthen(methods.build(method, family, bases[family]))
    state, alone = nn.ModuleList([nn.Linear(2, 2), model]).state_dict(), model.state_dict()
    assert {name for name in state if name[0] == "1"} == {f"1.{name}" for name in alone}
    assert all(torch.equal(state[f"1.{name}"], tensor) for name, tensor in alone.items())
    kept = model.state_dict(keep_vars=True)
    assert all(kept[name] is parameter for name, parameter in model.named_parameters() if name in kept)
    destination = {"other": 1}
    assert model.state_dict(destination, "a.b.") is destination
    assert destination.keys() == {"other", *(f"a.b.{name}" for name in alone)}
    fresh = methods.build(method, family, bases[family]).eval()
    pair = nn.ModuleList([nn.Linear(2, 2), fresh])
    pair.load_state_dict(state)
    assert torch.equal(fresh(*methods.inputs(family))[0], model(*methods.inputs(family))[0])
    del state[f"1.{METADATA_KEY}"]
    with pytest.raises(UsageError, match="expected the checkpoint of a prefix"):
        pair.load_state_dict(state)


@pytest.mark.slow
def test_a_training_stores_resumes_and_gives_away_its_average(tmp_path):
    world = test_training.make_world(tmp_path, "full_bart_tiny")
    average = ("--store-ema", "--ema-decay", 0.5, "--ema-fp32")
    plain, whole, parts = (tmp_path / name for name in ("plain", "whole", "parts"))
    test_training.command(*test_training.training(world, plain, "--max-update", 10))
    test_training.command(*test_training.training(world, whole, *average))
    for updates in (10, 20):
        test_training.command(*test_training.training(world, parts, *average, "--max-update", updates))
    undisturbed, resumed = (
        torch.load(folder / "checkpoint_last.pt", weights_only=True)["extra_state"]["ema"] for folder in (whole, parts)
    )
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    begun = ("--finetune-from-model", plain / "checkpoint_last.pt", "--no-save")
    output = test_training.command(*test_training.training(world, tmp_path / "begun", *average, *begun))
    assert "Loading EMA from checkpoint" in output
    checkpoint_utils.save_ema_as_checkpoint(str(whole / "checkpoint_last.pt"), str(tmp_path / "average.pt"))
    assert len(test_training.generate(world, tmp_path / "average.pt")) == 21
    assert describe(str(tmp_path / "average.pt"))["kind"] == "prefix checkpoint"
