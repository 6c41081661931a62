"""Prefix-tuned GPT-2 against somebody else's: transformers' GPT-2, fairseq's own language model and generator."""

import copy
import json
import random
import sys

import numpy as np
import pytest
import tiny
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.sequence_generator import SequenceGenerator
from safetensors.torch import load_file, save_file

from fairseq_prefix import checkpoint as files
from fairseq_prefix.criterion import PrefixCrossEntropyCriterion, verify_trainable
from fairseq_prefix.errors import UsageError
from fairseq_prefix.prefix import Prefix, SiteGeometry

POSITIONS = ("prefix", "infix")


def pairs(rows=4, seed=1, first=tiny.SPECIALS, last=tiny.SPECIALS + tiny.WORDS, longest=9):
    """Lists of (source, target), of different lengths, without `</s>`."""
    rng = random.Random(seed)
    words = range(first, last)
    return [
        tuple([rng.choice(words) for _ in range(rng.randint(1, longest))] for _ in ("source", "target"))
        for _ in range(rows)
    ]


def pad(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=1)


def inputs(examples):
    """(source, lengths, `</s>` target), as the task's batches have them."""
    lengths = torch.tensor([len(source) for source, _ in examples])
    return pad([source for source, _ in examples]), lengths, pad([[2, *target] for _, target in examples])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny.save_base(tmp_path_factory.mktemp("base"), arch="full_gpt2_tiny", decoder_layers=2))


def build(base, task=None, length=5, **options):
    options = {"decoder_layers": 2, "prefix_mid_dim": 16, **options}
    return tiny.build("prefix_gpt2_tiny", task, base_model=base, prefix_length=length, **options)


def strengthen(model):
    """Keys and values as large as the base's own."""
    shape = model.prefix.geometry["decoder"]
    model.prefix.set_output({"decoder": torch.randn(shape.length, shape.layers * 2 * shape.embed_dim)})
    return model.eval()


@pytest.fixture(scope="module", params=POSITIONS)
def model(base, request):
    torch.manual_seed(2)
    return strengthen(build(base, prefix_position=request.param))


# Numerics against transformers ---------------------------------------------------------------------------------------


def shuffled_dictionary(words):
    """As the dict.txt of GPT-2's BPE: its ids as words in another order, and symbols that no text contains."""
    symbols = Dictionary()
    for number in random.Random(0).sample(range(words), words):
        symbols.add_symbol(str(number))
    symbols.add_symbol("madeupword0000")
    return symbols


SHAPES = {
    "prefix_gpt2_tiny": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "prefix_gpt2_small": {"n_embd": 768, "n_layer": 2, "n_head": 12, "n_positions": 1024},
}


@pytest.fixture(scope="module", params=SHAPES)
def hugging_face(tmp_path_factory, request):
    """(a random GPT-2 of transformers, a function that builds ours from its folder, the dictionary)."""
    sys.modules.setdefault("torchaudio", None)  # transformers would load it, and it is not made for every torch
    import transformers

    words, shape = 101, SHAPES[request.param]
    config = transformers.GPT2Config(
        vocab_size=words, eos_token_id=words - 1, bos_token_id=words - 1, initializer_range=0.1, **shape
    )
    torch.manual_seed(3)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases and norms too
    folder = tmp_path_factory.mktemp("hugging_face")
    theirs.save_pretrained(folder)
    symbols = shuffled_dictionary(words)

    def ours(folder=folder, **options):
        options = {"prefix_length": 0, "decoder_layers": shape["n_layer"], **options}
        task = tiny.make_lm_task(symbols)
        return tiny.build(request.param, task, base_model=str(folder), **options).eval()

    ours.folder = folder
    return theirs, ours, symbols


def theirs_of(symbols, tokens):
    """Their ids of our tokens; `</s>` is `<|endoftext|>`, the last."""
    last = len(symbols) - 4 - 2  # less the specials and the made-up word; ids from 0
    return torch.tensor([last if token == 2 else int(symbols[token]) for token in tokens])


def columns(symbols):
    """Our column of each of their ids."""
    words = len(symbols) - 4 - 1
    return torch.tensor([symbols.index(str(number)) for number in range(words - 1)] + [2])


@torch.no_grad()
def test_logits_equal_transformers(hugging_face):
    theirs, ours, symbols = hugging_face
    model, examples = ours(), pairs(first=4, last=4 + 101)  # "100", the end's number, among them
    logits, _ = model(*inputs(examples))
    for row, (source, target) in enumerate(examples):
        text = theirs_of(symbols, [*source, 2, *target])
        expected = theirs(text[None]).logits[0, len(source) :]
        found = logits[row, : len(target) + 1]
        assert (found[:, columns(symbols)] - expected).abs().max() < 1e-4
        probabilities = found.softmax(-1)
        absent = [0, 1, 3, symbols.index("100"), symbols.index("madeupword0000")]
        assert probabilities[:, absent].max() == 0, "a symbol that GPT-2 does not have got a probability"


def cache_of(model):
    """The prefix as transformers takes it."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    for layer in range(len(model.decoder.layers)):
        cache.update(*model.prefix.key_value("decoder", layer), layer)
    return cache


@torch.no_grad()
def test_with_a_prefix_logits_equal_transformers_with_the_same_past(hugging_face):
    """transformers shifts positions by the length of the past, as prefix-tuning of GPT-2 does."""
    theirs, ours, symbols = hugging_face
    model = strengthen(ours(prefix_length=7))
    examples = pairs(first=4, last=100)
    logits, _ = model(*inputs(examples))
    for row, (source, target) in enumerate(examples):
        text = theirs_of(symbols, [*source, 2, *target])
        expected = theirs(text[None], past_key_values=cache_of(model)).logits[0, len(source) :]
        assert (logits[row, : len(target) + 1][:, columns(symbols)] - expected).abs().max() < 1e-4


@torch.no_grad()
def test_an_infix_is_a_past_between_source_and_target(hugging_face):
    from transformers.cache_utils import DynamicCache

    theirs, ours, symbols = hugging_face
    model = strengthen(ours(prefix_length=7, prefix_position="infix"))
    examples = pairs(first=4, last=100)
    logits, _ = model(*inputs(examples))
    for row, (source, target) in enumerate(examples):
        cache = DynamicCache()
        theirs(theirs_of(symbols, source)[None], past_key_values=cache)
        for layer in range(len(model.decoder.layers)):
            cache.update(*model.prefix.key_value("decoder", layer), layer)
        rest = theirs_of(symbols, [2, *target])[None]
        positions = torch.arange(rest.size(1))[None] + len(source) + 7
        expected = theirs(rest, past_key_values=cache, position_ids=positions).logits[0]
        assert (logits[row, : len(target) + 1][:, columns(symbols)] - expected).abs().max() < 1e-4
