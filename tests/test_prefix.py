"""The prefix by itself: sizes, evaluation, folding, starting values."""

import copy

import pytest
import torch

from fairseq_prefix.errors import UsageError
from fairseq_prefix.interfaces.family import SITES
from fairseq_prefix.methods.prefix import Prefix, SiteGeometry
from fairseq_prefix.methods.tuned import parse_sites

LARGE = {"layers": 12, "heads": 16, "head_dim": 64}


def prefix_of(length, reparam="mlp", mid_dim=8, dropout=0.0, sites=SITES):
    shape = SiteGeometry(length, layers=2, heads=4, head_dim=3)
    return Prefix(dict.fromkeys(sites, shape), reparam, mid_dim, dropout)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("length", "trained", "folded"), [(200, 62_130_528, 14_745_600), (100, None, 7_372_800), (5, None, 368_640)]
)
def test_sizes_are_the_originals_for_bart_large(length, trained, folded):
    with torch.device("meta"):
        prefix = Prefix({site: SiteGeometry(length, **LARGE) for site in SITES}, "mlp", mid_dim=800)
        flat = Prefix({site: SiteGeometry(length, **LARGE) for site in SITES}, "flat")
    assert prefix.folded_size == folded == count(flat)
    if trained:
        assert count(prefix) == trained


def test_keys_and_values_are_laid_out_by_layer_and_head():
    prefix = prefix_of(5, "flat")
    table = torch.arange(5 * 2 * 2 * 12.0).view(5, -1)  # P x (L*2*D)
    prefix.set_output(dict.fromkeys(SITES, table))
    key, value = prefix.key_value("cross", 1)
    assert key.shape == value.shape == (1, 4, 5, 3)
    # token 2, layer 1, head 3: the key's slice of row 2 begins after layer 0 (24 numbers) and three heads
    assert key[0, 3, 2].tolist() == table[2, 24 + 9 : 24 + 12].tolist()
    assert value[0, 3, 2].tolist() == table[2, 24 + 12 + 9 : 24 + 24].tolist()


@pytest.mark.parametrize("length", [1, 5, 8])
def test_mlp_starts_exactly_from_given_activations_if_it_is_wide_enough(length):
    torch.manual_seed(length)  # a square system may be badly conditioned
    prefix = prefix_of(length, mid_dim=8)
    targets = {site: torch.randn(length, 48) for site in SITES}
    prefix.set_output(targets)
    for site, table in prefix.folded().items():
        torch.testing.assert_close(table, targets[site], atol=1e-4, rtol=1e-4)


def test_mlp_starts_close_to_given_activations_if_it_is_narrow():
    prefix, target = prefix_of(20, mid_dim=8), torch.randn(20, 48)
    prefix.set_output(dict.fromkeys(SITES, target))
    error = (prefix.folded()["cross"] - target).norm()
    assert error < 0.9 * (target - target.mean(0)).norm()


def test_folded_prefix_gives_the_same_keys_and_values():
    prefix = prefix_of(6, dropout=0.5).eval()
    flat = prefix_of(6, "flat").eval()
    flat.set_output(prefix.folded())
    for site in SITES:
        for layer in (0, 1):
            for ours, theirs in zip(prefix.key_value(site, layer), flat.key_value(site, layer), strict=True):
                assert torch.equal(ours, theirs)


def test_evaluated_once_per_step_whatever_the_number_of_layers():
    prefix = prefix_of(6).train()
    calls = []
    prefix.sites["encoder"].up.register_forward_hook(lambda *_: calls.append(1))
    prefix.refresh()
    for layer in (0, 1):
        prefix.key_value("encoder", layer)
    assert len(calls) == 1
    prefix.refresh()
    assert len(calls) == 2  # the next step of an accumulated gradient needs a graph of its own


def test_a_stale_evaluation_is_never_used():
    prefix = prefix_of(6).eval()
    bias = prefix.sites["cross"].up.bias
    with torch.no_grad():
        before = prefix.key_value("cross", 0)[0].clone()
        bias.add_(1)
        torch.testing.assert_close(prefix.key_value("cross", 0)[0], before + 1)
        prefix.train()
        bias.data.add_(1)  # as fairseq's optimizers do
        prefix.eval()
        torch.testing.assert_close(prefix.key_value("cross", 0)[0], before + 2)
    assert prefix.key_value("cross", 0)[0].requires_grad  # not the one evaluated without a graph


def test_an_evaluation_under_autocast_is_not_used_without_it():
    prefix = prefix_of(6).eval()
    with torch.no_grad():
        expected = prefix.key_value("cross", 0)[0].clone()
        with torch.autocast("cpu", torch.bfloat16):
            assert prefix.key_value("cross", 0)[0].dtype == torch.bfloat16
        assert torch.equal(prefix.key_value("cross", 0)[0], expected)


def test_every_pass_in_evaluation_can_be_differentiated():
    prefix = prefix_of(6).eval()
    for _ in range(2):
        prefix.refresh()
        prefix.key_value("cross", 0)[0].sum().backward()


def test_dropout_in_training_only():
    prefix = prefix_of(50, dropout=0.5)
    assert (prefix.train()()["cross"] == 0).float().mean() > 0.3
    assert (prefix.eval()()["cross"] == 0).float().mean() < 0.01


def test_sites_of_length_zero_have_no_parameters():
    prefix = Prefix({"encoder": SiteGeometry(0, 2, 4, 3), "cross": SiteGeometry(3, 2, 4, 3)}, "flat")
    assert list(prefix.geometry) == ["cross"]
    assert prefix.key_value("encoder", 0) is None
    assert count(prefix) == 3 * 48


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stays_in_full_precision_when_the_model_is_halved(dtype):
    prefix, expected = prefix_of(6), prefix_of(6)
    expected.load_state_dict(prefix.state_dict())
    prefix.to(dtype)
    for ours, theirs in zip(prefix.eval().key_value("cross", 1), expected.eval().key_value("cross", 1), strict=True):
        assert torch.equal(ours, theirs)


def test_can_be_copied_after_use():
    prefix = prefix_of(3)
    prefix.key_value("cross", 0)
    assert torch.equal(copy.deepcopy(prefix).folded()["cross"], prefix.folded()["cross"])


def test_site_names():
    assert parse_sites("--prefix-sites", "cross, encoder", SITES) == ["encoder", "cross"]
    assert parse_sites("--prefix-sites", None, SITES) == list(SITES)
    with pytest.raises(UsageError, match="--prefix-sites: 'encodr' is none of encoder, decoder, cross"):
        parse_sites("--prefix-sites", "encodr", SITES)
