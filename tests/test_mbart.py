"""mBART against transformers' MBart on random weights, and the families' seam: language tags, files, tasks."""

import json
import sys
from argparse import Namespace

import pytest
import tiny
import torch
from fairseq import hub_utils
from fairseq.data import Dictionary
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fairseq_prefix import api
from fairseq_prefix.__main__ import main
from fairseq_prefix.errors import UsageError
from fairseq_prefix.families import bart, mbart
from fairseq_prefix.files.base import read_base
from fairseq_prefix.files.checkpoint import configuration, read_tuned, write_checkpoint
from fairseq_prefix.files.loading import EXPORT_KEY
from fairseq_prefix.files.subwords import Subwords
from fairseq_prefix.toolkit.task import ConditionalGenerationConfig, ConditionalGenerationTask

WORDS = 40
PIECES = tiny.SPECIALS + WORDS
TAG = {tag: PIECES + row for row, tag in enumerate(mbart.TAGS)}  # rows as in the embedding of mbart.cc25
SIZE = dict(encoder_embed_dim=64, encoder_ffn_embed_dim=96, encoder_layers=2, decoder_layers=2)
HEADS = dict(encoder_attention_heads=4, decoder_attention_heads=4)


def words() -> Dictionary:
    """The dictionary as dict.txt has it: without language tags and without `<mask>`."""
    return tiny.dictionary(mask=False, words=WORDS)


def make_task(**options) -> ConditionalGenerationTask:
    options = {"max_source_tokens": 50, **options}
    symbols = words()
    return ConditionalGenerationTask(ConditionalGenerationConfig(**options), symbols, symbols)


def build(method, task=None, **options):
    options = {**SIZE, **HEADS, "max_source_positions": 64, "max_target_positions": 64, **options}
    task = task or make_task()
    model = task.build_model(tiny.make_args(f"{method}_mbart_tiny", **options), from_checkpoint=True)
    return model.eval()


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A random MBart saved by transformers, and its folder with the dictionary."""
    sys.modules.setdefault("torchaudio", None)  # transformers would load it, and it is not made for every torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MBartConfig(
        vocab_size=PIECES + len(TAG) + 1,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_position_embeddings=64,
        scale_embedding=True,
        init_std=0.3,
    )
    theirs = transformers.MBartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:  # otherwise all norms would be the identity
                parameter.add_(0.3 * torch.randn(parameter.shape))
        theirs.model.shared.weight[2] += 0.4 * theirs.model.decoder.layer_norm.bias  # so that hypotheses end
    folder = tmp_path_factory.mktemp("mbart")
    theirs.save_pretrained(folder)
    words().save(str(folder / "dict.txt"))
    return theirs, folder


@pytest.fixture(scope="module")
def archive(hugging_face, tmp_path_factory):
    """The same weights as fairseq saves them: model.pt and a dict.txt without language tags."""
    theirs, folder = hugging_face
    model = build("full", base_model=str(folder))
    path = tmp_path_factory.mktemp("archive")
    torch.save({"args": None, "cfg": None, "model": model.state_dict()}, path / "model.pt")
    words().save(str(path / "dict.txt"))
    return path


def batch(rows=4, source=9, target=6, tags=("en_XX", "ro_RO")):
    """(source, lengths, decoder input) of different lengths, framed as in mBART's pretraining."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(tiny.SPECIALS, PIECES, (rows, source), generator=generator)
    previous = torch.randint(tiny.SPECIALS, PIECES, (rows, target), generator=generator)
    lengths = torch.tensor([source - row for row in range(rows)])
    for row, length in enumerate(lengths.tolist()):
        tokens[row, length - 2 : length] = torch.tensor([2, TAG[tags[0]]])
        tokens[row, length:] = 1
    previous[:, 0] = TAG[tags[1]]
    return tokens, lengths, previous


def their_logits(theirs, tokens, previous):
    with torch.no_grad():
        return theirs(input_ids=tokens, attention_mask=tokens.ne(1), decoder_input_ids=previous).logits


@pytest.mark.parametrize("form", ["hugging_face", "archive"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("full", {}),
        ("prefix", {"prefix_length": 0}),
        ("prompt", {"prompt_length": 0}),
        ("adapter", {"adapter_dim": 8}),
        ("top", {"top_layers": 1}),
    ],
)
def test_logits_equal_transformers(hugging_face, archive, form, method, options):
    """Freshly built, every method computes what the base computes."""
    theirs, folder = hugging_face
    model = build(method, base_model=str(folder if form == "hugging_face" else archive), **options)
    tokens, lengths, previous = batch()
    with torch.no_grad():
        ours = model(tokens, lengths, previous)[0]
    assert torch.allclose(ours, their_logits(theirs, tokens, previous)[..., : ours.size(-1)], atol=1e-4)


def test_prefix_attention_without_a_prefix_computes_the_base(hugging_face):
    theirs, folder = hugging_face
    model = build("prefix", base_model=str(folder), prefix_length=3)
    tokens, lengths, previous = batch()
    with torch.no_grad(), model.prefix_disabled():
        ours = model(tokens, lengths, previous)[0]
    with torch.no_grad():
        with_prefix = model(tokens, lengths, previous)[0]
    expected = their_logits(theirs, tokens, previous)[..., : ours.size(-1)]
    assert torch.allclose(ours, expected, atol=1e-4) and not torch.allclose(with_prefix, expected, atol=1e-2)


def test_a_decoder_prefix_equals_transformers_with_the_same_past(hugging_face):
    """transformers shifts the positions of the text by the length of a cache, which this test takes back."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    theirs, folder = hugging_face
    model = build("prefix", base_model=str(folder), prefix_length=3, prefix_sites="decoder")
    tokens, lengths, previous = batch(rows=2)
    past = DynamicCache()
    for layer in range(2):
        key, value = model.prefix.key_value("decoder", layer)
        past.update(key.detach().expand(2, -1, -1, -1), value.detach().expand(2, -1, -1, -1), layer)
    positions = theirs.model.decoder.embed_positions.weight
    with torch.no_grad():
        shifted = positions.clone()
        shifted[3:] = positions[:-3]
        kept, positions.data = positions.data, shifted
        try:
            expected = theirs(
                input_ids=tokens,
                attention_mask=tokens.ne(1),
                decoder_input_ids=previous,
                past_key_values=EncoderDecoderCache(past, DynamicCache()),
            ).logits
        finally:
            positions.data = kept
        ours = model(tokens, lengths, previous)[0]
    assert torch.allclose(ours, expected[..., : ours.size(-1)], atol=1e-4)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("method", ["full", "prefix", "prompt"])
def test_beam_texts_equal_transformers(hugging_face, method, beam):
    """Of the base alone: transformers has no prefix for mBART. `prefix` and `prompt` search with prefix attention."""
    theirs, folder = hugging_face
    task = make_task()
    task.cfg.max_source_tokens = 50
    options = {"full": {}, "prefix": {"prefix_length": 2}, "prompt": {"prompt_length": 0}}[method]
    model = build(method, task, base_model=str(folder), source_tag="de_DE", target_tag="ro_RO", **options)
    tokens, lengths, _ = batch(tags=("de_DE", "ro_RO"))
    bad = [[row] for row in (0, 1, 3, PIECES + len(TAG))]
    expected = theirs.generate(
        input_ids=tokens,
        attention_mask=tokens.ne(1),
        decoder_start_token_id=TAG["ro_RO"],
        bos_token_id=0,
        forced_eos_token_id=2,
        num_beams=beam,
        max_length=14,
        early_stopping=False if beam == 1 else True,
        do_sample=False,
        min_new_tokens=1,
        bad_words_ids=[[1], bad[-1]],
        length_penalty=1.0,
    )
    generator = task.build_generator([model], Namespace(beam=beam, max_len_a=0, max_len_b=12, lenpen=1.0))
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    if method == "prefix":
        with model.prefix_disabled():
            found = task.inference_step(generator, [model], sample)
    else:
        found = task.inference_step(generator, [model], sample)
    for row, hypotheses in zip(expected.tolist(), found, strict=True):
        text = row[1:]
        text = text[: text.index(2) + 1] if 2 in text else text
        assert hypotheses[0]["tokens"].tolist() == text
    assert len({len(row) for row in found}) and min(len(row[0]["tokens"]) for row in found) < 13, (
        "some end by themselves"
    )


def test_the_task_frames_texts_with_the_language_tags(hugging_face):
    _, folder = hugging_face
    task = make_task(max_source_tokens=5)
    build("prefix", task, base_model=str(folder), prefix_length=2, source_tag="fr_XX", target_tag="ro_RO")
    dataset = task.build_dataset_for_inference([torch.tensor([10, 11, 12, 2]), torch.arange(4, 14)], [4, 10])
    assert dataset[0]["source"].tolist() == [10, 11, 12, 2, TAG["fr_XX"]]
    assert dataset[1]["source"].tolist() == [4, 5, 6, 7, 8, 2, TAG["fr_XX"]], "cut to 5 tokens"
    assert task.source_dictionary.symbols[PIECES:] == list(mbart.SYMBOLS)


def test_a_text_cannot_hold_a_language_tag(hugging_face):
    """Typed without --bpe, as subwords of the dictionary: the task would strip the symbol silently."""
    task = make_task()
    build("prefix", task, base_model=str(hugging_face[1]), prefix_length=2)
    assert task.build_bpe(None).encode("w3 w4") == "w3 w4"
    with pytest.raises(UsageError, match=r"has the piece '\[ro_RO\]'"):
        task.build_bpe(None).encode("w3 [ro_RO]")


def test_a_checkpoint_requires_its_language_tags(hugging_face):
    _, folder = hugging_face
    options = {"base_model": str(folder), "prefix_length": 2}
    model = build("prefix", target_tag="ro_RO", **options)
    assert model.metadata()["conventions"]["target_tag"] == "ro_RO"
    build("prefix", target_tag="ro_RO", **options).load_state_dict(model.state_dict())
    with pytest.raises(UsageError, match="was trained with --target-tag ro_RO; pass that"):
        build("prefix", target_tag="de_DE", **options).load_state_dict(model.state_dict())


def test_both_forms_of_a_base_have_one_fingerprint(hugging_face, archive):
    _, folder = hugging_face
    models = [build("prefix", base_model=str(path), prefix_length=2) for path in (folder, archive)]
    assert models[0].base_fingerprint == models[1].base_fingerprint
    assert models[0].base_parameters == models[1].base_parameters


def test_families_of_one_form_are_told_apart(hugging_face, archive, tmp_path):
    for path in (hugging_face[1], archive):
        base = read_base(str(path))
        assert base.family is mbart.FAMILY and base.symbols[PIECES:] == list(mbart.SYMBOLS)
    bart = tiny.save_base(tmp_path / "bart")
    with pytest.raises(UsageError, match="is not a fairseq mBART checkpoint"):
        read_base(str(bart), mbart.FAMILY)
    with pytest.raises(UsageError, match="model_type is 'mbart', but only 'bart' is supported"):
        tiny.build("prefix_bart_tiny", base_model=str(hugging_face[1]), prefix_length=2)


def test_words_that_a_prefix_begins_with_are_framed(hugging_face):
    """The activations of the words equal the keys and values of a forward pass over the framed words."""
    _, folder = hugging_face
    options = dict(prefix_length=3, prefix_reparam="flat", prefix_init="words", prefix_init_text="w3 w9 w1")
    model = build("prefix", base_model=str(folder), source_tag="de_DE", target_tag="fr_XX", **options)
    text = [7, 13, 5]
    source, previous = torch.tensor([[*text, 2, TAG["de_DE"]]]), torch.tensor([[TAG["fr_XX"], *text]])
    plain = build("prefix", base_model=str(folder), prefix_length=1)  # fairseq's own attention calls no projection
    seen = {}
    for site, attention in (
        ("encoder", plain.encoder.layers[1].self_attn),
        ("decoder", plain.decoder.layers[1].self_attn),
    ):
        attention.k_proj.register_forward_hook(
            lambda module, _, output, site=site: seen.__setitem__(site, output[:, 0])
        )
    with torch.no_grad(), plain.prefix_disabled():
        plain(source, torch.tensor([5]), previous)
    for site, first in (("encoder", 0), ("decoder", 1)):
        key, _ = model.prefix.key_value(site, 1)  # 1 x H x P x d
        assert torch.allclose(key[0].transpose(0, 1).flatten(1), seen[site][first : first + 3], atol=1e-5)


def test_an_export_comes_back_with_its_tags(hugging_face, tmp_path):
    _, folder = hugging_face
    tags = {"source_tag": "de_DE", "target_tag": "ro_RO"}
    model = build("prefix", base_model=str(folder), prefix_length=2, **tags)
    path, exported, imported = (str(tmp_path / name) for name in ("c.pt", "p.safetensors", "i.pt"))
    args = tiny.make_args("prefix_mbart_tiny", **SIZE, **HEADS, **tags, prefix_length=2, base_model=str(folder))
    cfg = configuration(vars(args), {"max_source_tokens": 50}, str(folder))
    write_checkpoint(path, cfg, model.state_dict())
    main(["export", path, exported])
    main(["import", exported, imported, "--base-model", str(folder)])
    file = read_tuned(imported)
    assert (file.model_args["source_tag"], file.model_args["target_tag"]) == ("de_DE", "ro_RO")


# Other bases of the same form, and the API ----------------------------------------------------------------------------


def test_a_bart_with_norms_before_its_layers_stays_a_bart(tmp_path):
    options = dict(encoder_normalize_before=True, decoder_normalize_before=True)
    folder = tiny.save_base(tmp_path / "bart", **options)
    state = torch.load(folder / "model.pt", weights_only=True)
    torch.save({**state, "args": tiny.make_args("full_bart_tiny", **options)}, folder / "model.pt")
    assert read_base(str(folder)).family is bart.FAMILY
    with pytest.raises(UsageError, match="is not a fairseq mBART checkpoint"):
        read_base(str(folder), mbart.FAMILY)


def test_names_that_are_no_text_are_refused(tmp_path):
    torch.save({"model": {"decoder.embed_tokens.weight": torch.zeros(2, 2), 3: torch.zeros(1)}}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="3 in it is not a tensor"):
        read_base(str(tmp_path / "model.pt"))


def test_the_hub_forces_no_symbol(monkeypatch):
    """BART's own hub interface would begin every output with `<s>`, which mBART has never seen there."""
    found = {"args": Namespace(bpe=None, tokenizer=None), "task": make_task(), "models": []}
    monkeypatch.setattr(hub_utils, "from_pretrained", lambda *_, **__: found)
    monkeypatch.setattr(hub_utils.GeneratorHubInterface, "__init__", lambda *_: None)
    assert type(mbart.MBART.from_pretrained("folder")) is hub_utils.GeneratorHubInterface


@pytest.fixture
def load(hugging_face, monkeypatch):
    """`api.load` over words of the dictionary in place of subwords."""
    monkeypatch.setattr(api, "read_vocabulary", lambda _, dictionary, __: Subwords(None, dictionary))
    return api.load


def export(folder, tmp_path, **tags):
    model = build("prefix", base_model=str(folder), prefix_length=2, **tags)
    path, exported = str(tmp_path / "c.pt"), str(tmp_path / f"{'-'.join(tags.values())}.safetensors")
    args = tiny.make_args("prefix_mbart_tiny", **SIZE, **HEADS, **tags, prefix_length=2, base_model=str(folder))
    write_checkpoint(path, configuration(vars(args), {"max_source_tokens": 50}, str(folder)), model.state_dict())
    main(["export", path, exported])
    return exported


def test_each_prefix_of_the_api_has_its_languages(hugging_face, load, tmp_path):
    model = load(hugging_face[1])
    for name, tags in {"ro": ("en_XX", "ro_RO"), "fr": ("de_DE", "fr_XX")}.items():
        model.add(name, export(hugging_face[1], tmp_path, source_tag=tags[0], target_tag=tags[1]))
    texts, tasks = ["w1 w2 w3", "w4 w5", "w1 w2 w3", "w4 w5"], ["ro", "fr", "fr", None]
    together = model.generate(texts, tasks, beam=2, min_len=7, max_len_b=8)
    alone = [
        model.generate([text], task, beam=2, min_len=7, max_len_b=8)[0] for text, task in zip(texts, tasks, strict=True)
    ]
    assert together == alone and len(set(together)) > 1


def test_a_prefix_without_sound_languages_is_not_added(hugging_face, load, tmp_path):
    model, path = load(hugging_face[1]), export(hugging_face[1], tmp_path, source_tag="en_XX", target_tag="ro_RO")
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[EXPORT_KEY])
    conventions = header["prefix"]["conventions"]
    conventions["target_tag"] = "xx_XX"
    save_file(load_file(path), tmp_path / "bad.safetensors", {EXPORT_KEY: json.dumps(header)})
    with pytest.raises(UsageError, match=r"has no '\[xx_XX\]'"):
        model.add("bad", tmp_path / "bad.safetensors")
    del conventions["target_tag"]
    save_file(load_file(path), tmp_path / "none.safetensors", {EXPORT_KEY: json.dumps(header)})
    with pytest.raises(UsageError, match="does not record target_tag"):
        model.add("none", tmp_path / "none.safetensors")
    assert model.tasks == []


def test_a_fine_tuned_base_alone_keeps_its_languages(hugging_face, load, archive, tmp_path):
    state = torch.load(archive / "model.pt", weights_only=True)
    words().save(str(tmp_path / "dict.txt"))
    found = {}
    for tag in ("ro_RO", "fr_XX"):
        args = tiny.make_args("full_mbart_tiny", **SIZE, **HEADS, target_tag=tag)
        torch.save({**state, "args": args}, tmp_path / "model.pt")
        found[tag] = load(tmp_path).generate(["w1 w2 w3"], None, beam=2, min_len=7, max_len_b=8)
    assert found["ro_RO"] != found["fr_XX"]


def test_every_method_requires_the_task_that_frames(hugging_face):
    stock = Namespace(source_dictionary=words(), target_dictionary=words())
    for method in ("prefix", "full"):
        with pytest.raises(UsageError, match=f"--arch {method}_mbart_tiny requires --task conditional_generation"):
            tiny.build(f"{method}_mbart_tiny", stock, base_model=str(hugging_face[1]), **SIZE, **HEADS)
