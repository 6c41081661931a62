"""A prefix on models that transformers built: beside this package's GPT-2, and beside transformers' own KV cache."""

import copy
import re
import sys

import pytest
import test_gpt2
import tiny
import torch
from conftest import REPOSITORY
from fairseq.sequence_generator import SequenceGenerator

from fairseq_prefix.__main__ import main
from fairseq_prefix.errors import UsageError
from fairseq_prefix.files.checkpoint import configuration, write_checkpoint
from fairseq_prefix.hugging_face import add_prefix, geometry, load_prefix, mark_only_trainable, prefix_state_dict
from fairseq_prefix.methods.prefix import Prefix, SiteGeometry

sys.modules.setdefault("torchaudio", None)  # transformers would load it, and not every torch has a matching one
transformers = pytest.importorskip("transformers")

LENGTH, END = 7, 100
hugging_face = test_gpt2.hugging_face
only_tiny = pytest.mark.parametrize("hugging_face", ["prefix_gpt2_tiny"], indirect=True)


def strong_prefix(model, length=LENGTH, **options):
    """A prefix with keys and values as large as the base's own."""
    torch.manual_seed(5)
    prefix = Prefix(geometry(model, length), **{"reparam": "flat", **options})
    shape = prefix.geometry["decoder"]
    prefix.set_output({"decoder": torch.randn(length, shape.width)})
    return prefix


@pytest.fixture
def gpt2(hugging_face):
    """(transformers' GPT-2 with a prefix, ours with the same one, the dictionary)."""
    theirs, ours, symbols = hugging_face
    theirs, model = copy.deepcopy(theirs), test_gpt2.strengthen(ours(prefix_length=LENGTH))
    add_prefix(theirs, Prefix(geometry(theirs, LENGTH), "flat"))
    theirs.prefix.set_output(model.prefix.folded())
    return theirs, model, symbols


def make_llama():
    """A random Llama with fewer key heads than heads, and heads wider than width / heads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 16, "vocab_size": 101}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, eos_token_id=END
    )
    return transformers.LlamaForCausalLM(config).eval()


def make_gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=101, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3, eos_token_id=END
    )
    return transformers.GPT2LMHeadModel(config).eval()


MAKERS = {"gpt2": make_gpt2, "llama": make_llama}


@pytest.fixture(params=MAKERS)
def bare(request):
    return MAKERS[request.param]()


def cache_of(prefix, rows=1):
    """The prefix in the form of transformers' KV cache."""
    cache = transformers.DynamicCache()
    for layer in range(prefix.geometry["decoder"].layers):
        key_value = prefix.key_value("decoder", layer)
        cache.update(*(part.expand(rows, -1, -1, -1) for part in key_value), layer)
    return cache


def tokens_of(rows=3, length=9):
    return torch.randint(0, END, (rows, length), generator=torch.Generator().manual_seed(1))


# Beside this package's own GPT-2 --------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_equal_those_of_our_model_over_the_same_weights(gpt2):
    theirs, model, symbols = gpt2
    examples = test_gpt2.pairs(first=4, last=100)
    texts = [test_gpt2.theirs_of(symbols, [*source, 2, *target]) for source, target in examples]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=END)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    ours, _ = model(*test_gpt2.inputs(examples))
    ours = ours[:, :, test_gpt2.columns(symbols)]
    for logits in (theirs(padded, attention_mask=mask).logits, theirs(padded).logits):
        for row, (source, target) in enumerate(examples):
            found, expected = logits[row, len(source) : len(texts[row])], ours[row, : len(target) + 1]
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
@only_tiny
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_a_batch_padded_on_the_left_generates_what_our_search_finds(gpt2, beam):
    theirs, model, symbols = gpt2
    theirs.prefix.set_output({"decoder": 0.3 * model.prefix.folded()["decoder"]})  # with less, more texts end
    model.prefix.set_output(theirs.prefix.folded())
    examples = test_gpt2.pairs(rows=12, first=4, last=100, seed=beam)
    source, lengths, _ = test_gpt2.inputs(examples)
    generator = SequenceGenerator([model], symbols, beam_size=beam, max_len_b=30)
    ours = generator.generate([model], {"net_input": {"src_tokens": source, "src_lengths": lengths}})
    prompts = [test_gpt2.theirs_of(symbols, [*row, 2]) for row, _ in examples]
    width, ended = max(map(len, prompts)), 0
    padded = torch.stack([torch.cat([prompt.new_full([width - len(prompt)], END), prompt]) for prompt in prompts])
    mask = torch.stack([(torch.arange(width) >= width - len(prompt)).long() for prompt in prompts])
    options = {"num_beams": beam, "do_sample": False, "min_new_tokens": 1, "max_new_tokens": 31}
    found = theirs.generate(padded, attention_mask=mask, early_stopping=True, pad_token_id=END, **options)
    for row, hypotheses in zip(found[:, width:].tolist(), ours, strict=True):
        if END in row:  # where the best is cut off, the two searches differ by definition
            ended += 1
            expected = test_gpt2.theirs_of(symbols, hypotheses[0]["tokens"]).tolist()
            assert row[: row.index(END) + 1] == expected
    assert ended > 5


def save_trained(folder, base, symbols, **options):
    """(a prefix model of ours over `base`, its checkpoint, its export)."""
    options = {"base_model": str(base), "prefix_length": LENGTH, "prefix_mid_dim": 16, **options}
    args = tiny.make_args("prefix_gpt2_tiny", **options)
    model = test_gpt2.strengthen(tiny.make_lm_task(symbols).build_model(args))
    trained, exported = str(folder / "checkpoint.pt"), str(folder / "prefix.safetensors")
    cfg = configuration(vars(args), {"max_source_tokens": 50}, str(base))
    write_checkpoint(trained, cfg, model.state_dict())
    main(["export", trained, exported])
    return model, trained, exported


@only_tiny
def test_an_export_and_a_checkpoint_of_ours_are_loaded(hugging_face, tmp_path):
    theirs, ours, symbols = hugging_face
    options = {"base": ours.folder, "symbols": symbols, "max_target_positions": 256}
    model, *paths = save_trained(tmp_path, **options)
    for path in paths:
        loaded = copy.deepcopy(theirs)
        load_prefix(loaded, path)
        assert torch.equal(loaded.prefix.folded()["decoder"], model.prefix.folded()["decoder"])
        assert not torch.allclose(loaded(tokens_of()).logits, theirs(tokens_of()).logits, atol=0.1)
        with pytest.raises(UsageError, match="the prefix has the geometry .*, but GPT2LMHeadModel needs .*layers=3"):
            load_prefix(make_gpt2(), path)
    _, trained, _ = save_trained(tmp_path, **options, prefix_position="infix")
    with pytest.raises(UsageError, match="checkpoint.pt: expected a prefix before the source of a decoder-only model"):
        load_prefix(copy.deepcopy(theirs), trained)


# Beside transformers' KV cache ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_equal_those_after_a_cache_that_holds_the_prefix(bare):
    model, tokens = copy.deepcopy(bare), tokens_of()
    add_prefix(model, strong_prefix(bare))
    expected = bare(tokens, past_key_values=cache_of(model.prefix, rows=3)).logits
    assert (model(tokens).logits - expected).abs().max() < 1e-4
    assert (model(inputs_embeds=model.get_input_embeddings()(tokens)).logits - expected).abs().max() < 1e-4
    assert (expected - bare(tokens).logits).abs().max() > 1


@torch.no_grad()
def test_positions_can_be_left_as_they_are(bare):
    model, tokens = copy.deepcopy(bare), tokens_of()
    add_prefix(model, strong_prefix(bare), shift_positions=False)
    positions = torch.arange(tokens.size(1))[None].expand(3, -1)
    expected = bare(tokens, past_key_values=cache_of(model.prefix, rows=3), position_ids=positions).logits
    assert (model(tokens).logits - expected).abs().max() < 1e-4
    assert (model(tokens, position_ids=positions).logits - expected).abs().max() < 1e-4


@torch.no_grad()
def test_tokens_read_one_by_one_or_in_parts_give_the_logits_of_the_whole(bare):
    add_prefix(bare, strong_prefix(bare))
    tokens, cache = tokens_of(), None
    expected, found = bare(tokens).logits, []
    for part in tokens.split([4, 3, 1, 1], dim=1):
        output = bare(part, past_key_values=cache, use_cache=True)
        cache, found = output.past_key_values, [*found, output.logits]
    assert cache.get_seq_length() == tokens.size(1)
    assert (torch.cat(found, dim=1) - expected).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("beam", [1, 3])
def test_every_row_of_a_padded_batch_generates_as_it_does_alone(bare, beam, cache):
    add_prefix(bare, strong_prefix(bare))
    tokens, lengths = tokens_of(), torch.tensor([9, 5, 2])
    mask = (torch.arange(9) >= 9 - lengths[:, None]).long()
    options = {"num_beams": beam, "do_sample": False, "max_new_tokens": 8, "pad_token_id": END}
    together = bare.generate(tokens, attention_mask=mask, cache_implementation=cache, disable_compile=True, **options)
    for row, length in enumerate(lengths.tolist()):
        alone = tokens[row : row + 1, 9 - length :]
        expected = bare.generate(alone, attention_mask=torch.ones_like(alone), use_cache=False, **options)[0, length:]
        assert together[row, 9 : 9 + len(expected)].tolist() == expected.tolist()


# Training, switching off, saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_prefix_is_trained(bare, checkpointing):
    add_prefix(bare, Prefix(geometry(bare, LENGTH), mid_dim=16))
    if checkpointing:
        bare.gradient_checkpointing_enable()
        bare.train()
    before = copy.deepcopy(bare.state_dict())
    shape = bare.prefix.geometry["decoder"]
    assert mark_only_trainable(bare) == LENGTH * shape.embed_dim + (shape.embed_dim + 1) * 16 + 17 * shape.width
    tokens, losses = tokens_of(), []
    optimizer = torch.optim.Adam(bare.prefix.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        for part in tokens.split([2, 1]):  # gradients of several passes add up before a step
            loss = bare(part, labels=part).loss
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in bare.named_parameters():
        is_prefix = name.startswith("prefix.")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_prefix, name
        assert torch.equal(parameter, before[name]) != is_prefix, name


def test_gradient_checkpointing_changes_no_gradient(bare):
    gradients, tokens = [], tokens_of()
    for module in bare.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    add_prefix(bare, strong_prefix(bare))
    mark_only_trainable(bare)
    bare.train()
    for switch in (bare.gradient_checkpointing_enable, bare.gradient_checkpointing_disable):
        switch()
        bare.zero_grad()
        bare(tokens, labels=tokens).loss.backward()
        gradients.append(bare.prefix.sites["decoder"].key_value.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6


@torch.no_grad()
def test_the_prefix_follows_the_model_s_mode(bare):
    add_prefix(bare, Prefix(geometry(bare, LENGTH), mid_dim=16, dropout=0.5))
    assert torch.equal(bare(tokens_of()).logits, bare(tokens_of()).logits)
    bare.prefix.train()
    assert not torch.equal(bare(tokens_of()).logits, bare(tokens_of()).logits)


def test_bf16_and_autocast_keep_the_prefix_in_single_precision(bare):
    add_prefix(bare, strong_prefix(bare))
    with torch.autocast("cpu", torch.bfloat16):
        bare(tokens_of(), labels=tokens_of()).loss.backward()
    bare.to(torch.bfloat16)
    bare(tokens_of(), labels=tokens_of()).loss.backward()
    key_value = bare.prefix.sites["decoder"].key_value
    assert key_value.dtype == key_value.grad.dtype == torch.float32 and key_value.grad.isfinite().all()


@torch.no_grad()
def test_the_bare_model_runs_where_the_prefix_is_disabled(bare):
    model, tokens = copy.deepcopy(bare), tokens_of()
    add_prefix(model, strong_prefix(bare))
    expected, mask = model(tokens).logits, torch.tensor([[0] * 4 + [1] * 5] * 3)
    generation = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": END}
    with model.prefix_disabled():
        assert torch.equal(model(tokens).logits, bare(tokens).logits)
        assert torch.equal(model.generate(tokens, **generation), bare.generate(tokens, **generation))
        with model.prefix_disabled():
            pass
        assert torch.equal(model(tokens).logits, bare(tokens).logits)
    assert torch.equal(model(tokens).logits, expected)
    with pytest.raises(RuntimeError, match="on purpose"), model.prefix_disabled():
        raise RuntimeError("on purpose")
    assert torch.equal(model(tokens).logits, expected)


@torch.no_grad()
def test_the_prefix_s_part_of_the_state_is_enough(bare, tmp_path):
    first, second = copy.deepcopy(bare), copy.deepcopy(bare)
    add_prefix(first, Prefix(geometry(bare, LENGTH), mid_dim=16))
    add_prefix(second, Prefix(geometry(bare, LENGTH), mid_dim=16))
    tokens = tokens_of()
    assert not torch.equal(first(tokens).logits, second(tokens).logits)
    torch.save(prefix_state_dict(first), tmp_path / "prefix.pt")
    state = torch.load(tmp_path / "prefix.pt", weights_only=True)
    assert {f"prefix.{name}" for name in first.prefix.state_dict()} == set(state)
    result = second.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) == set(bare.state_dict())
    assert torch.equal(first(tokens).logits, second(tokens).logits)


@torch.no_grad()
def test_a_copy_reads_its_own_prefix_and_a_second_prefix_replaces_the_first(bare):
    model, tokens = copy.deepcopy(bare), tokens_of()
    add_prefix(model, strong_prefix(bare))
    expected, twin = model(tokens).logits, copy.deepcopy(model)
    assert torch.equal(twin(tokens).logits, expected)
    add_prefix(twin, strong_prefix(bare, length=3))
    assert (twin(tokens).logits - bare(tokens, past_key_values=cache_of(twin.prefix, 3)).logits).abs().max() < 1e-4
    with twin.prefix_disabled():
        assert torch.equal(twin(tokens).logits, bare(tokens).logits)
        assert torch.equal(model(tokens).logits, expected)


def test_only_the_prefix_of_our_own_models_is_marked_and_returned(tmp_path):
    base = tiny.save_base(tmp_path, arch="full_gpt2_tiny", decoder_layers=2)
    model = test_gpt2.build(str(base))
    declared = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    model.requires_grad_(True)
    assert mark_only_trainable(model) == sum(tensor.numel() for tensor in declared.values())
    assert {name for name, tensor in model.named_parameters() if tensor.requires_grad} == set(declared)
    assert set(prefix_state_dict(model)) == set(declared)


BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 101}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 16, "word_embed_proj_dim": 32}
OPT |= {"vocab_size": 101}
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 101}


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("BartForConditionalGeneration", BART, "has cross-attention; expected a decoder-only model"),
        ("OPTForCausalLM", OPT, "OPTAttention receives no prefix"),
        ("GPTJForCausalLM", GPTJ, "GPTJForCausalLM does not support transformers' AttentionInterface"),
        ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 3, "n_head": 4}, "needs .*layers=3, heads=4, head_dim=8"),
    ],
)
def test_a_model_that_cannot_read_the_prefix_is_refused(name, sizes, message):
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**sizes))
    with pytest.raises(UsageError, match=message):
        add_prefix(model, Prefix({"decoder": SiteGeometry(LENGTH, 2, 4, 8)}, "flat"))
        model(tokens_of())


# docs/transformers.md -------------------------------------------------------------------------------------------------


def byte_level_folder(folder):
    """A random GPT-2 with a tokenizer whose tokens are bytes, in the form of a folder of the hub."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = [*bytes_to_unicode().values(), "<|endoftext|>"]
    tokenizer = transformers.GPT2Tokenizer(vocab={letter: row for row, letter in enumerate(letters)}, merges=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    config = transformers.GPT2Config(vocab_size=257, eos_token_id=256, bos_token_id=256, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (REPOSITORY / "docs" / "transformers.md").read_text(encoding="utf-8")
    train, load = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    base = byte_level_folder(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(train.replace('"gpt2"', repr(str(base))), names)
    assert f"{10 * 32 + 33 * 512 + 513 * 2 * 2 * 32:,} parameters are trained" in capsys.readouterr().out
    twin = transformers.AutoModelForCausalLM.from_pretrained(base)
    add_prefix(twin, Prefix(geometry(twin, length=10), mid_dim=512))
    twin.load_state_dict(torch.load("prefix.pt"), strict=False)
    assert torch.equal(twin.prefix.folded()["decoder"], names["model"].prefix.folded()["decoder"])

    sizes = {"decoder_layers": 2, "decoder_embed_dim": 32, "max_target_positions": 128}
    save_trained(tmp_path, base, test_gpt2.shuffled_dictionary(257), prefix_length=10, **sizes)
    exec(load, names)
    assert names["found"].size(1) > names["prompt"].size(1)
