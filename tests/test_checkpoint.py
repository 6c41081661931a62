"""Files: bases in every layout, fingerprints, prefix checkpoints and exports, and what is refused."""

import json
import os
import pickle
import shutil
from argparse import Namespace

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fairseq_prefix.__main__ import main
from fairseq_prefix.errors import UsageError
from fairseq_prefix.families.bart import FAMILY as BART
from fairseq_prefix.files import loading
from fairseq_prefix.files.base import read_base
from fairseq_prefix.files.checkpoint import configuration, import_export, read_tuned, write_checkpoint
from fairseq_prefix.files.dictionary import ABSENT_SYMBOLS
from fairseq_prefix.files.export import write as write_export
from fairseq_prefix.files.loading import EXPORT_KEY
from fairseq_prefix.files.metadata import METADATA_KEY
from fairseq_prefix.files.metadata import pack as pack_metadata
from fairseq_prefix.files.metadata import unpack as unpack_metadata
from fairseq_prefix.interfaces.method import METHODS


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A model and the checkpoint that fairseq would write of it."""
    args = tiny.make_args("prefix_bart_tiny", base_model=str(base), prefix_length=3, prefix_mid_dim=16)
    model = tiny.make_task().build_model(args)
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    cfg = configuration(vars(args), {"max_source_tokens": 50}, str(base))
    write_checkpoint(str(path), cfg, model.state_dict())
    return model, path


def same_base(model, other):
    return all(
        torch.equal(ours, theirs)
        for part in ("encoder", "decoder")
        for ours, theirs in zip(getattr(model, part).parameters(), getattr(other, part).parameters(), strict=True)
    )


# Bases ----------------------------------------------------------------------------------------------------------------


def rewrite(base, folder, change, lines=None):
    """A copy of a base with a changed state dict and, where given, another dict.txt."""
    state = torch.load(base / "model.pt", weights_only=True)
    change(state["model"])
    folder.mkdir()
    torch.save(state, folder / "model.pt")
    text = (base / "dict.txt").read_text() if lines is None else lines
    (folder / "dict.txt").write_text(text)
    return str(folder)


def set_rows(state, rows):
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        if name in state:
            state[name] = rows


def test_mask_row_is_dropped_for_a_dictionary_without_it(base):
    """Official archives have one row more than dict.txt has symbols: `<mask>`, which only some tasks add."""
    whole = tiny.build("prefix_bart_tiny", base_model=str(base), prefix_length=2)
    without = tiny.build(
        "prefix_bart_tiny", tiny.make_task(tiny.dictionary(mask=False)), base_model=str(base), prefix_length=2
    )
    assert without.encoder.embed_tokens.weight.size(0) == tiny.WORDS + 4
    assert torch.equal(without.encoder.embed_tokens.weight, whole.encoder.embed_tokens.weight[:-1])
    assert without.base_fingerprint == whole.base_fingerprint, "it is the same base"


def test_rows_of_padding_before_the_mask_are_passed_over(base, tmp_path):
    """bart.base has embeddings for symbols that no data contains, and `<mask>` after them."""

    def pad(state):
        rows = state["encoder.embed_tokens.weight"]
        set_rows(state, torch.cat([rows[:-1], torch.full((7, 128), 9.0), rows[-1:]]))

    lines = "".join(f"w{n} 1\n" for n in range(tiny.WORDS)) + "".join(f"madeupword{n} 0\n" for n in range(7))
    padded = rewrite(base, tmp_path / "padded", pad, lines)
    plain = tiny.build("prefix_bart_tiny", base_model=str(base), prefix_length=2)
    assert same_base(plain, tiny.build("prefix_bart_tiny", base_model=padded, prefix_length=2))


def hugging_face(base, folder, change=lambda state: None, lines=None, config=None):
    """A base in the layout that transformers writes, with a changed state dict, dict.txt or config.json."""
    state = torch.load(base / "model.pt", weights_only=True)["model"]
    raw = {f"model.{name}": tensor for name, tensor in state.items() if "embed_tokens" not in name}
    raw.pop("model.decoder.output_projection.weight", None)
    raw["model.shared.weight"] = state["encoder.embed_tokens.weight"]
    change(raw)
    folder.mkdir()
    save_file(
        {name: tensor.clone() for name, tensor in raw.items() if "version" not in name}, folder / "model.safetensors"
    )
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    (folder / "config.json").write_text(json.dumps({"model_type": "bart", **heads, **(config or {})}))
    (folder / "dict.txt").write_text((base / "dict.txt").read_text() if lines is None else lines)
    return folder


def add_rows(state):
    for name, tensor in state.items():
        if name.endswith(("shared.weight", "embed_tokens.weight", "output_projection.weight")):
            state[name] = torch.cat([tensor, torch.full((3, 128), 9.0)])


WORDS = "".join(f"w{n} 1\n" for n in range(tiny.WORDS))


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("make", [hugging_face, rewrite])
def test_rows_that_no_symbol_names_are_refused(base, tmp_path, make, mask):
    """Such as tokens that were added to a BART after `<mask>`: the last would be taken for `<mask>`."""
    lines = WORDS + "<mask> 0\n" * mask
    path = make(base, tmp_path / "added", add_rows, lines)
    task = tiny.make_task(tiny.dictionary(mask=mask))
    with pytest.raises(
        UsageError, match="has 68 embeddings, but .*dict.txt names 64 symbols and <mask>; name the others"
    ):
        tiny.build("prefix_bart_tiny", task, base_model=str(path), prefix_length=2)


@pytest.mark.parametrize("make", [hugging_face, rewrite])
def test_one_row_more_than_symbols_named_after_the_mask_is_refused(base, tmp_path, make):
    lines = WORDS + "<mask> 0\nadded0 0\nadded1 0\n"
    path = make(base, tmp_path / "added", add_rows, lines)
    symbols = tiny.dictionary()
    symbols.add_symbol("added0"), symbols.add_symbol("added1")
    with pytest.raises(UsageError, match="has 68 embeddings, but .*dict.txt names 67 symbols; name the others"):
        tiny.build("prefix_bart_tiny", tiny.make_task(symbols), base_model=str(path), prefix_length=2)


@pytest.mark.parametrize("make", [hugging_face, rewrite])
def test_rows_that_are_named_after_the_mask_are_the_base_s(base, tmp_path, make):
    path = make(base, tmp_path / "added", add_rows, WORDS + "<mask> 0\nadded0 0\nadded1 0\nadded2 0\n")
    symbols = tiny.dictionary()
    symbols.add_symbol("added0"), symbols.add_symbol("added1"), symbols.add_symbol("added2")
    added = tiny.build("prefix_bart_tiny", tiny.make_task(symbols), base_model=str(path), prefix_length=2)
    plain = tiny.build("prefix_bart_tiny", base_model=str(base), prefix_length=2)
    rows = added.encoder.embed_tokens.weight
    assert torch.equal(rows[:-3], plain.encoder.embed_tokens.weight) and rows[-3:].eq(9).all()
    assert added.base_fingerprint != plain.base_fingerprint


@pytest.mark.parametrize("make", [hugging_face, rewrite])
def test_the_mask_is_its_own_row_where_the_data_lack_what_is_named_after_it(base, tmp_path, make):
    path = make(base, tmp_path / "added", add_rows, WORDS + "<mask> 0\nadded0 0\nadded1 0\nadded2 0\n")
    task = tiny.make_task(tiny.dictionary())
    cut = tiny.build("prefix_bart_tiny", task, base_model=str(path), prefix_length=2)
    plain = tiny.build("prefix_bart_tiny", base_model=str(base), prefix_length=2)
    assert torch.equal(cut.encoder.embed_tokens.weight, plain.encoder.embed_tokens.weight)


def test_a_hugging_face_folder_is_the_same_base_as_the_archive(base, tmp_path):
    plain, theirs = (
        tiny.build("prefix_bart_tiny", base_model=str(path), prefix_length=2)
        for path in (base, hugging_face(base, tmp_path / "bart"))
    )
    assert same_base(plain, theirs) and plain.base_fingerprint == theirs.base_fingerprint


def untie(name):
    """A change that adds an embedding of another name, which differs."""

    def change(state):
        embedding = next(
            tensor for key, tensor in state.items() if key.endswith(("shared.weight", "embed_tokens.weight"))
        )
        state[name] = embedding + 1

    return change


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((hugging_face, name) for name in ("lm_head.weight", "model.decoder.embed_tokens.weight")),
        (hugging_face, "model.encoder.embed_tokens.weight"),
        *((rewrite, name) for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight")),
    ],
)
def test_embeddings_that_are_not_tied_are_refused(base, tmp_path, make, name):
    """One of them would be used for all, and the fingerprint would not show it."""
    path = make(base, tmp_path / "untied", untie(name))
    with pytest.raises(UsageError, match="only tied embeddings are supported"):
        tiny.build("prefix_bart_tiny", base_model=str(path), prefix_length=2)


@pytest.mark.parametrize(
    ("config", "vocabulary", "message"),
    [
        ({"pad_token_id": 0}, None, "config.json: pad_token_id is 0, but only 1 is supported"),
        ({"tie_word_embeddings": False}, None, "config.json: tie_word_embeddings is False, but only True"),
        ({}, {"<s>": 0, "<mask>": 4}, "vocab.json: <mask> is row 4, but by dict.txt row 64"),
    ],
)
def test_a_hugging_face_bart_with_symbols_in_other_rows_is_refused(base, tmp_path, config, vocabulary, message):
    folder = hugging_face(base, tmp_path / "bart", config=config)
    if vocabulary:
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UsageError, match=message):
        tiny.build("prefix_bart_tiny", base_model=str(folder), prefix_length=2)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_weights_in_several_files_are_refused_with_what_to_do(base, tmp_path, name):
    folder = hugging_face(base, tmp_path / "bart")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / name).write_text("{}")
    with pytest.raises(UsageError, match=f"{name}: weights in several files are not supported; save them in one"):
        tiny.build("prefix_bart_tiny", base_model=str(folder), prefix_length=2)


def test_a_gpt2_with_rows_that_no_symbol_names_is_refused(tmp_path):
    symbols = tiny.dictionary(mask=False)
    base = tiny.save_base(tmp_path / "gpt2", symbols=symbols, arch="full_gpt2_tiny")
    plain = tiny.build("prefix_gpt2_tiny", base_model=str(base), prefix_length=2)
    assert plain.decoder.embed_tokens.weight.size(0) == 64

    def add(state):
        for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
            state[name] = torch.cat([state[name], torch.ones(1, 128)])
        state[ABSENT_SYMBOLS] = torch.zeros(65, dtype=torch.bool)

    with pytest.raises(UsageError, match="has 65 embeddings, but .*dict.txt names 64 symbols; name the others"):
        tiny.build("prefix_gpt2_tiny", base_model=rewrite(base, tmp_path / "added", add), prefix_length=2)


def test_old_archives_with_joint_projections_and_heads_load(base, tmp_path):
    def age(state):
        for stem in [name.removesuffix("q_proj.weight") for name in state if name.endswith("self_attn.q_proj.weight")]:
            for kind in ("weight", "bias"):
                parts = [state.pop(f"{stem}{letter}_proj.{kind}") for letter in "qkv"]
                state[f"{stem}in_proj_{kind}"] = torch.cat(parts)
        state["classification_heads.mnli.dense.weight"] = torch.zeros(128, 128)
        state["classification_heads.mnli.out_proj.weight"] = torch.zeros(3, 128)
        state["decoder.version"] = torch.tensor([3.0])

    old = rewrite(base, tmp_path / "old", age)
    assert same_base(*(tiny.build("prefix_bart_tiny", base_model=str(b), prefix_length=2) for b in (base, old)))


def test_a_model_file_alone_and_half_precision_are_the_same_base(base, tmp_path):
    def halve(state):
        for name in state:
            state[name] = state[name].half()

    half = rewrite(base, tmp_path / "half", halve)
    rounded = tiny.build("prefix_bart_tiny", base_model=half, prefix_length=2)
    assert rounded.encoder.embed_tokens.weight.dtype == torch.float32
    alone = tiny.build("prefix_bart_tiny", base_model=str(base / "model.pt"), prefix_length=2)
    assert alone.base_fingerprint != rounded.base_fingerprint


@pytest.mark.parametrize(
    ("change", "lines", "message"),
    [
        (lambda s: None, "x 1\ny 1\n", "symbol 4 is 'w0' instead of 'x'; binarise the data with the base's dict.txt"),
        (lambda s: set_rows(s, torch.zeros(30, 128)), None, "has 30 embeddings, but the dictionary .* 65 symbols"),
        (lambda s: s.pop("encoder.layers.1.fc1.weight"), None, "lacks encoder.layers.1.fc1.weight; choose the arch"),
        (
            lambda s: s.update({"encoder.layers.1.fc1.weight": torch.zeros(2, 3)}),
            None,
            "is 2x3, but .* expects 512x128",
        ),
        (lambda s: s.update({"encoder.layers.9.fc1.bias": torch.zeros(3)}), None, "has no place for"),
        (lambda s: s.pop("encoder.embed_tokens.weight"), None, "is not a fairseq BART checkpoint"),
        (lambda s: None, "not a dictionary\n", "dict.txt is not a fairseq dictionary"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_in_one_sentence(base, tmp_path, change, lines, message):
    with pytest.raises(UsageError, match=message):
        tiny.build("prefix_bart_tiny", base_model=rewrite(base, tmp_path / "b", change, lines), prefix_length=2)


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "t5"), ("activation_function", "relu"), ("scale_embedding", True)]
)
def test_a_hugging_face_model_of_another_kind_is_refused(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart", key: value}))
    save_file({"shared.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=f"{key} is {value!r}"):
        read_base(str(tmp_path), BART)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_malformed_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match="config.json is not a model's configuration"):
        read_base(str(tmp_path), BART)


def test_another_number_of_heads_is_refused(base, tmp_path):
    """No shape of a weight shows it."""
    state = torch.load(base / "model.pt", weights_only=True)
    state["args"] = Namespace(encoder_attention_heads=8)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="trained with --encoder-attention-heads 8, but --arch prefix_bart_tiny has 4"):
        tiny.build("prefix_bart_tiny", base_model=str(tmp_path / "model.pt"), prefix_length=2)


# Nothing is executed --------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["model.pt", "pytorch_model.bin", "checkpoint.pt"])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path, where):
    mark = tmp_path / "executed"
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    for write in (lambda obj, path: torch.save(obj, path), lambda obj, path: path.write_bytes(pickle.dumps(obj))):
        write({"model": {"encoder.embed_tokens.weight": Payload(mark)}}, tmp_path / where)
        with pytest.raises(UsageError, match="cannot be loaded"):
            if where == "checkpoint.pt":
                main(["inspect", str(tmp_path / where)])
            else:
                if where == "model.pt":
                    (tmp_path / "config.json").unlink(missing_ok=True)
                read_base(str(tmp_path), BART)
        assert not mark.exists()


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_truncated_checkpoint_is_refused(trained, tmp_path, size):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(trained[1].read_bytes()[:size])
    with pytest.raises(UsageError, match="cannot be loaded: it is truncated or not a checkpoint"):
        read_tuned(str(path))


# The prefix's own files -----------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_prefix_and_not_the_base(trained):
    model, path = trained
    saved = torch.load(path, weights_only=True)["model"]
    assert all(name.startswith("prefix.") for name in saved)
    assert sum(t.numel() for n, t in saved.items() if n != METADATA_KEY) == sum(
        parameter.numel() for parameter in model.prefix.parameters()
    )


def test_export_and_import_keep_every_key_and_value(trained, base, tmp_path):
    model, path = trained
    exported, imported = str(tmp_path / "prefix.safetensors"), str(tmp_path / "imported.pt")
    main(["export", str(path), exported])
    main(["import", exported, imported, "--base-model", str(base)])
    folded = model.prefix.folded()
    assert {site: tuple(tensor.shape) for site, tensor in load_file(exported).items()} == {
        site: (3, 2 * 2 * 128) for site in ("encoder", "decoder", "cross")
    }
    for file in (exported, imported):
        for site, table in read_tuned(file).folded.items():
            assert torch.equal(table, folded[site])


def test_a_file_is_folded_once(trained, tmp_path, monkeypatch):
    calls, method = [], METHODS["prefix"]
    fold = method.fold
    monkeypatch.setattr(method, "fold", lambda *arguments: calls.append(1) or fold(*arguments))
    main(["export", str(trained[1]), str(tmp_path / "p.safetensors")])
    assert len(calls) == 1
    main(["inspect", str(tmp_path / "p.safetensors")])
    assert len(calls) == 2


def test_exporting_again_gives_the_same_bytes(trained, tmp_path):
    exports = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in exports:
        main(["export", str(trained[1]), str(path)])
    assert len({path.read_bytes() for path in exports}) == 1


def test_importing_leaves_generation_unchanged(trained, base, tmp_path):
    from fairseq.checkpoint_utils import load_model_ensemble

    model, path = trained
    main(["export", str(path), str(tmp_path / "p.safetensors")])
    main(["import", str(tmp_path / "p.safetensors"), str(tmp_path / "i.pt"), "--base-model", "/moved/away"])
    overrides = {"base_model": str(base)}
    (loaded,), _ = load_model_ensemble([str(tmp_path / "i.pt")], arg_overrides=overrides, task=tiny.make_task())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(*tiny.batch())[0], model.eval()(*tiny.batch())[0])


def test_the_base_alone_as_a_checkpoint(base, tmp_path):
    from fairseq.checkpoint_utils import load_model_ensemble

    path = str(tmp_path / "base.pt")
    main(["base", path, "--arch", "prefix_bart_tiny", "--base-model", str(base)])
    (loaded,), _ = load_model_ensemble([path], task=tiny.make_task())
    assert loaded.folded_parameters == 0
    assert same_base(loaded, tiny.build("prefix_bart_tiny", base_model=str(base), prefix_length=2))


def test_inspect_describes_every_kind_of_file(trained, base, tmp_path, capsys):
    model, path = trained
    exported = tmp_path / "prefix.safetensors"
    main(["export", str(path), str(exported)])
    capsys.readouterr()
    descriptions = []
    for file in (path, exported, base / "model.pt"):
        main(["inspect", str(file), "--json"])
        descriptions.append(json.loads(capsys.readouterr().out))
    assert [d["kind"] for d in descriptions] == ["prefix checkpoint", "exported prefix", "whole model"]
    assert [d["stored_parameters"] for d in descriptions] == [4608, 4608, model.base_parameters]
    assert descriptions[0]["trained_parameters"] == sum(p.numel() for p in model.prefix.parameters())
    assert descriptions[0]["base_fingerprint"] == descriptions[1]["base_fingerprint"] == model.base_fingerprint
    main(["inspect", str(exported)])
    assert "encoder 3 x 2 layers" in capsys.readouterr().out


def test_a_damaged_export_is_refused(trained, tmp_path):
    exported = tmp_path / "prefix.safetensors"
    main(["export", str(trained[1]), str(exported)])
    whole = exported.read_bytes()
    for damaged in (b"", whole[:100], whole[:-10], b"\xff" * 64, json.dumps({}).encode()):
        exported.write_bytes(damaged)
        with pytest.raises(UsageError, match="is not an export of a prefix, prompt, .* or is damaged"):
            read_tuned(str(exported))
    save_file({"encoder": torch.zeros(3, 4)}, exported)
    with pytest.raises(UsageError, match="is not an export of a prefix"):
        read_tuned(str(exported))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "the file is of format 2, this version reads 1; update the plugin"),
        ({"method": "later"}, "the file is of the method 'later', which this version does not know; update the plugin"),
    ],
)
def test_a_later_version_s_files_are_refused(trained, tmp_path, changes, message):
    model, path = trained
    exported, checkpoint = tmp_path / "prefix.safetensors", torch.load(path, weights_only=True)
    main(["export", str(path), str(exported)])
    with safe_open(exported, framework="pt") as file:
        header = json.loads(file.metadata()[EXPORT_KEY])
    metadata = {**header.pop("prefix"), **changes}
    header[changes.get("method", "prefix")] = metadata
    save_file(load_file(exported), exported, {EXPORT_KEY: json.dumps(header)})
    checkpoint["model"][METADATA_KEY] = pack_metadata({**model.metadata(), **changes})
    torch.save(checkpoint, tmp_path / "later.pt")
    for file in (exported, tmp_path / "later.pt"):
        with pytest.raises(UsageError, match=message):
            main(["inspect", str(file)])


def test_averaged_checkpoints_are_refused(trained, base):
    state = trained[0].state_dict()
    state[METADATA_KEY] = (state[METADATA_KEY] + state[METADATA_KEY]) // 2
    with pytest.raises(UsageError, match="cannot be averaged"):
        trained[0].load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_length": 4}, "has the geometry .*encoder 3 x .* the model .*encoder 4 x"),
        ({"prefix_sites": "encoder"}, "has the geometry"),
        ({"prefix_mid_dim": 8}, "has --prefix-mid-dim 16, the model 8"),
        ({"prefix_reparam": "flat"}, "has --prefix-reparam mlp, the model flat"),
    ],
)
def test_another_geometry_is_refused(trained, base, options, message):
    other = tiny.build(
        "prefix_bart_tiny", **{"base_model": str(base), "prefix_length": 3, "prefix_mid_dim": 16, **options}
    )
    with pytest.raises(UsageError, match=message):
        other.load_state_dict(trained[0].state_dict())


def test_another_base_is_refused(trained, tmp_path):
    other = tiny.build(
        "prefix_bart_tiny", base_model=str(tiny.save_base(tmp_path, seed=9)), prefix_length=3, prefix_mid_dim=16
    )
    with pytest.raises(UsageError, match="trained over another base"):
        other.load_state_dict(trained[0].state_dict())


def test_another_dictionary_is_refused(trained, base, tmp_path):
    """Without the base's dict.txt only the prefix can tell that the data was binarised with another one."""
    shutil.copy(base / "model.pt", tmp_path)
    symbols = tiny.dictionary()
    symbols.symbols[4], symbols.symbols[5] = symbols.symbols[5], symbols.symbols[4]
    other = tiny.build(
        "prefix_bart_tiny", tiny.make_task(symbols), base_model=str(tmp_path), prefix_length=3, prefix_mid_dim=16
    )
    with pytest.raises(UsageError, match="trained with another dictionary"):
        other.load_state_dict(trained[0].state_dict())


def test_another_convention_is_refused(trained, base):
    task = Namespace(source_dictionary=tiny.dictionary(), target_dictionary=tiny.dictionary())  # like translation's
    other = tiny.build("prefix_bart_tiny", task, base_model=str(base), prefix_length=3, prefix_mid_dim=16)
    with pytest.raises(UsageError, match="with <s> around the text and requires --task conditional_generation"):
        other.load_state_dict(trained[0].state_dict())


def test_another_length_of_sources_is_refused(trained, base):
    task = tiny.make_task(max_source_tokens=40)
    other = tiny.build("prefix_bart_tiny", task, base_model=str(base), prefix_length=3, prefix_mid_dim=16)
    with pytest.raises(UsageError, match="pass --max-source-tokens 50"):
        other.load_state_dict(trained[0].state_dict())


def test_a_training_that_took_the_usual_length_of_sources_records_it(trained, tmp_path):
    """In its export, and in what that is imported as: fairseq saves the option as it was given, which is not at all."""
    state = torch.load(trained[1], weights_only=True)
    state["cfg"]["task"]["max_source_tokens"] = None
    torch.save(state, tmp_path / "checkpoint.pt")
    write_export(read_tuned(str(tmp_path / "checkpoint.pt")), str(tmp_path / "prefix.safetensors"))
    import_export(read_tuned(str(tmp_path / "prefix.safetensors")), str(tmp_path / "imported.pt"), "base")
    cfg = torch.load(tmp_path / "imported.pt", weights_only=True)["cfg"]
    assert cfg["task"]["max_source_tokens"] == cfg["model"].max_source_tokens == 50


@pytest.mark.parametrize("limit", [-1, "50", None])
def test_metadata_with_a_length_that_is_none_are_damaged(trained, limit):
    metadata = trained[0].metadata()
    metadata["conventions"] = {**metadata["conventions"], "max_source_tokens": limit}
    with pytest.raises(UsageError, match="the checkpoint's metadata is damaged"):
        unpack_metadata({METADATA_KEY: pack_metadata(metadata)})


def test_a_prefix_that_started_from_words_is_loaded_without_them(base):
    options = {"base_model": str(base), "prefix_length": 3, "prefix_init": "words", "prefix_init_text": "w1 w2"}
    args = tiny.make_args("prefix_bart_tiny", **options)
    model = tiny.make_task().build_model(args)
    args.prefix_init_text = None  # as are the files of a BPE on another machine
    tiny.make_task().build_model(args).load_state_dict(model.state_dict())
    assert args.prefix_initialised_from == "w1 w2"


def test_a_whole_model_is_not_taken_for_a_prefix(trained, base):
    with pytest.raises(UsageError, match="is a whole model: pass it as --base-model"):
        trained[0].load_state_dict(torch.load(base / "model.pt", weights_only=True)["model"])


@pytest.mark.usefixtures("hooks")
def test_copies_of_checkpoints_are_atomic(tmp_path, monkeypatch):
    """A run killed while fairseq copies a checkpoint must not leave half a checkpoint_last.pt."""
    from fairseq.file_io import PathManager

    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    source.write_bytes(b"new")
    target.write_bytes(b"old")

    def killed(_, temporary):
        open(temporary, "wb").write(b"n")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt"]


# Disks ----------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    """torch alone loads other weights without a word."""
    path = tmp_path / "model.pt"
    torch.save({"model": {"weight": torch.zeros(10_000)}}, path)
    assert loading.load_tensors(path)["model"]["weight"].sum() == 0
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["model"]["weight"].sum() != 0
    with pytest.raises(UsageError, match=r"model\.pt cannot be loaded: it is damaged"):
        loading.load_tensors(path)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, error):
    def write(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise error

    with pytest.raises(UsageError, match=r"x\.pt cannot be written \((No space|PytorchStreamWriter).*is there room"):
        loading.atomically(tmp_path / "x.pt", write)
    assert not list(tmp_path.iterdir())
