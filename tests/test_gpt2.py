"""Prefix-tuned GPT-2 against somebody else's: transformers' GPT-2, fairseq's own language model and generator."""

import copy
import json
import random
import re
import shutil
import sys

import pytest
import test_training
import tiny
import torch
from conftest import REPOSITORY
from fairseq.data import Dictionary
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from safetensors.torch import load_file, save_file

from fairseq_prefix.__main__ import main
from fairseq_prefix.attention.beams import ROOM, Beams
from fairseq_prefix.errors import UsageError
from fairseq_prefix.files.checkpoint import configuration, write_checkpoint
from fairseq_prefix.files.dictionary import ABSENT_SYMBOLS, reordered_rows
from fairseq_prefix.interfaces.family import Base
from fairseq_prefix.methods.prefix import Prefix, SiteGeometry
from fairseq_prefix.toolkit.criterion import PrefixCrossEntropyCriterion, verify_trainable

POSITIONS = ("prefix", "infix")
LM = ("--task", "conditional_lm", "--arch", "prefix_gpt2_tiny", "--sentence-avg")


def pairs(rows=4, seed=1, first=tiny.SPECIALS, last=tiny.SPECIALS + tiny.WORDS, longest=9):
    """Lists of (source, target), of different lengths, without `</s>`."""
    rng = random.Random(seed)
    words = range(first, last)
    return [
        tuple([rng.choice(words) for _ in range(rng.randint(1, longest))] for _ in ("source", "target"))
        for _ in range(rows)
    ]


def pad(rows):
    rows = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)


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
        for name, parameter in theirs.named_parameters():
            if "wte" not in name:  # biases and norms too; tied embeddings would repeat the last token
                parameter.add_(0.1 * torch.randn_like(parameter))
        theirs.transformer.wte.weight[-1] *= 2  # so that some texts end
    folder = tmp_path_factory.mktemp("hugging_face")
    theirs.save_pretrained(folder)
    symbols = shuffled_dictionary(words)

    def ours(folder=folder, **options):
        sizes = {"decoder_layers": shape["n_layer"], "max_target_positions": shape["n_positions"]}
        options = {"prefix_length": 0, **sizes, **options}
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


@pytest.mark.parametrize("hugging_face", ["prefix_gpt2_tiny"], indirect=True)
def test_bin_safetensors_and_names_with_and_without_prefix_are_the_same_base(hugging_face, tmp_path):
    theirs, ours, symbols = hugging_face
    variants = {}
    raw = load_file(ours.folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in raw.items()}
    whole = {**theirs.state_dict(), "transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9).tril()}  # of older versions
    for name, write in {
        "bare": lambda folder: save_file(bare, folder / "model.safetensors"),
        "bin": lambda folder: torch.save(whole, folder / "pytorch_model.bin"),
    }.items():
        variants[name] = tmp_path / name
        variants[name].mkdir()
        theirs.config.save_pretrained(variants[name])
        write(variants[name])
    archive = tmp_path / "archive"
    archive.mkdir()
    torch.save({"model": ours().decoder.state_dict(prefix="decoder.")}, archive / "model.pt")
    symbols.save(str(archive / "dict.txt"))
    fingerprints = {ours(folder=folder).base_fingerprint for folder in (*variants.values(), archive, ours.folder)}
    assert len(fingerprints) == 1


def edited(folder, target, config=None, change=None):
    """A copy of a Hugging Face folder with another config.json and other weights."""
    target.mkdir()
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (target / "config.json").write_text(json.dumps(settings))
    raw = load_file(folder / "model.safetensors")
    if change:
        change(raw)
    save_file({name: tensor.contiguous() for name, tensor in raw.items()}, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({"model_type": "gpt_neo"}, None, "model_type is 'gpt_neo', but only 'gpt2' is supported"),
        ({"activation_function": "relu"}, None, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, None, "scale_attn_by_inverse_layer_idx is True"),
        ({"eos_token_id": 50256}, None, "eos_token_id is 50256, but there are 101 embeddings"),
        ({"n_head": 8}, None, "trained with --decoder-attention-heads 8, but --arch prefix_gpt2_tiny has 4"),
        ({}, lambda raw: raw.pop("transformer.wpe.weight"), "hold no wte and wpe; this is not a GPT-2"),
        ({}, lambda raw: raw.update({"lm_head.weight": torch.zeros(101, 128)}), "only tied embeddings are supported"),
        ({}, lambda raw: raw.pop("transformer.ln_f.bias"), "lacks decoder.layer_norm.bias"),
        ({}, lambda raw: raw.pop("transformer.h.1.mlp.c_fc.weight"), "lacks decoder.layers.1.fc1.weight"),
        ({}, lambda raw: raw.update({"transformer.h.9.ln_1.bias": torch.zeros(128)}), "has no place for"),
        ({}, lambda raw: raw.update({"transformer.wpe.weight": torch.zeros(9, 128)}), "is 11x128, but .* 258x128"),
        (
            {},
            lambda raw: raw.update({"transformer.wte.weight": torch.zeros(120, 128)}),
            "has 120 embeddings, but the dictionary of the data lacks the token 101; binarise the data with",
        ),
    ],
)
@pytest.mark.parametrize("hugging_face", ["prefix_gpt2_tiny"], indirect=True)
def test_a_hugging_face_folder_that_does_not_fit_is_refused_in_one_sentence(
    hugging_face, tmp_path, config, change, message
):
    _, ours, _ = hugging_face
    with pytest.raises(UsageError, match=message):
        ours(folder=edited(ours.folder, tmp_path / "edited", config, change))


def test_a_base_of_the_other_family_is_refused(base, tmp_path):
    with pytest.raises(UsageError, match="is not a fairseq BART checkpoint .it has no encoder.embed_tokens.weight"):
        tiny.build("prefix_bart_tiny", base_model=base)
    with pytest.raises(UsageError, match="is not a fairseq GPT-2 checkpoint"):
        build(str(tiny.save_base(tmp_path)))


def test_the_dictionary_of_the_real_bpe_covers_the_vocabulary(shared_data):
    """Every id of GPT-2's is a symbol of the dict.txt that fairseq has for its BPE; all but the rest can be put out."""
    symbols = Dictionary.load(str(shared_data("gpt2_bpe/dict.txt")))
    rows = {str(number): number for number in range(50257)} | {"</s>": 50256, "<s>": 50256}
    base = Base(None, {}, None, {}, rows)
    embedding = torch.arange(50257.0)[:, None]
    placed, absent = reordered_rows(embedding, base, symbols)
    assert (~absent).sum() == 50257
    assert sorted(placed[~absent, 0].tolist()) == list(range(50257))
    assert placed[symbols.eos(), 0] == 50256 and not absent[symbols.eos()]


# Against fairseq ------------------------------------------------------------------------------------------------------


def stock(base):
    """fairseq's own language model with the base's weights."""
    state = torch.load(f"{base}/model.pt", weights_only=True)["model"]
    args = tiny.make_args("full_gpt2_tiny", decoder_layers=2)
    model = TransformerLanguageModel.build_model(args, tiny.make_lm_task())
    model.load_state_dict({name: tensor for name, tensor in state.items() if name != ABSENT_SYMBOLS})
    return model.eval()


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080), ("xl", 1_557_611_200)],
)
def test_sizes_are_gpt2s(size, parameters):
    task = tiny.make_lm_task(tiny.dictionary(mask=False, words=50257 - tiny.SPECIALS))
    with torch.device("meta"):
        model = tiny.build(f"full_gpt2_{size}", task)
    before_the_first = 2 * model.decoder.embed_dim  # rows of fairseq's table of positions
    assert model.base_parameters - before_the_first == parameters


@torch.no_grad()
def test_without_a_prefix_it_is_fairseqs_language_model(base):
    ours, theirs = tiny.build("full_gpt2_tiny", base_model=base, decoder_layers=2).eval(), stock(base)
    for source, target in pairs():
        text = torch.tensor([[*source, 2, *target]])
        torch.testing.assert_close(ours(text)[0], theirs(text)[0], atol=1e-4, rtol=1e-4)


def test_zero_length_prefix_is_the_base_bit_for_bit(base):
    zero, whole = build(base, length=0).eval(), tiny.build("full_gpt2_tiny", base_model=base, decoder_layers=2).eval()
    data = inputs(pairs())
    assert torch.equal(zero(*data)[0], whole(*data)[0])
    assert zero.folded_parameters == 0 and zero.declared_parameters == set()
    assert generate(zero, 3, pairs()) == generate(whole, 3, pairs())


@torch.no_grad()
def test_rows_share_a_batch_without_influence(model):
    examples = pairs(rows=6)
    together, _ = model(*inputs(examples))
    for row, example in enumerate(examples):
        alone, _ = model(*inputs([example]))
        torch.testing.assert_close(together[row, : len(example[1]) + 1], alone[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_source_does_not_see_an_infix_but_sees_a_prefix(base):
    """What the source reads differs with the prefix, and not with the infix; what the target reads does with both."""
    source, lengths, _ = inputs(pairs())
    for position in POSITIONS:
        first, second = (strengthen(build(base, prefix_position=position)) for _ in range(2))
        states = [model.decoder.read(source, lengths) for model in (first, second)]
        assert torch.equal(states[0][:, 0], states[1][:, 0]) is (position == "infix")
        logits = [model(*inputs(pairs()))[0] for model in (first, second)]
        assert (logits[0] - logits[1]).abs().max() > 0.1


# The prefix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "trained", "folded"), [(5, 25_744_896, 245_760), (10, 25_750_016, 491_520)])
def test_sizes_of_the_prefix_are_the_originals_for_gpt2_medium(length, trained, folded):
    """P*1024 + (1024+1)*512 + (512+1)*24*2*1024, and P*24*2*1024."""
    assert trained == length * 1024 + (1024 + 1) * 512 + (512 + 1) * 24 * 2 * 1024
    args = tiny.make_args("prefix_gpt2_medium", prefix_length=length)
    assert args.prefix_mid_dim == 512
    shape = SiteGeometry(
        length,
        layers=args.decoder_layers,
        heads=args.decoder_attention_heads,
        head_dim=args.decoder_embed_dim // args.decoder_attention_heads,
    )
    with torch.device("meta"):
        prefix = Prefix({"decoder": shape}, args.prefix_reparam, args.prefix_mid_dim)
    assert sum(parameter.numel() for parameter in prefix.parameters()) == trained
    assert prefix.folded_size == folded


@torch.no_grad()
@pytest.mark.parametrize("reparam", ["mlp", "flat"])
@pytest.mark.parametrize("length", [2, 3, 8])  # shorter than the words, equal, longer
def test_a_prefix_of_real_words_acts_like_the_words(base, length, reparam):
    options = {"prefix_init": "words", "prefix_init_text": "w5 w6 w7", "prefix_reparam": reparam}
    model, bare = build(base, length=length, **options).eval(), build(base, length=0).eval()
    words = [9, 10, 11, 9, 10, 11, 9, 10][:length]
    for source, target in pairs():
        found, _ = model(*inputs([(source, target)]))
        expected, _ = bare(*inputs([(words + source, target)]))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_real_words_fill_a_prefix_longer_than_the_positions(base):
    model = build(base, length=600, prefix_init="words", prefix_init_text="w5 w6 w7", prefix_reparam="flat")
    table = model.prefix.folded()["decoder"]
    assert torch.equal(table[512:], table[:88]) and not torch.equal(table[3], table[0])


def gradients(model):
    model.train()
    logits = model(*inputs(pairs()))[0]
    logits.log_softmax(-1)[..., 7].sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("position", POSITIONS)
def test_gradients_reach_the_whole_prefix_and_nothing_else(base, position):
    plain, saving = (
        build(base, prefix_position=position, checkpoint_activations=checkpointing) for checkpointing in (False, True)
    )
    saving.prefix.load_state_dict(plain.prefix.state_dict())
    expected, found = gradients(plain), gradients(saving)
    assert expected.keys() == found.keys() == plain.declared_parameters
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize(("switch", "varies"), [(None, False), ("on", True)])
def test_base_dropout_is_off_unless_asked_for(base, switch, varies):
    options = {"base_dropout": switch} if switch else {}
    model = build(base, dropout=0.3, **options).train()
    data = inputs(pairs())
    assert torch.equal(model(*data)[0], model(*data)[0]) is not varies


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_model": None}, "requires --base-model"),
        ({"prefix_length": -1}, "expected 0 or more"),
        ({"decoder_layerdrop": 0.1}, "--decoder-layerdrop is not supported"),
        ({"decoder_layers": 4}, "lacks decoder.layers.2"),
    ],
)
def test_wrong_options_are_one_sentence(base, options, message):
    with pytest.raises(UsageError, match=message):
        tiny.build("prefix_gpt2_tiny", **{"base_model": base, "decoder_layers": 2, **options})


def test_the_tasks_are_not_mixed_up(base, tmp_path):
    bart = tiny.make_args("prefix_bart_tiny", base_model=str(tiny.save_base(tmp_path)), prefix_length=2)
    with pytest.raises(UsageError, match="has an encoder; pass --task conditional_generation"):
        tiny.make_lm_task(tiny.dictionary()).build_model(bart)
    with pytest.raises(UsageError, match="reads source and target as one text; pass --task conditional_lm"):
        build(base, tiny.make_task(tiny.dictionary(mask=False)))
    whole = tiny.make_args("full_gpt2_tiny", base_model=base, decoder_layers=2)
    with pytest.raises(UsageError, match="reads source and target as one text; pass --task conditional_lm"):
        tiny.make_task(tiny.dictionary(mask=False)).build_model(whole)
    symbols = tiny.dictionary(mask=False)
    translation = TranslationTask(TranslationConfig(), symbols, symbols)  # it pads on the left
    with pytest.raises(UsageError, match="reads source and target as one text; pass --task conditional_lm"):
        translation.build_model(whole)


# Loss -----------------------------------------------------------------------------------------------------------------


def sample(examples):
    source, lengths, previous = inputs(examples)
    target = pad([[*target, 2] for _, target in examples])
    net_input = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(1).sum()), "nsentences": len(target)}


def criterion_of(sentence_avg=False, label_smoothing=0.0):
    return PrefixCrossEntropyCriterion(tiny.make_lm_task(), sentence_avg=sentence_avg, label_smoothing=label_smoothing)


@torch.no_grad()
def test_loss_is_that_of_the_target_alone(model):
    examples = pairs()
    loss, size, log = criterion_of()(model, sample(examples))
    expected = 0.0
    for source, target in examples:
        text = torch.tensor([[*source, 2, *target]])
        hidden = model.decoder.read(text, torch.tensor([len(source)]))
        scores = model.decoder.output_layer(hidden)[0].log_softmax(-1)
        expected -= scores[torch.arange(len(source), text.size(1)), torch.tensor([*target, 2])].sum()
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)
    assert size == log["ntokens"] == sum(len(target) + 1 for _, target in examples)


def test_sentence_avg_is_the_sum_per_sentence_and_the_mean_of_sentences(model):
    """The original's objective_mode 1: what divides the loss is the number of sentences."""
    data = sample(pairs())
    loss, size, log = criterion_of(sentence_avg=True)(model, data)
    assert size == 4 and log["ntokens"] == data["ntokens"]
    assert torch.equal(loss, criterion_of()(model, data)[0])


@torch.no_grad()
@pytest.mark.parametrize("hugging_face", ["prefix_gpt2_tiny"], indirect=True)
def test_label_smoothing_leaves_out_symbols_that_the_base_does_not_have(hugging_face):
    _, ours, symbols = hugging_face
    model, data = ours(prefix_length=3), sample(pairs(first=4, last=100))
    index = torch.full((len(symbols),), -100)
    index[columns(symbols)] = torch.arange(101)
    index[1] = -100  # padding
    logits = model(**data["net_input"])[0][..., columns(symbols)].flatten(0, 1)
    target = index[data["target"]].flatten()
    alike = 0.1 * 101 / 100  # fairseq spreads epsilon over V-1 symbols, and torch over all V
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="sum", label_smoothing=alike)
    torch.testing.assert_close(criterion_of(label_smoothing=0.1)(model, data)[0], expected, atol=1e-3, rtol=1e-5)


def test_the_frozen_base_is_guarded(base):
    model = build(base)
    assert verify_trainable(model) == sum(parameter.numel() for parameter in model.prefix.parameters())
    model.decoder.layers[1].fc1.bias.requires_grad_(True)
    with pytest.raises(UsageError, match="decoder.layers.1.fc1.bias would be trained"):
        verify_trainable(model)
    whole = tiny.build("full_gpt2_tiny", base_model=base, decoder_layers=2)
    assert verify_trainable(whole) == whole.base_parameters == whole.folded_parameters


# Decoding -------------------------------------------------------------------------------------------------------------


def searching(model, beam, **options):
    options = {"max_len_b": 12, **options}
    return SequenceGenerator([model], tiny.make_lm_task().target_dictionary, beam_size=beam, **options)


def generate(model, beam, examples, **options):
    """Hypotheses of every row, best first, as lists of tokens."""
    source, lengths, _ = inputs(examples)
    data = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    return [[h["tokens"].tolist() for h in row] for row in searching(model, beam, **options).generate([model], data)]


class Uncached(torch.nn.Module):
    """One row for fairseq's stock generator, without any cache: each step reads prefix, source and target anew."""

    def __init__(self, model, source):
        super().__init__()
        self.model, self.source = model, torch.tensor(source, dtype=torch.long)

    def forward(self, tokens):
        rows = tokens.size(0)
        return self.model(self.source.repeat(rows, 1), torch.full((rows,), len(self.source)), tokens)

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return self.model.get_normalized_probs(net_output, log_probs, sample)

    def max_decoder_positions(self):
        return 100


def alone(model, beam, source, **options):
    uncached = Uncached(model, source)
    data = {"net_input": {"src_tokens": torch.tensor([source]), "src_lengths": torch.tensor([len(source)])}}
    (row,) = searching(uncached, beam, **options).generate([uncached], data)
    return [hypothesis["tokens"].tolist() for hypothesis in row]


def ends_early(model, strength=0.9):
    """A copy with another output vector of `</s>`: sentences of a batch end at different steps, and leave it."""
    model = copy.deepcopy(model)
    weight = model.decoder.output_projection.weight.detach().clone()
    weight[2] = strength * torch.randn(128, generator=torch.Generator().manual_seed(4))
    model.decoder.output_projection.weight = torch.nn.Parameter(weight)
    return model


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_batched_search_is_token_identical_to_the_stock_generator_on_each_row_alone(model, beam):
    """With both positions of the prefix and three beams 240 cases of random sources of 1 to 20 tokens."""
    model, ends = ends_early(model), set()
    for batch in range(4):
        examples = pairs(rows=10, seed=100 * beam + batch, longest=20)
        for (source, _), found in zip(examples, generate(model, beam, examples), strict=True):
            assert found == alone(model, beam, source)
            ends.add(len(found[0]))
    assert len(ends) > 3, "sentences should end at different steps"


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 4])
def test_without_a_prefix_it_is_what_fairseqs_model_generates_token_by_token(base, beam):
    """The stock way: the stock model, its cache, and the source forced as the beginning of the output."""
    theirs, ours = stock(base), build(base, length=0).eval()
    with torch.no_grad():
        for model in (theirs, ours):  # `<s>` separates: fairseq cannot force `</s>` without ending the text
            model.decoder.embed_tokens.weight[0] = model.decoder.embed_tokens.weight[2]
            model.decoder.output_projection.weight = torch.nn.Parameter(model.decoder.embed_tokens.weight.clone())
            model.decoder.output_projection.weight[0] = 0
    examples = pairs(rows=6, longest=20)
    for (source, _), found in zip(examples, generate(ours, beam, examples), strict=True):
        data = {"net_input": {"src_tokens": torch.tensor([source]), "src_lengths": torch.tensor([len(source)])}}
        generator = searching(theirs, beam, max_len_b=12 + len(source), min_len=len(source) + 1)
        forced = torch.tensor([[*source[1:], 0]])
        (row,) = generator.generate([theirs], data, prefix_tokens=forced, bos_token=source[0])
        expected = [h["tokens"][len(source) :].tolist() for h in row]
        assert sorted(found) == sorted(expected)  # the stock way divides scores by the length with the source


@torch.no_grad()
@pytest.mark.parametrize("hugging_face", ["prefix_gpt2_tiny"], indirect=True)
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_beam_search_equals_transformers(hugging_face, beam):
    """Both keep the best of 2 x beam continuations, end a sentence with its beam-th finished hypothesis and divide
    scores by the length with its end; where the best is cut off instead of finished they differ by definition.
    """
    theirs, ours, symbols = hugging_face
    model, compared = ours(), 0
    examples = pairs(rows=12, first=4, last=100, seed=beam)
    generator = SequenceGenerator([model], symbols, beam_size=beam, max_len_b=30)
    source, lengths, _ = inputs(examples)
    results = generator.generate([model], {"net_input": {"src_tokens": source, "src_lengths": lengths}})
    for (row, _), found in zip(examples, results, strict=True):
        prompt = theirs_of(symbols, [*row, 2])[None]
        expected = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=beam,
            do_sample=False,
            min_new_tokens=1,
            max_new_tokens=31,
            early_stopping=True,
            pad_token_id=100,
        )[0, prompt.size(1) :]
        if 100 in expected.tolist():
            compared += 1
            assert theirs_of(symbols, found[0]["tokens"]).tolist() == expected.tolist()
    assert compared > 5


@torch.no_grad()
def test_the_source_is_read_in_one_pass_and_kept_once_for_all_beams(model):
    shapes, kept = [], []
    attention = model.decoder.layers[0].self_attn
    hooks = [
        attention.k_proj.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape[:2]))),
        attention.register_forward_hook(
            lambda module, _, kwargs, __: kept.append(Beams.of(kwargs["incremental_state"])), with_kwargs=True
        ),
    ]
    examples = [(list(range(4, 13)), [4]), (list(range(4, 10)), [4])]
    generate(model, 5, examples)
    for hook in hooks:
        hook.remove()
    assert shapes[0] == (9, 2) and shapes[1] == (1, 10) and {shape[0] for shape in shapes[1:]} == {1}
    of_layer = kept[1].cache_of(attention)
    assert of_layer.blocks["read"].key.shape[:3] == (2, 4, 9) and of_layer.blocks["prefix"].key.size(0) == 1
    assert of_layer.hypotheses.tables[0].shape[:3] == (2, 4, 5 * ROOM), "what five hypotheses write is side by side"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decodes(model, dtype):
    """The prefix stays in fp32 and is cast where it is used."""
    half = copy.deepcopy(model).to(dtype)
    assert all(parameter.dtype == torch.float32 for parameter in half.prefix.parameters())
    assert all(len(row) == 2 for row in generate(half, 2, pairs()))


@torch.no_grad()
def test_empty_sources_are_read_too(model):
    assert generate(model, 2, [([], []), ([5, 6], [])])[0] == generate(model, 2, [([], [])])[0]


# fairseq's commands ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return test_training.make_world(tmp_path_factory.mktemp("world"), "full_gpt2_tiny")


@pytest.fixture(scope="module")
def undisturbed(world):
    return test_training.command(*test_training.training(world, world / "undisturbed", *LM))


def test_training_counts_target_tokens_and_learns(world, undisturbed):
    trained = 3 * 128 + 129 * 16 + 17 * 4 * 2 * 128
    assert f"trained parameters: {trained:,} | folded (stored per task): {3 * 4 * 2 * 128:,}" in undisturbed
    losses = [float(loss) for loss in re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", undisturbed)]
    assert losses[-1] < losses[0]
    targets = (world / "valid.target").read_text().splitlines()
    tokens, sentences = sum(len(line.split()) + 1 for line in targets), len(targets)
    reported = [float(x) for x in re.search(r"valid on .* \| loss ([\d.]+) \| nll_loss ([\d.]+)", undisturbed).groups()]
    # with --sentence-avg the loss is per sentence, and what the perplexity is of is per token of the targets
    assert reported[0] == pytest.approx(reported[1] * tokens / sentences, rel=1e-3)


def test_killed_and_restarted_training_ends_with_the_same_parameters(world, undisturbed):
    arguments = test_training.training(world, world / "killed", *LM)
    test_training.kill_at(9, *arguments)
    test_training.command(*arguments)
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        whole, resumed = (torch.load(world / run / name, weights_only=True) for run in ("undisturbed", "killed"))
        for key, tensor in whole["model"].items():
            assert torch.equal(resumed["model"][key], tensor), (name, key)
        assert all(key.startswith("prefix.") for key in whole["model"])


def test_generation_from_checkpoint_export_and_lines_is_the_same_and_complete(world, undisturbed, tmp_path):
    checkpoint, exported = world / "undisturbed" / "checkpoint_best.pt", tmp_path / "prefix.safetensors"
    main(["export", str(checkpoint), str(exported)])
    main(["import", str(exported), str(tmp_path / "i.pt"), "--base-model", "/elsewhere"])
    override = ("--model-overrides", str({"base_model": str(world / "base")}))
    task = ("--task", "conditional_lm")
    hypotheses = test_training.generate(world, checkpoint, *task)
    assert len(hypotheses) == 21
    assert test_training.generate(world, tmp_path / "i.pt", *override, *task, "--batch-size", 1) == hypotheses
    found = test_training.interactive(world, checkpoint, *task, "--max-source-tokens", "50")
    assert found == [(number, dict(hypotheses)[number]) for number in "012"]


def test_a_base_pretrained_with_fairseqs_language_modeling_takes_a_prefix(world, tmp_path):
    """The archive form: the checkpoint that pretraining wrote, with its dict.txt."""
    (tmp_path / "bin").mkdir()
    shutil.copy(world / "base" / "dict.txt", tmp_path / "bin")
    for name in ("train.bin", "train.idx", "valid.bin", "valid.idx"):
        split, _, suffix = name.partition(".")
        shutil.copy(world / "bin" / f"{split}.source-target.source.{suffix}", tmp_path / "bin" / name)
    test_training.command(
        *("train", tmp_path / "bin", "--user-dir", REPOSITORY / "fairseq_prefix", "--task", "language_modeling"),
        *("--arch", "full_gpt2_tiny", "--tokens-per-sample", 40, "--sample-break-mode", "none"),
        *("--criterion", "prefix_cross_entropy", "--optimizer", "adam", "--lr", 1e-3, "--batch-size", 4),
        *("--required-batch-size-multiple", 1),
        *("--max-update", 3, "--save-dir", tmp_path / "pretrained", "--no-epoch-checkpoints"),
    )
    (tmp_path / "archive").mkdir()
    shutil.copy(tmp_path / "pretrained" / "checkpoint_last.pt", tmp_path / "archive" / "model.pt")
    shutil.copy(world / "base" / "dict.txt", tmp_path / "archive")
    whole = tiny.build("full_gpt2_tiny", base_model=str(tmp_path / "archive"))
    state = torch.load(tmp_path / "archive" / "model.pt", weights_only=True)["model"]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    model = tiny.build("prefix_gpt2_tiny", base_model=str(tmp_path / "archive"))
    assert model.base_fingerprint == whole.base_fingerprint


@pytest.mark.parametrize("bf16", [False, True])
def test_the_base_stays_bit_identical_and_training_resumes_exactly(world, tmp_path, bf16):
    """Also where fairseq trains through flat buffers of master weights."""
    whole, before = test_training.resume_halfway(world, bf16, tmp_path, *LM, "--weight-decay", 0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.model.decoder.state_dict().items())


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_other_position_is_refused(base):
    prefix, infix = (build(base, prefix_position=position) for position in POSITIONS)
    with pytest.raises(UsageError, match="trained with --prefix-position infix; pass that"):
        prefix.load_state_dict(infix.state_dict())


def test_another_geometry_is_refused(base):
    with pytest.raises(UsageError, match="has the geometry decoder 5 x 2 layers x 4.32, the model decoder 6 x"):
        build(base, length=6).load_state_dict(build(base).state_dict())


def test_an_infix_is_exported_and_imported_as_one(base, tmp_path):
    from fairseq.checkpoint_utils import load_model_ensemble

    task = tiny.make_lm_task()
    options = {"decoder_layers": 2, "prefix_mid_dim": 16, "prefix_position": "infix", "prefix_length": 5}
    args = tiny.make_args("prefix_gpt2_tiny", base_model=base, **options)
    model = task.build_model(args).eval()
    path, exported, imported = (str(tmp_path / name) for name in ("c.pt", "p.safetensors", "i.pt"))
    write_checkpoint(path, configuration(vars(args), {"max_source_tokens": 50}, base), model.state_dict())
    main(["export", path, exported])
    main(["import", exported, imported, "--base-model", base])
    (loaded,), _ = load_model_ensemble([imported], task=task)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(*inputs(pairs()))[0], model(*inputs(pairs()))[0])


def test_the_base_alone_and_what_inspect_says(base, tmp_path, capsys):
    from fairseq.checkpoint_utils import load_model_ensemble

    whole = tiny.save_base(tmp_path / "base", arch="full_gpt2_tiny")
    main(["base", str(tmp_path / "base.pt"), "--arch", "prefix_gpt2_tiny", "--base-model", str(whole)])
    (loaded,), _ = load_model_ensemble([str(tmp_path / "base.pt")], task=tiny.make_lm_task())
    assert loaded.folded_parameters == 0
    capsys.readouterr()
    main(["inspect", str(whole / "model.pt"), "--json"])
    description = json.loads(capsys.readouterr().out)
    assert description["kind"] == "whole model"
    assert description["stored_parameters"] == loaded.base_parameters
    with pytest.raises(UsageError, match="full_gpt2_tiny has no frozen base; choose an architecture of a prefix"):
        main(["base", str(tmp_path / "base.pt"), "--arch", "full_gpt2_tiny", "--base-model", str(whole)])
