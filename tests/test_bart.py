"""Prefix-tuned BART against somebody else's: transformers' BART, fairseq's own, and a reference written out here."""

import copy
import sys

import pytest
import tiny
import torch
import torch.nn.functional as F
from fairseq.models.bart.model import BARTModel
from fairseq.sequence_generator import SequenceGenerator

from fairseq_prefix.errors import UsageError
from fairseq_prefix.methods.virtual_tokens import SITES


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny.save_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def model(base):
    """All three sites, of different lengths; keys and values as large as the base's own."""
    torch.manual_seed(2)
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=5, prefix_cross_length=3, prefix_mid_dim=16)
    model.prefix.set_output(
        {site: torch.randn(shape.length, 2 * 2 * 128) for site, shape in model.prefix.geometry.items()}
    )
    return model.eval()


# Numerics against transformers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A random BART saved by transformers, and its folder with the dictionary."""
    sys.modules.setdefault("torchaudio", None)  # transformers would load it, and it is not made for every torch
    import transformers

    symbols = tiny.dictionary()
    config = transformers.BartConfig(
        vocab_size=len(symbols),
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_position_embeddings=256,
        dropout=0.0,
        init_std=0.3,
    )
    torch.manual_seed(3)
    theirs = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms too
    folder = tmp_path_factory.mktemp("hugging_face")
    theirs.save_pretrained(folder)
    symbols.save(str(folder / "dict.txt"))
    return theirs, str(folder)


@torch.no_grad()
def test_logits_equal_transformers(hugging_face):
    theirs, folder = hugging_face
    tokens, lengths, previous = tiny.batch()
    expected = theirs(tokens, attention_mask=tokens.ne(1), decoder_input_ids=previous).logits
    ours = tiny.build("prefix_bart_tiny", base_model=folder, prefix_length=0).eval()
    assert (ours(tokens, lengths, previous)[0] - expected).abs().max() < 1e-4


def test_hugging_face_bin_equals_safetensors(hugging_face, tmp_path):
    theirs, folder = hugging_face
    (tmp_path / "dict.txt").write_bytes(open(f"{folder}/dict.txt", "rb").read())
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    models = [tiny.build("prefix_bart_tiny", base_model=str(path), prefix_length=1) for path in (folder, tmp_path)]
    assert models[0].base_fingerprint == models[1].base_fingerprint


def test_decoder_prefix_equals_transformers_with_the_same_past(hugging_face):
    """transformers takes keys and values for the decoder's self-attention as a cache. It shifts positions by their
    number; prefix-tuning of BART does not, so its table of positions is shifted back.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    theirs, folder = hugging_face
    length = 7
    ours = tiny.build("prefix_bart_tiny", base_model=folder, prefix_sites="decoder", prefix_length=length).eval()
    tokens, lengths, previous = tiny.batch()
    past = DynamicCache()
    for layer in range(2):
        key, value = ours.prefix.key_value("decoder", layer)
        past.update(key.expand(4, -1, -1, -1), value.expand(4, -1, -1, -1), layer)
    table = theirs.model.decoder.embed_positions.weight
    with torch.no_grad():
        original = table.clone()
        table[2 + length :] = original[2:-length]
        expected = theirs(
            tokens,
            attention_mask=tokens.ne(1),
            decoder_input_ids=previous,
            past_key_values=EncoderDecoderCache(past, DynamicCache()),
        ).logits
        table.copy_(original)
    assert (ours(tokens, lengths, previous)[0] - expected).abs().max() < 1e-4


class Reference:
    """BART with keys and values prepended at all three sites, written out from the paper's equations and a state
    dict.
    """

    def __init__(self, model):
        self.w, self.prefix, self.heads = BARTModel.state_dict(model), model.prefix, 4

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def attend(self, x, source, name, site, layer, hidden):
        """One row: x is T x D, source S x D, hidden T x S true where attention is forbidden."""
        width = x.size(1) // self.heads
        q, k, v = (
            self.linear(y, f"{name}.{p}_proj").view(-1, self.heads, width).transpose(0, 1)
            for y, p in ((x, "q"), (source, "k"), (source, "v"))
        )
        prefix_key, prefix_value = (p[0] for p in self.prefix.key_value(site, layer))
        scores = torch.cat([q @ prefix_key.mT, (q @ k.mT).masked_fill(hidden, -torch.inf)], -1) / width**0.5
        y = scores.softmax(-1) @ torch.cat([prefix_value, v], 1)
        return self.linear(y.transpose(0, 1).reshape(x.shape), f"{name}.out_proj")

    def embed(self, tokens, side):
        x = self.w[f"{side}.embed_tokens.weight"][tokens]
        positions = self.w[f"{side}.embed_positions.weight"][2 : 2 + len(tokens)]
        return self.norm(x + positions, f"{side}.layernorm_embedding")

    def feed_forward(self, x, name):
        y = self.linear(F.gelu(self.linear(x, f"{name}.fc1").float()).to(x), f"{name}.fc2")
        return self.norm(x + y, f"{name}.final_layer_norm")

    def __call__(self, source, previous):
        """Logits of one row without padding, T x V."""
        x = self.embed(source, "encoder")
        nothing = torch.zeros(len(source), len(source), dtype=torch.bool)
        for layer in range(2):
            name = f"encoder.layers.{layer}"
            x = self.norm(
                x + self.attend(x, x, f"{name}.self_attn", "encoder", layer, nothing), f"{name}.self_attn_layer_norm"
            )
            x = self.feed_forward(x, name)
        y = self.embed(previous, "decoder")
        future = torch.ones(len(previous), len(previous), dtype=torch.bool).triu(1)
        nothing = torch.zeros(len(previous), len(source), dtype=torch.bool)
        for layer in range(2):
            name = f"decoder.layers.{layer}"
            y = self.norm(
                y + self.attend(y, y, f"{name}.self_attn", "decoder", layer, future), f"{name}.self_attn_layer_norm"
            )
            y = self.norm(
                y + self.attend(y, x, f"{name}.encoder_attn", "cross", layer, nothing),
                f"{name}.encoder_attn_layer_norm",
            )
            y = self.feed_forward(y, name)
        return y @ self.w["decoder.embed_tokens.weight"].T


@torch.no_grad()
def test_three_sites_equal_the_equations_for_rows_of_different_length(model):
    model = copy.deepcopy(model).double()
    tokens, lengths, previous = tiny.batch()
    logits = model(tokens, lengths, previous)[0]
    reference = Reference(model)
    for row in range(len(tokens)):
        expected = reference(tokens[row, : lengths[row]], previous[row])
        assert (logits[row] - expected).abs().max() < 1e-5  # double, but for fairseq's activation function


@torch.no_grad()
@pytest.mark.parametrize("site", SITES)
def test_every_site_matters(model, base, site):
    """Without one of the three the outputs change: none is ignored."""
    rest = {other: shape.length for other, shape in model.prefix.geometry.items() if other != site}
    options = {f"prefix_{other}_length": length for other, length in rest.items()}
    without = tiny.build("prefix_bart_tiny", base_model=base, prefix_sites=",".join(rest), prefix_mid_dim=16, **options)
    without.prefix.set_output(model.prefix.folded())
    data = tiny.batch()
    assert (without.eval()(*data)[0] - model(*data)[0]).abs().max() > 0.1


# Against fairseq ------------------------------------------------------------------------------------------------------


def test_zero_length_prefix_is_the_base_bit_for_bit(base):
    data = tiny.batch()
    zero = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=0).eval()
    stock = tiny.build("full_bart_tiny")
    assert type(stock.encoder.layers[0].self_attn).__module__ == "fairseq.modules.multihead_attention"
    stock.load_state_dict(torch.load(f"{base}/model.pt", weights_only=True)["model"])
    assert torch.equal(zero(*data)[0], stock.eval()(*data)[0])
    assert zero.folded_parameters == 0 and zero.declared_parameters == set()


def generate(model, beam, tokens, lengths, task=None, **options):
    task = task or tiny.make_task()
    generator = SequenceGenerator([model], task.target_dictionary, beam_size=beam, max_len_b=12, **options)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    return task.inference_step(generator, [model], sample)


def ends_early(model):
    """A copy with another output vector of `</s>`: sentences of a batch end at different steps, and leave it."""
    model = copy.deepcopy(model)
    weight = model.decoder.output_projection.weight.detach().clone()
    weight[2] = 0.9 * torch.randn(128, generator=torch.Generator().manual_seed(4))
    model.decoder.output_projection.weight = torch.nn.Parameter(weight)
    return model


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_scores_of_the_beam_search_are_those_of_a_teacher_forced_pass(model, beam):
    """Incremental decoding with reordered beams and leaving sentences computes what one pass over the result
    computes.
    """
    model = ends_early(model).double()
    tokens, lengths, _ = tiny.batch(rows=6, source=11)
    results = generate(model, beam, tokens, lengths)
    assert len({max(len(hypothesis["tokens"]) for hypothesis in hypotheses) for hypotheses in results}) > 1
    for row, hypotheses in enumerate(results):
        for hypothesis in hypotheses:
            target = hypothesis["tokens"]
            previous = torch.cat([target.new_tensor([2]), target[:-1]])[None]
            logits = model(tokens[row : row + 1, : lengths[row]], lengths[row : row + 1], previous)[0][0]
            expected = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
            torch.testing.assert_close(hypothesis["positional_scores"].double(), expected, atol=1e-5, rtol=1e-5)
            assert target[0] == 0, "<s> is forced"


@torch.no_grad()
def test_batched_decoding_equals_decoding_each_row_alone(model):
    model = ends_early(model)
    tokens, lengths, _ = tiny.batch(rows=6, source=11)
    together = generate(model, 4, tokens, lengths)
    for row in range(6):
        alone = generate(model, 4, tokens[row : row + 1, : lengths[row]], lengths[row : row + 1])[0]
        assert [h["tokens"].tolist() for h in together[row]] == [h["tokens"].tolist() for h in alone]


@torch.no_grad()
def test_cross_attention_projects_each_sentence_once_for_all_beams(model):
    rows = []
    hook = model.decoder.layers[0].encoder_attn.k_proj.register_forward_hook(lambda *call: rows.append(call[2].size(1)))
    generate(model, 5, *tiny.batch(rows=4)[:2])
    hook.remove()
    assert rows == [4]


@torch.no_grad()
@pytest.mark.parametrize("length", [0, 4])
def test_a_generator_leaves_teacher_forced_passes_alone(base, length):
    """In stock fairseq building a generator with a beam changes the losses of the model it is given."""
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=length).eval()
    data = tiny.batch(rows=4)
    before = model(*data)[0]
    generate(model, 4, *data[:2])
    assert torch.equal(model(*data)[0], before)
    with_beam_one = [h[0]["tokens"].tolist() for h in generate(model, 1, *data[:2])]
    fresh = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=length).eval()
    fresh.prefix.load_state_dict(model.prefix.state_dict())
    assert with_beam_one == [h[0]["tokens"].tolist() for h in generate(fresh, 1, *data[:2])]


# Gradients ------------------------------------------------------------------------------------------------------------


def gradients(model):
    model.train()
    logits = model(*tiny.batch())[0]
    logits.log_softmax(-1)[..., 7].sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_reach_the_whole_prefix_and_nothing_else(base):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=4)
    reached = gradients(model)
    assert reached.keys() == model.declared_parameters
    assert all(gradient.abs().sum() > 0 for gradient in reached.values())


def test_activation_checkpointing_gives_the_same_gradients(base):
    plain, saving = (
        tiny.build("prefix_bart_tiny", base_model=base, prefix_length=4, checkpoint_activations=checkpointing)
        for checkpointing in (False, True)
    )
    saving.prefix.load_state_dict(plain.prefix.state_dict())
    expected, found = gradients(plain), gradients(saving)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_encoder_runs_without_a_graph_if_only_the_decoder_has_a_prefix(base):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=4, prefix_sites="decoder,cross").train()
    assert not model.encoder(*tiny.batch()[:2])["encoder_out"][0].requires_grad
    assert gradients(model).keys() == model.declared_parameters


@pytest.mark.parametrize(("switch", "varies"), [("on", True), ("off", False)])
def test_base_dropout_is_a_switch(base, switch, varies):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=4, dropout=0.3, base_dropout=switch).train()
    data = tiny.batch()
    assert torch.equal(model(*data)[0], model(*data)[0]) is not varies


# Initialisation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("length", [2, 3, 8, 300])  # shorter than the text, equal, longer, longer than the positions
@pytest.mark.parametrize("reparam", ["mlp", "flat"])
def test_real_word_initialisation_takes_the_activations_of_the_base(base, length, reparam):
    options = {"prefix_init": "words", "prefix_init_text": "w5 w6 w7", "prefix_reparam": reparam}
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=length, **options).eval()
    bare = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=0).eval()
    text = ([9, 10, 11] * 100)[: min(length, 254)]
    source = torch.tensor([[0, *text, 2]])
    encoder_out = bare.encoder(source, torch.tensor([source.size(1)]))["encoder_out"][0]
    embedded, _ = bare.encoder.forward_embedding(source)

    first = bare.encoder.layers[0].self_attn.k_proj(embedded)[0, 1:-1]  # what the encoder's first layer computes
    key, _ = model.prefix.key_value("encoder", 0)
    torch.testing.assert_close(key[0].transpose(0, 1).reshape(length, -1)[: len(text)], first, atol=1e-3, rtol=1e-3)
    cross = bare.decoder.layers[1].encoder_attn.v_proj(encoder_out)[1:-1, 0]
    _, value = model.prefix.key_value("cross", 1)
    torch.testing.assert_close(value[0].transpose(0, 1).reshape(length, -1)[: len(text)], cross, atol=1e-3, rtol=1e-3)


def test_words_are_refused_if_the_dictionary_lacks_them(base):
    with pytest.raises(UsageError, match="'w1 summarize' has the piece 'summarize', .* with --bpe"):
        tiny.build("prefix_bart_tiny", base_model=base, prefix_init="words", prefix_init_text="w1 summarize")


def test_random_initialisation_is_that_of_the_original_and_not_of_fairseq(base):
    """Keys start with a deviation of about 0.3 (fairseq's BERT-style initialisation would give almost 0)."""
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=50)
    assert 0.15 < model.prefix.folded()["cross"].std() < 0.5


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_model": None}, "requires --base-model"),
        ({"prefix_sites": "encoder,crss"}, "--prefix-sites: 'crss' is none of encoder, decoder, cross"),
        ({"prefix_sites": ""}, "--prefix-sites is empty; choose from encoder, decoder, cross, or pass length 0"),
        ({"prefix_mid_dim": 0}, "--prefix-mid-dim is 0; expected 1 or more"),
        ({"prefix_sites": "encoder", "prefix_cross_length": 3}, "leaves cross out"),
        ({"prefix_length": -1}, "--prefix-length is -1; expected 0 or more"),
        ({"prefix_cross_length": -1}, "--prefix-cross-length is -1; expected 0 or more"),
        ({"encoder_layerdrop": 0.1}, "--encoder-layerdrop is not supported"),
        ({"prefix_init": "words"}, "requires --prefix-init-text"),
        (
            {"prefix_init": "words", "prefix_init_text": "w1", "prefix_length": 0},
            "requires a prefix: the length is 0 at every site",
        ),
    ],
)
def test_wrong_options_are_one_sentence(base, options, message):
    with pytest.raises(UsageError, match=message):
        tiny.build("prefix_bart_tiny", **{"base_model": base, **options})
