"""Attention as functions: against a softmax written out, for every way in which queries share keys."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fairseq_prefix.attention.attend import KeyBlock, attend, attend_to_parts, join_heads, split_heads

SENTENCES, LENGTH, KEYS, PREFIX, WIDTH = 3, 5, 7, 4, 8
SHARING = [(beams, heads, key_heads) for beams in (1, 2) for heads, key_heads in ((4, 4), (4, 2), (6, 1))]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def copied(x, rows, heads=None):
    """Keys or a mask with a row of its own for each row of queries and, if asked, a head for each query head."""
    x = x.expand(max(x.size(0), SENTENCES), *x.shape[1:]) if x.size(0) == 1 else x
    x = x.repeat_interleave(rows // x.size(0), dim=0)
    return x if heads is None else x.repeat_interleave(heads // x.size(1), dim=1)


def reference(q, k, v, visible=None, added=None):
    """The softmax, one row and one head at a time; keys have as many rows and heads as queries."""
    y = torch.empty_like(q)
    for row, head in itertools.product(range(q.size(0)), range(q.size(1))):
        scores = q[row, head] @ k[row, head].T / WIDTH**0.5  # T x K
        if added is not None:
            scores = scores + added[row]
        if visible is not None:
            scores = scores.masked_fill(~visible[row], float("-inf"))
        weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        y[row, head] = weights @ v[row, head]
    return y


def tensors(beams, heads, key_heads, keys=KEYS):
    q = draw(SENTENCES * beams, heads, LENGTH, WIDTH)
    k, v = (draw(SENTENCES, key_heads, keys, WIDTH, seed=seed) for seed in (1, 2))
    return q, k, v


def prefix_of(rows, key_heads):
    return tuple(draw(rows, key_heads, PREFIX, WIDTH, seed=seed) for seed in (3, 4))


def with_prefix(prefix, k, v):
    return (torch.cat([p.expand(SENTENCES, -1, -1, -1), x], dim=2) for p, x in zip(prefix, (k, v), strict=True))


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("prefix_rows", [None, 1, SENTENCES])
def test_beams_and_grouped_heads_attend_as_if_each_query_had_its_own_copy_of_the_keys(sharing, prefix_rows):
    q, k, v = tensors(*sharing)
    prefix = None if prefix_rows is None else prefix_of(prefix_rows, sharing[2])
    y = attend(q, k, v, prefix)
    if prefix is not None:
        k, v = with_prefix(prefix, k, v)
    assert torch.allclose(y, reference(q, copied(k, len(q), sharing[1]), copied(v, len(q), sharing[1])))


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("rows, queries", [(None, LENGTH), (SENTENCES, LENGTH), (SENTENCES, 1)])
@pytest.mark.parametrize("columns", [KEYS, PREFIX + KEYS])
def test_masks_hide_keys_and_one_over_the_keys_alone_leaves_the_prefix_visible(sharing, kind, rows, queries, columns):
    q, k, v = tensors(*sharing)
    prefix = prefix_of(1, sharing[2])
    mask = draw(rows or 1, queries, columns, seed=9)
    mask = mask > -0.8 if kind == "boolean" else mask
    if kind == "boolean":
        mask[..., -1] = True
    y = attend(q, k, v, prefix, mask[0] if rows is None else mask[:, None])
    k, v = with_prefix(prefix, k, v)
    full = F.pad(mask, (PREFIX + KEYS - columns, 0), value=kind == "boolean")
    full = copied(full, len(q)).expand(-1, LENGTH, -1)
    masks = {"visible": full} if kind == "boolean" else {"added": full}
    assert torch.allclose(y, reference(q, copied(k, len(q), sharing[1]), copied(v, len(q), sharing[1]), **masks))


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("has_prefix", [False, True])
def test_causal_queries_see_the_prefix_and_the_keys_up_to_their_own(sharing, has_prefix):
    q, k, v = tensors(*sharing, keys=LENGTH)
    prefix = prefix_of(1, sharing[2]) if has_prefix else None
    y = attend(q, k, v, prefix, causal=True)
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if has_prefix:
        k, v = with_prefix(prefix, k, v)
        visible = F.pad(visible, (PREFIX, 0), value=True)
    k, v = (copied(x, len(q), sharing[1]) for x in (k, v))
    assert torch.allclose(y, reference(q, k, v, visible.expand(len(q), -1, -1)))


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads_are_those_of_torchs_kernel(causal):
    q, k, v = tensors(1, 6, 2, keys=LENGTH)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert torch.allclose(attend(q, k, v, causal=causal), expected)


def test_without_sharing_it_is_torchs_kernel_bit_for_bit():
    q, k, v = (x.float() for x in tensors(1, 4, 4, keys=LENGTH))
    assert torch.equal(attend(q, k, v, causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (4, 2), (6, 1)])
def test_parts_of_any_number_of_rows_share_one_softmax(heads, key_heads):
    """Prefix: one row. Source: a row per sentence, some keys hidden. Table: a row per sentence, others hidden from each
    hypothesis. Own: a row per hypothesis.
    """
    beams = 2
    rows = SENTENCES * beams
    q = draw(rows, heads, 1, WIDTH)
    sizes = {"prefix": (1, 4), "source": (SENTENCES, 7), "table": (SENTENCES, 6), "own": (rows, 3)}
    tables = {
        name: [draw(count, key_heads, keys, WIDTH, seed=seed) for seed in (1, 2)]
        for name, (count, keys) in sizes.items()
    }
    hidden = {"source": draw(SENTENCES, 7, seed=5) > 0.3, "table": draw(SENTENCES, beams, 6, seed=6) > 0.3}
    y = attend_to_parts(q, [KeyBlock(*pair, hidden.get(name)) for name, pair in tables.items()])
    k, v = (torch.cat([copied(pair[i], rows, heads) for pair in tables.values()], dim=2) for i in (0, 1))
    visible = torch.ones(rows, 1, k.size(2), dtype=torch.bool)
    visible[:, 0, 4:11] = ~copied(hidden["source"], rows)
    visible[:, 0, 11:17] = ~hidden["table"].flatten(0, 1)
    # The scores are summed in fp32, as in a search.
    assert torch.allclose(y, reference(q, k, v, visible), atol=1e-6)


def test_dropout_drops_attention_weights_in_both_functions():
    q, k, v = tensors(1, 4, 2)
    v = torch.ones_like(v)  # attention without dropout gives exactly ones
    for y in (attend(q, k, v, dropout=0.5), attend_to_parts(q[:, :, :1], [KeyBlock(k, v)], 0.5)):
        assert y.std() > 0.1 and 0.7 < y.mean() < 1.3
    assert torch.allclose(attend_to_parts(q[:, :, :1], [KeyBlock(k, v)]), torch.ones(()).double(), atol=1e-6)


def test_heads_are_split_and_joined():
    x = draw(LENGTH, SENTENCES, 4 * WIDTH)
    split = split_heads(x, 4)
    assert split.shape == (SENTENCES, 4, LENGTH, WIDTH) and torch.equal(split[1, 2, 3], x[3, 1, 16:24])
    assert split.data_ptr() == x.data_ptr() and torch.equal(join_heads(split), x)
