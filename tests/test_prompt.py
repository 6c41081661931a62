"""Prompts against transformers fed with embeddings, and how often the virtual tokens are read."""

import copy

import methods
import pytest
import test_bart
import test_gpt2
import tiny
import torch
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_prefix.attention.beams import ROOM, Beams
from fairseq_prefix.errors import UsageError

bart_of_transformers = test_bart.hugging_face
gpt2_of_transformers = test_gpt2.hugging_face


def embeddings(model, site):
    return model.prompt.folded()[site]


# Numerics against transformers ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("reparam", ["mlp", "flat"])
@pytest.mark.parametrize("gpt2_of_transformers", ["prefix_gpt2_tiny"], indirect=True)
def test_gpt2_equals_transformers_fed_with_the_embeddings_before_the_text(gpt2_of_transformers, reparam):
    """The virtual tokens have positions 0 to P-1, and the text those from P on."""
    theirs, ours, symbols = gpt2_of_transformers
    task = tiny.make_lm_task(symbols)
    options = {"max_target_positions": 256, "prompt_length": 7, "prompt_reparam": reparam}
    model = tiny.build("prompt_gpt2_tiny", task, base_model=str(ours.folder), **options)
    methods.strengthen(model)
    examples = test_gpt2.pairs(first=4, last=100)
    logits, _ = model(*test_gpt2.inputs(examples))
    for row, (source, target) in enumerate(examples):
        text = theirs.transformer.wte(test_gpt2.theirs_of(symbols, [*source, 2, *target]))
        embedded = torch.cat([embeddings(model, "decoder"), text])[None]
        expected = theirs(inputs_embeds=embedded).logits[0, 7 + len(source) :]
        found = logits[row, : len(target) + 1][:, test_gpt2.columns(symbols)]
        assert (found - expected).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("sites", ["encoder", "decoder", "encoder,decoder"])
def test_bart_equals_transformers_fed_with_the_embeddings_before_both_inputs(bart_of_transformers, sites):
    """transformers gives every column a position; here virtual tokens have none and the text keeps its own, so that its
    table of positions is shifted, with zeros first.
    """
    theirs, folder = bart_of_transformers
    theirs, length = copy.deepcopy(theirs).double(), 5
    model = tiny.build("prompt_bart_tiny", base_model=folder, prompt_length=length, prompt_sites=sites)
    methods.strengthen(model).double()
    tokens, lengths, previous = tiny.batch()
    sides, embedded = sites.split(","), {}
    for side, text in (("encoder", tokens), ("decoder", previous)):
        part = getattr(theirs.model, side)
        embedded[side] = part.embed_tokens(text)
        if side in sides:
            prompt = embeddings(model, side).expand(len(text), -1, -1)
            embedded[side] = torch.cat([prompt, embedded[side]], dim=1)
            table = part.embed_positions.weight
            original = table.clone()
            table[2 : 2 + length] = 0
            table[2 + length :] = original[2:-length]
    visible = tokens.ne(1)
    if "encoder" in sides:
        visible = torch.cat([visible.new_ones(len(tokens), length), visible], dim=1)
    expected = theirs(
        inputs_embeds=embedded["encoder"], attention_mask=visible, decoder_inputs_embeds=embedded["decoder"]
    ).logits
    if "decoder" in sides:
        expected = expected[:, length:]
    assert (model(tokens, lengths, previous)[0] - expected).abs().max() < 1e-4


# How often it is read -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {family: methods.make_base(tmp_path_factory.mktemp(family), family) for family in methods.FAMILIES}


def shapes_of_calls(module):
    """What the module is called with from now on: (columns, rows)."""
    shapes = []
    module.register_forward_hook(lambda _, arguments, __: shapes.append(tuple(arguments[0].shape[:2])))
    return shapes


@torch.no_grad()
def test_gpt2_reads_the_prompt_once_for_all_searches(bases):
    model = methods.strengthen(methods.build("prompt", "gpt2", bases["gpt2"]))
    shapes = shapes_of_calls(model.decoder.layers[0].self_attn.k_proj)
    task = methods.make_task("gpt2")
    generator = SequenceGenerator([model], task.target_dictionary, beam_size=5, max_len_b=12)
    tokens, lengths = methods.sources("gpt2")
    for _ in range(2):
        task.inference_step(generator, [model], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
    assert shapes.count((3, 1)) == 1  # P columns, one row
    assert {columns for columns, rows in shapes if rows == 30} == {1}


def test_gpt2_reads_the_prompt_once_a_pass_in_training_whatever_the_rows(bases):
    model = methods.build("prompt", "gpt2", bases["gpt2"]).train()
    shapes = shapes_of_calls(model.decoder.layers[0].self_attn.k_proj)
    first = model(*methods.inputs("gpt2"))[0]
    with torch.no_grad():
        for parameter in model.prompt.parameters():
            parameter.data.add_(1)  # as fairseq's optimizers write, which no version counter sees
    second = model(*methods.inputs("gpt2"))[0]
    assert [shape[1] for shape in shapes] == [1, 4, 1, 4]
    assert not torch.equal(first, second)


@torch.no_grad()
def test_bart_reads_the_prompt_once_per_sentence_and_keeps_it_so(bases):
    """The decoder's virtual tokens attend to the source: a row per sentence, and neither per beam nor per step."""
    model = methods.strengthen(methods.build("prompt", "bart", bases["bart"]))
    layer, kept = model.decoder.layers[1], []
    own, cross = shapes_of_calls(layer.self_attn.k_proj), shapes_of_calls(layer.encoder_attn.k_proj)
    encoded = shapes_of_calls(model.encoder.layers[0].self_attn.k_proj)
    layer.self_attn.register_forward_hook(
        lambda module, _, kwargs, __: kept.append(Beams.of(kwargs["incremental_state"])), with_kwargs=True
    )
    methods.search(model, "bart", 5, *methods.sources("bart"))
    assert own[0] == (3, 6) and own[1] == (1, 30) and {columns for columns, _ in own[1:]} == {1}
    assert cross == [(14, 6)], "the source's keys are computed once per sentence"
    assert encoded == [(14, 6)]
    of_layer = kept[1].cache_of(layer.self_attn)
    assert of_layer.blocks["read"].key.shape[:3] == (6, 4, 3)
    assert of_layer.hypotheses.tables[0].shape[:3] == (6, 4, 5 * ROOM), "what five hypotheses write is side by side"


@pytest.mark.parametrize("sites", ["encoder", "decoder"])
@torch.no_grad()
def test_one_site_alone_is_searched_as_it_is_scored(bases, sites):
    model = methods.strengthen(methods.build("prompt", "bart", bases["bart"], prompt_sites=sites))
    model = methods.ends_early(model, "bart", 3)
    tokens, lengths = methods.sources("bart")
    for row, found in enumerate(methods.token_lists(methods.search(model, "bart", 3, tokens, lengths))):
        assert found == methods.search_uncached(model, "bart", 3, tokens[row, : lengths[row]])


def test_the_encoder_runs_without_a_graph_if_only_the_decoder_has_a_prompt(bases):
    model = methods.build("prompt", "bart", bases["bart"], prompt_sites="decoder").train()
    assert not model.encoder(*tiny.batch()[:2])["encoder_out"][0].requires_grad
    assert methods.gradients(model, "bart").keys() == model.declared_parameters


# Options --------------------------------------------------------------------------------------------------------------


def test_options_are_as_originally(bases):
    for family, mid_dim in (("bart", 800), ("gpt2", 512)):
        args = tiny.make_args(f"prompt_{family}_tiny")
        assert (args.prompt_length, args.prompt_reparam, args.prompt_mid_dim) == (10, "mlp", mid_dim)
    flat = methods.build("prompt", "gpt2", bases["gpt2"], prompt_reparam="flat", prompt_length=200)
    assert 0.9 < embeddings(flat, "decoder").std() < 1.1


def test_a_prompt_of_gpt2_takes_positions_and_one_of_bart_does_not(bases):
    assert (
        methods.build("prompt", "gpt2", bases["gpt2"]).max_positions()
        == methods.build("full", "gpt2", bases["gpt2"]).max_positions() - 3
    )
    assert methods.build("prompt", "bart", bases["bart"]).max_positions() == (256, 256)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "bart",
            {"prompt_sites": "encoder,cross"},
            "--prompt-sites: 'cross' is none of encoder, decoder",
        ),
        ("bart", {"prompt_sites": " ,"}, "--prompt-sites is empty; choose from encoder, decoder, or pass"),
        (
            "bart",
            {"no_token_positional_embeddings": True},
            "--no-token-positional-embeddings is not supported by --arch prompt_bart_tiny",
        ),
        ("gpt2", {"prompt_length": 600}, "--prompt-length 600 leaves none of the model's .* positions"),
    ],
)
def test_wrong_options_are_one_sentence(bases, family, options, message):
    with pytest.raises(UsageError, match=message):
        methods.build("prompt", family, bases[family], **options)


def test_targets_padded_on_the_left_are_refused(bases):
    """The decoder looks at no padding: a row shorter than its batch would see that of its left."""
    symbols = tiny.dictionary()
    task = TranslationTask(TranslationConfig(left_pad_target=True), symbols, symbols)
    with pytest.raises(UsageError, match="--left-pad-target is not supported by --arch prompt_bart_tiny"):
        methods.build("prompt", "bart", bases["bart"], task)
