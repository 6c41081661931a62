"""What prompts, adapters and top layers have in common with prefixes: a frozen base, and files of little."""

import copy
import json
import pickle
import re
import shutil
from argparse import Namespace

import methods
import pytest
import test_training
import tiny
import torch
from conftest import REPOSITORY
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models.bart import model as bart_model
from fairseq.sequence_generator import SequenceGeneratorWithAlignment
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fairseq_prefix.__main__ import main
from fairseq_prefix.attention import linear
from fairseq_prefix.errors import UsageError
from fairseq_prefix.families.model import FamilyModel
from fairseq_prefix.files.checkpoint import configuration, write_checkpoint
from fairseq_prefix.files.metadata import METADATA_KEY
from fairseq_prefix.files.metadata import pack as pack_metadata
from fairseq_prefix.toolkit.criterion import verify_trainable

each_family = pytest.mark.parametrize("family", methods.FAMILIES)
each_method = pytest.mark.parametrize("method", methods.METHODS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {family: methods.make_base(tmp_path_factory.mktemp(family), family) for family in methods.FAMILIES}


# The base -------------------------------------------------------------------------------------------------------------


@each_method
@torch.no_grad()
@each_family
def test_where_nothing_is_trained_it_is_the_base_bit_for_bit(bases, family, method):
    model = methods.build(method, family, bases[family], **methods.UNTOUCHED[method]).eval()
    whole = methods.build("full", family, bases[family]).eval()
    assert torch.equal(model(*methods.inputs(family))[0], whole(*methods.inputs(family))[0])
    found, expected = (methods.search(m, family, 3, *methods.sources(family)) for m in (model, whole))
    assert methods.token_lists(found) == methods.token_lists(expected)
    assert model.folded_parameters == 0 and model.declared_parameters == set() and model.geometry == {}


@pytest.mark.parametrize("method", ["adapter", "top"])
@torch.no_grad()
@each_family
def test_training_starts_from_the_base_bit_for_bit(bases, family, method, monkeypatch):
    monkeypatch.setattr(linear, "available", lambda: False)  # it rounds differently
    model = methods.build(method, family, bases[family]).eval()
    whole = methods.build("full", family, bases[family]).eval()
    assert torch.equal(model(*methods.inputs(family))[0], whole(*methods.inputs(family))[0])
    assert not torch.equal(methods.strengthen(model)(*methods.inputs(family))[0], whole(*methods.inputs(family))[0])


# Decoding -------------------------------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("beam", [1, 2, 5])
@torch.no_grad()
@each_family
def test_batched_search_is_token_identical_to_searching_each_row_without_a_cache(bases, family, method, beam):
    model = methods.strengthen(methods.build(method, family, bases[family]))
    model = methods.ends_early(model, family, beam)
    for seed in (1, 2):
        tokens, lengths = methods.sources(family, seed=seed)
        found = methods.token_lists(methods.search(model, family, beam, tokens, lengths))
        for row, hypotheses in enumerate(found):
            assert hypotheses == methods.search_uncached(model, family, beam, tokens[row, : lengths[row]])


@each_method
@torch.no_grad()
@each_family
def test_rows_share_a_batch_without_influence(bases, family, method):
    model = methods.strengthen(methods.build(method, family, bases[family]))
    tokens, lengths, previous = methods.inputs(family)
    together = model(tokens, lengths, previous)[0]
    for row in range(len(tokens)):
        own = previous[row][previous[row].ne(1)]
        alone = model(tokens[row : row + 1, : lengths[row]], lengths[row : row + 1], own[None])[0]
        torch.testing.assert_close(together[row, : len(own)], alone[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["full", "prefix", *methods.METHODS])
@torch.no_grad()
@each_family
def test_alignment_is_printed_where_attention_is_recorded_and_refused_elsewhere(bases, family, method):
    model, task = methods.build(method, family, bases[family]).eval(), methods.make_task(family)
    cfg = Namespace(generation=GenerationConfig(print_alignment="hard"))
    if family == "gpt2" or method in ("prefix", "prompt"):
        with pytest.raises(UsageError, match=f"--print-alignment is not available for --arch {method}_{family}_tiny"):
            model.prepare_for_inference_(cfg)
        return
    model.prepare_for_inference_(cfg)
    generator = SequenceGeneratorWithAlignment([model], task.target_dictionary, beam_size=2, max_len_b=12)
    tokens, lengths = methods.sources(family)
    target = tokens.new_full((len(tokens), 3), 4)
    net_input = {"src_tokens": tokens, "src_lengths": lengths, "prev_output_tokens": target}
    found = task.inference_step(generator, [model], {"net_input": net_input, "target": target})
    assert all(len(row[0]["alignment"]) for row in found)


@pytest.fixture(scope="module")
def gentle_bases(tmp_path_factory):
    return {f: methods.make_base(tmp_path_factory.mktemp(f"gentle_{f}"), f, scale=0.08) for f in methods.FAMILIES}


@pytest.mark.parametrize("method", ["prefix", *methods.METHODS])
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_family
def test_half_precision_computes_and_decodes_the_same_but_for_rounding(gentle_bases, family, method, dtype):
    """Prefixes, prompts and adapters stay in fp32 and are cast where they are used; the base's own layers go with the
    base. What is trained changes the logits by much more than rounding does.
    """
    model = methods.strengthen(methods.build(method, family, gentle_bases[family]))
    base = methods.build(method, family, gentle_bases[family], **methods.UNTOUCHED[method]).eval()
    tokens, lengths, previous = methods.inputs(family)
    counted = previous.ne(1)
    expected, untouched = (m(tokens, lengths, previous)[0][counted] for m in (model, base))
    half = copy.deepcopy(model).to(dtype)
    kept = torch.float32 if method != "top" else dtype
    assert {p.dtype for n, p in half.named_parameters() if n in half.declared_parameters} == {kept}
    found = half(tokens, lengths, previous)[0][counted].float()
    error, effect = ((logits - expected)[:, 4:].norm() for logits in (found, untouched))
    assert error < effect / 20
    assert all(len(row) == 2 for row in methods.search(half, family, 2, *methods.sources(family)))


# Copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["prefix", *methods.METHODS])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@each_family
def test_a_copy_has_layers_and_what_is_trained_of_its_own(bases, family, method, checkpointing, clone):
    """As fairseq's exponential moving average copies a model; with gradients, where activations are checkpointed."""
    model = methods.strengthen(methods.build(method, family, bases[family], checkpoint_activations=checkpointing))
    before = model(*methods.inputs(family))[0]
    other = methods.strengthen(clone(model))
    assert not torch.equal(other(*methods.inputs(family))[0], before)
    assert torch.equal(model(*methods.inputs(family))[0], before)
    with torch.no_grad():
        other.decoder.layers[0].fc1.bias.add_(1)
    changed = clone(other)(*methods.inputs(family))[0]
    assert torch.equal(other(*methods.inputs(family))[0], changed)


# Gradients ------------------------------------------------------------------------------------------------------------


@each_method
@each_family
def test_gradients_reach_what_is_declared_and_are_the_same_with_activation_checkpointing(bases, family, method):
    plain, saving = (
        methods.strengthen(methods.build(method, family, bases[family], checkpoint_activations=checkpointing))
        for checkpointing in (False, True)
    )
    saving.load_state_dict(plain.state_dict())
    expected, found = (methods.gradients(model, family) for model in (plain, saving))
    assert expected.keys() == found.keys() == plain.declared_parameters
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0 or name.endswith("k_proj.bias"), name  # a softmax does not see that bias
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)


def interrupt(model, family, how):
    """What may happen between two forward passes, or between the last one and the backward pass."""
    if how == "a validation":
        with torch.no_grad():
            model.eval()(*methods.inputs(family))
        model.train()
    elif how == "evaluation mode":
        model.eval()
    elif how == "another prefix":
        model.use(copy.deepcopy(model.prefix))
        methods.strengthen(model)


@pytest.mark.parametrize("how", ["nothing", "a validation", "evaluation mode", "another prefix"])
@pytest.mark.parametrize("method", ["prefix", *methods.METHODS])
@each_family
def test_several_passes_and_one_backward_give_the_same_gradients_with_activation_checkpointing(
    bases, family, method, how
):
    """Each pass is recomputed with its own virtual tokens, dropout and mode."""
    if how == "another prefix" and method != "prefix":
        pytest.skip("only prefixes can be exchanged")
    options = {"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1, "base_dropout": "on"}
    options |= {"prefix_dropout": 0.3} if method == "prefix" else {}
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(4)
        model = methods.build(method, family, bases[family], checkpoint_activations=checkpointing, **options)
        trained, data = {name: p for name, p in model.named_parameters() if p.requires_grad}, methods.inputs(family)
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        loss = 0.0
        for _ in range(2):
            loss = loss + model.train()(*data)[0].log_softmax(-1)[..., 7].square().sum()
            interrupt(model, family, how)
        found.append(torch.autograd.grad(loss, list(trained.values())))
    for name, ours, plain in zip(trained, found[1], found[0], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item(), msg=name)


@pytest.mark.parametrize("method", ["prefix", *methods.METHODS])
@each_family
def test_passes_in_evaluation_do_not_depend_on_those_before_them(bases, family, method):
    """Each has a graph of its own, and the precision that it is asked for."""
    model = methods.strengthen(methods.build(method, family, bases[family]))
    with torch.no_grad():
        expected = model(*methods.inputs(family))[0]
        with torch.autocast("cpu", torch.bfloat16):
            model(*methods.inputs(family))
        assert torch.equal(model(*methods.inputs(family))[0], expected)
    for _ in range(2):
        logits = model(*methods.inputs(family))[0]
        logits.sum().backward()
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@each_family
def test_there_is_no_graph_below_the_first_layer_that_is_trained(bases, family, checkpointing):
    model = methods.build("top", family, bases[family], checkpoint_activations=checkpointing).train()
    seen = {}
    for number, layer in enumerate(model.decoder.layers):
        layer.register_forward_hook(lambda _, __, output, number=number: seen.update({number: output[0].requires_grad}))
    if family == "bart":
        model.encoder.register_forward_hook(
            lambda _, __, output: seen.update(encoder=output["encoder_out"][0].requires_grad)
        )
    assert model(*methods.inputs(family))[0].requires_grad
    assert seen == {0: False, 1: True} | ({"encoder": False} if family == "bart" else {})


@each_family
def test_the_embeddings_can_be_trained_with_the_top_layers(bases, family):
    """As the original's `top_layers 2` has it (its 22 is the default here)."""
    model = methods.build("top", family, bases[family], top_embedding="trained")
    name = model.family.embedding
    assert name in methods.gradients(model, family)
    assert verify_trainable(model) == model.folded_parameters
    assert name in model.state_dict() and "decoder.output_projection.weight" not in model.state_dict()


@each_family
def test_the_guard_knows_every_method(bases, family):
    for method in methods.METHODS:
        model = methods.build(method, family, bases[family])
        assert verify_trainable(model) == sum(t.numel() for t in model.state_dict().values()) - metadata_size(model)
        model.decoder.layers[0].fc1.bias.requires_grad_(True)
        with pytest.raises(UsageError, match=r"decoder.layers.0.fc1.bias would be trained"):
            verify_trainable(model)


def metadata_size(model):
    return model.state_dict()[METADATA_KEY].numel()


@pytest.mark.parametrize(
    ("method", "varies"), [("prompt", {"bart": True, "gpt2": False}), ("adapter", True), ("top", True)]
)
@each_family
def test_base_dropout_is_by_default_as_originally_and_a_switch(bases, family, method, varies):
    expected = varies[family] if isinstance(varies, dict) else varies
    data = methods.inputs(family)
    for switch, answer in ((None, expected), ("on", True), ("off", False)):
        options = {"base_dropout": switch} if switch else {}
        model = methods.build(method, family, bases[family], dropout=0.3, **options).train()
        assert torch.equal(model(*data)[0], model(*data)[0]) is not answer


# Counts ---------------------------------------------------------------------------------------------------------------

SIZES = {
    "bart_large": 406_290_432,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
}
COUNTS = [  # architecture, options, trained, stored, percentage of the base that is stored
    ("adapter_gpt2_medium", {"adapter_dim": 215}, 10_646_568, None, "3.00"),
    ("adapter_gpt2_medium", {"adapter_dim": 6}, 368_784, None, "0.10"),
    ("adapter_gpt2_large", {"adapter_dim": 250}, 23_187_240, None, "3.00"),
    ("adapter_gpt2_large", {"adapter_dim": 7}, 783_612, None, "0.10"),
    ("adapter_bart_large", {"adapter_dim": 246}, 12_171_024, None, "3.00"),
    ("adapter_bart_large", {"adapter_dim": 7}, 417_960, None, "0.10"),
    ("top_gpt2_medium", {}, 25_194_496, None, "7.10"),
    ("top_gpt2_medium", {"top_embedding": "trained"}, 76_657_664, None, "21.60"),
    ("top_gpt2_large", {}, 39_357_440, None, "5.08"),
    ("top_bart_large", {}, 33_593_344, None, "8.27"),
    ("prompt_gpt2_medium", {}, 1_060_352, 10_240, "0.00"),
    ("prompt_gpt2_medium", {"prompt_reparam": "flat"}, 10_240, 10_240, "0.00"),
    ("prompt_bart_large", {}, 3_300_928, 20_480, "0.01"),
]


@pytest.mark.parametrize(("arch", "options", "trained", "stored", "share"), COUNTS)
def test_sizes(arch, options, trained, stored, share, monkeypatch):
    """The numbers of docs/plugin.md; those of adapters are the nearest to the paper's 3 % and 0.1 %."""
    method, family, size = arch.split("_")
    monkeypatch.setattr(FamilyModel, "load_base", lambda *_: None)
    monkeypatch.setattr(bart_model, "init_bert_params", lambda module: None)  # draws on the CPU
    words = 50260 if family == "bart" else 50257 - tiny.SPECIALS
    task = methods.make_task(family, symbols=tiny.dictionary(mask=False, words=words))
    with torch.device("meta"):
        model = tiny.build(arch, task, base_model="unread", **options)
    base = model.base_parameters - (0 if family == "bart" else 2 * model.decoder.embed_dim)
    assert base == SIZES[f"{family}_{size}"]
    assert verify_trainable(model) == trained
    assert model.folded_parameters == (stored or trained)
    assert f"{100 * model.folded_parameters / base:.2f}" == share
    if method == "adapter":  # no other width is nearer to the percentage
        layers = trained // (2 * model.decoder.embed_dim * options["adapter_dim"])
        wanted = round(float(share), 1) / 100 * base
        assert abs(trained - wanted) <= layers * (2 * model.decoder.embed_dim + 1) / 2


# Files ----------------------------------------------------------------------------------------------------------------

VARIANTS = [(method, {}) for method in methods.METHODS] + [
    ("prompt", {"prompt_reparam": "flat"}),
    ("top", {"top_embedding": "trained"}),
]
each_variant = pytest.mark.parametrize(("method", "options"), VARIANTS)


def save(model, path, base):
    """The checkpoint that fairseq would write of a model that was `built`."""
    cfg = configuration(model.recorded, {"max_source_tokens": 50}, base)
    write_checkpoint(str(path), cfg, model.state_dict())
    return str(path)


def built(bases, method, family, **options):
    """As fairseq builds it, which records the options."""
    layers = {"decoder_layers": 2} if family == "gpt2" else {}
    options = {**layers, **methods.SMALL[method], **options}
    args = tiny.make_args(f"{method}_{family}_tiny", base_model=bases[family], **options)
    model = methods.strengthen(methods.make_task(family).build_model(args))
    model.recorded = vars(args)
    return model


@each_variant
@each_family
def test_a_checkpoint_holds_what_is_trained_and_its_export_gives_the_same_model(
    bases, family, method, options, tmp_path
):
    from fairseq.checkpoint_utils import load_model_ensemble

    model = built(bases, method, family, **options)
    path = save(model, tmp_path / "c.pt", bases[family])
    saved = torch.load(path, weights_only=True)["model"]
    assert saved.keys() == {METADATA_KEY, *model.declared_parameters}
    exported, imported = str(tmp_path / "e.safetensors"), str(tmp_path / "i.pt")
    main(["export", path, exported])
    main(["import", exported, imported, "--base-model", "/moved/away"])
    assert sum(tensor.numel() for tensor in load_file(exported).values()) == model.folded_parameters
    for file in (path, imported):
        (loaded,), _ = load_model_ensemble(
            [file], arg_overrides={"base_model": bases[family]}, task=methods.make_task(family)
        )
        with torch.no_grad():
            assert torch.equal(loaded.eval()(*methods.inputs(family))[0], model(*methods.inputs(family))[0])
            first, second = (methods.search(m, family, 3, *methods.sources(family)) for m in (loaded, model))
        assert methods.token_lists(first) == methods.token_lists(second)


@each_variant
@each_family
def test_inspect_and_base(bases, family, method, options, tmp_path, capsys):
    model = built(bases, method, family, **options)
    path, exported = save(model, tmp_path / "c.pt", bases[family]), str(tmp_path / "e.safetensors")
    main(["export", path, exported])
    capsys.readouterr()
    name = "top layers" if method == "top" else method
    for file, kind in ((path, f"{name} checkpoint"), (exported, f"exported {name}")):
        main(["inspect", file])
        assert f"kind                    {kind}" in capsys.readouterr().out
        main(["inspect", file, "--json"])
        description = json.loads(capsys.readouterr().out)
        assert description["kind"] == kind and description["method"] == method
        trained = model.folded_parameters if file == exported else verify_trainable(model)
        assert description["trained_parameters"] == trained
        assert description["stored_parameters"] == model.folded_parameters
        assert description["base_parameters"] == model.base_parameters
        assert description["base_fingerprint"] == model.base_fingerprint
    assert model.base_parameters == methods.build("full", family, bases[family]).base_parameters


@pytest.mark.parametrize("method", ["prefix", *methods.METHODS])
@each_family
def test_the_base_alone_as_a_checkpoint(family, method, tmp_path, capsys):
    from fairseq.checkpoint_utils import load_model_ensemble

    base = str(tiny.save_base(tmp_path / "base", arch=f"full_{family}_tiny"))
    arch, path = f"{method}_{family}_tiny", str(tmp_path / "base.pt")
    main(["base", path, "--arch", arch, "--base-model", base, "--json"])
    description = json.loads(capsys.readouterr().out)
    assert description["trained_parameters"] == description["stored_parameters"] == 0 == description["updates"]
    exported, imported = str(tmp_path / "e.safetensors"), str(tmp_path / "i.pt")
    main(["export", path, exported])
    main(["import", exported, imported, "--base-model", base])
    (loaded, again), _ = load_model_ensemble([path, imported], task=methods.make_task(family))
    whole = tiny.build(f"full_{family}_tiny", base_model=base).eval()
    with torch.no_grad():
        for model in (loaded, again):
            assert torch.equal(model.eval()(*methods.inputs(family))[0], whole(*methods.inputs(family))[0])


@each_method
@each_family
def test_another_base_dictionary_or_convention_is_refused(bases, family, method, tmp_path):
    model = methods.build(method, family, bases[family])
    noun = model.method.noun
    other = methods.build(method, family, methods.make_base(tmp_path / "other", family, seed=9))
    with pytest.raises(UsageError, match=f"the {noun} in the checkpoint was trained over another base"):
        other.load_state_dict(model.state_dict())
    (tmp_path / "alone").mkdir()
    shutil.copy(f"{bases[family]}/model.pt", tmp_path / "alone")
    symbols = tiny.dictionary(mask=family == "bart")
    symbols.symbols[4], symbols.symbols[5] = symbols.symbols[5], symbols.symbols[4]
    task = methods.make_task(family, symbols=symbols)
    with pytest.raises(UsageError, match=f"the {noun} in the checkpoint was trained with another dictionary"):
        methods.build(method, family, str(tmp_path / "alone"), task).load_state_dict(model.state_dict())
    task = methods.make_task(family, max_source_tokens=40)
    with pytest.raises(UsageError, match="pass --max-source-tokens 50"):
        methods.build(method, family, bases[family], task).load_state_dict(model.state_dict())
    if family == "bart":
        task = Namespace(source_dictionary=tiny.dictionary(), target_dictionary=tiny.dictionary())
        with pytest.raises(UsageError, match="with <s> around the text and requires --task conditional_generation"):
            methods.build(method, family, bases[family], task).load_state_dict(model.state_dict())
    else:
        with pytest.raises(UsageError, match="pass --task conditional_lm"):
            methods.build(method, family, bases[family], tiny.make_task(tiny.dictionary(mask=False)))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("prompt", {"prompt_length": 4}, "has the geometry .*decoder 3 x 128, the model .*decoder 4 x 128"),
        ("prompt", {"prompt_reparam": "flat"}, "has --prompt-reparam mlp, the model flat"),
        ("prompt", {"prompt_mid_dim": 8}, "has --prompt-mid-dim 16, the model 8"),
        ("adapter", {"adapter_dim": 9}, "has the geometry .*decoder 8 x 2 layers x 128, the model .*decoder 9 x"),
        ("adapter", {"adapter_dim": 0}, "decoder 8 x 2 layers x 128, the model of no adapter"),
        ("top", {"top_layers": 2}, "decoder 1 of 2 layers x 128, 0 embeddings, the model decoder 2 of 2"),
        ("top", {"top_embedding": "trained"}, "0 embeddings, the model .* 6[45] embeddings"),
    ],
)
@each_family
def test_another_geometry_is_refused(bases, family, method, options, message):
    model, other = methods.build(method, family, bases[family]), methods.build(method, family, bases[family], **options)
    with pytest.raises(UsageError, match=message):
        other.load_state_dict(model.state_dict())


@each_family
def test_what_another_method_trained_is_refused(bases, family):
    adapted = methods.build("adapter", family, bases[family])
    for method in ("prefix", "prompt", "top"):
        message = f"holds a set of adapters, but --arch {method}_{family}_tiny expects a "
        with pytest.raises(UsageError, match=message):
            methods.build(method, family, bases[family]).load_state_dict(adapted.state_dict())
    whole = torch.load(f"{bases[family]}/model.pt", weights_only=True)["model"]
    with pytest.raises(UsageError, match="is a whole model: pass it as --base-model"):
        adapted.load_state_dict(whole)


@each_method
@each_family
def test_a_damaged_file_is_refused_in_one_sentence(bases, family, method, tmp_path):
    model = built(bases, method, family)
    state = model.state_dict()
    lost = sorted(model.declared_parameters)[0]
    without = {name: tensor for name, tensor in state.items() if name != lost}
    with pytest.raises(
        UsageError, match=f"the {model.method.noun} in the checkpoint does not fit the model: it lacks {lost}"
    ):
        model.load_state_dict(without)
    with pytest.raises(UsageError, match="it holds decoder.nothing"):
        model.load_state_dict({**state, "decoder.nothing": torch.zeros(1)})
    with pytest.raises(UsageError, match=f"{lost} has the shape .* instead of"):
        model.load_state_dict({**state, lost: torch.zeros(1, 1, 1)})
    averaged = {**state, METADATA_KEY: (state[METADATA_KEY] + state[METADATA_KEY]) // 2}
    with pytest.raises(UsageError, match="cannot be averaged"):
        model.load_state_dict(averaged)
    path = save(model, tmp_path / "c.pt", bases[family])
    exported = tmp_path / "e.safetensors"
    main(["export", path, str(exported)])
    exported.write_bytes(exported.read_bytes()[:-10])
    with pytest.raises(UsageError, match="is damaged"):
        main(["import", str(exported), str(tmp_path / "i.pt"), "--base-model", bases[family]])
    transposed = {**state, lost: state[lost].T.contiguous() if state[lost].dim() > 1 else state[lost][1:]}
    for damaged in (without, transposed, {METADATA_KEY: state[METADATA_KEY]}):
        torch.save({**torch.load(path, weights_only=True), "model": damaged}, path)
        for command in (["inspect", path], ["export", path, str(tmp_path / "d.safetensors")]):
            with pytest.raises(UsageError, match="does not fit its metadata"):
                main(command)


@pytest.mark.parametrize("method", ["adapter", "top"])
@each_family
def test_a_damaged_export_is_refused_in_one_sentence(bases, family, method, tmp_path):
    model = built(bases, method, family)
    exported, imported = str(tmp_path / "e.safetensors"), str(tmp_path / "i.pt")
    main(["export", save(model, tmp_path / "c.pt", bases[family]), exported])
    with safe_open(exported, framework="pt") as file:
        header, tensors = file.metadata(), load_file(exported)
    matrix = next(name for name in sorted(tensors) if len(set(tensors[name].shape)) == 2)
    without = {name: tensor for name, tensor in tensors.items() if name != matrix}
    transposed = {**tensors, matrix: tensors[matrix].T.contiguous()}
    for damaged, what in ((without, f"it lacks {matrix}"), (transposed, f"{matrix} has the shape")):
        save_file(damaged, exported, header)
        with pytest.raises(UsageError, match=f"the {model.method.noun} does not fit its metadata .{what}"):
            main(["import", exported, imported, "--base-model", bases[family]])


def test_files_that_do_not_say_which_tensors_they_hold_are_still_read(bases, tmp_path):
    model = built(bases, "adapter", "bart")
    path = save(model, tmp_path / "c.pt", bases["bart"])
    checkpoint = torch.load(path, weights_only=True)
    metadata = {key: value for key, value in model.metadata().items() if key != "tensors"}
    checkpoint["model"][METADATA_KEY] = pack_metadata(metadata)
    torch.save(checkpoint, path)
    model.load_state_dict(checkpoint["model"])
    main(["export", path, str(tmp_path / "e.safetensors")])
    main(["inspect", str(tmp_path / "e.safetensors")])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        *((method, {"base_model": None}, "requires --base-model") for method in methods.METHODS),
        ("prompt", {"prompt_length": -1}, "--prompt-length is -1; expected 0 or more"),
        ("prompt", {"prompt_mid_dim": 0}, "--prompt-mid-dim is 0; expected 1 or more"),
        ("prompt", {"prompt_mid_dim": -1}, "--prompt-mid-dim is -1; expected 1 or more"),
        ("adapter", {"adapter_dim": -1}, "--adapter-dim is -1; expected 0 or more"),
        ("top", {"top_layers": 3}, "--top-layers is 3, but the decoder has 2 layers"),
        ("top", {"top_layers": -1}, "--top-layers is -1"),
        ("top", {"decoder_layerdrop": 0.1}, "--decoder-layerdrop is not supported"),
    ],
)
@each_family
def test_wrong_options_are_one_sentence(bases, family, method, options, message):
    with pytest.raises(UsageError, match=message):
        tiny.build(
            f"{method}_{family}_tiny",
            **{"base_model": bases[family], "decoder_layers": 2, **methods.SMALL[method], **options},
        )


# fairseq's commands ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return {
        family: test_training.make_world(tmp_path_factory.mktemp(family), f"full_{family}_tiny")
        for family in methods.FAMILIES
    }


def task_options(family):
    task = "conditional_lm" if family == "gpt2" else "conditional_generation"
    return ("--task", task, "--max-source-tokens", 50)


def training(world, family, method, save_dir, *more):
    small = (part for name, value in methods.SMALL[method].items() for part in (f"--{name.replace('_', '-')}", value))
    return (
        *("train", world / "bin", "--user-dir", REPOSITORY / "fairseq_prefix", *task_options(family)),
        *("--arch", f"{method}_{family}_tiny", "--base-model", world / "base", *small),
        *("--criterion", "prefix_cross_entropy", "--optimizer", "adam", "--weight-decay", 0.1, "--lr", 1e-2),
        *("--lr-scheduler", "polynomial_decay", "--warmup-updates", 3, "--total-num-update", 16, "--max-update", 16),
        *("--dropout", 0.1, "--batch-size", 8, "--clip-norm", 1.0, "--log-interval", 1, "--log-format", "simple"),
        *("--save-interval-updates", 4, "--keep-interval-updates", 1, "--no-epoch-checkpoints"),
        *("--save-dir", save_dir, *more),
    )


def make_trainer(world, family, method, bf16):
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    arguments = [str(part) for part in training(world, family, method, world / "unused", "--cpu")[1:]]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    cfg.common.bf16 = bf16  # as an option fairseq takes it for a TPU where there is no GPU
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    return task, Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


@each_method
@pytest.mark.parametrize("bf16", [False, True])
@each_family
def test_training_changes_what_is_declared_alone_and_resumes_exactly(worlds, family, method, bf16, tmp_path):
    """Also where fairseq trains through flat buffers of master weights. (Top layers in half precision are resumed from
    rounded weights, as everywhere in fairseq.)
    """
    task, whole = make_trainer(worlds[family], family, method, bf16)
    declared = whole.model.declared_parameters
    everything = lambda model: dict(model.named_parameters()) | dict(model.named_buffers())  # noqa: E731
    before = {name: tensor.clone() for name, tensor in everything(whole.model).items()}
    batches = list(task.get_batch_iterator(task.dataset("train"), max_sentences=8).next_epoch_itr())
    for batch in batches[:4]:
        whole.train_step([batch])
    whole.consolidate_optimizer()
    whole.save_checkpoint(str(tmp_path / "c.pt"), {"train_iterator": {"epoch": 1}})
    resumed = make_trainer(worlds[family], family, method, bf16)[1]
    resumed.load_checkpoint(str(tmp_path / "c.pt"))
    for batch in batches[4:8]:
        whole.train_step([batch])
        resumed.train_step([batch])
    for name, tensor in everything(whole.model).items():
        assert torch.equal(before[name], tensor) is (name not in declared), name
    theirs = everything(resumed.model)
    if method != "top" or not bf16:
        assert all(torch.equal(theirs[name], whole.model.get_parameter(name)) for name in declared)


@pytest.mark.parametrize(
    ("family", "method"), [pytest.param("bart", "adapter", marks=pytest.mark.slow), ("gpt2", "prompt")]
)
def test_a_killed_training_resumes_and_generation_from_its_export_is_the_same(worlds, family, method, tmp_path):
    """With fairseq's own commands, two of the six; the rest is trained in this process above."""
    world = worlds[family]
    output = test_training.command(*training(world, family, method, tmp_path / "undisturbed"))
    losses = [float(loss) for loss in re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", output)]
    assert losses[-1] < losses[0]
    test_training.kill_at(10, *training(world, family, method, tmp_path / "killed"))
    test_training.command(*training(world, family, method, tmp_path / "killed"))
    checkpoints = [tmp_path / run / "checkpoint_last.pt" for run in ("undisturbed", "killed")]
    whole, resumed = (torch.load(path, weights_only=True) for path in checkpoints)
    assert whole["model"].keys() == resumed["model"].keys()
    assert all(torch.equal(resumed["model"][key], tensor) for key, tensor in whole["model"].items())
    main(["export", str(checkpoints[0]), str(tmp_path / "e.safetensors")])
    main(["import", str(tmp_path / "e.safetensors"), str(tmp_path / "i.pt"), "--base-model", "/elsewhere"])
    override = ("--model-overrides", str({"base_model": str(world / "base")}))
    hypotheses = test_training.generate(world, checkpoints[0], *task_options(family))
    assert len(hypotheses) == 21
    found = test_training.generate(world, tmp_path / "i.pt", *override, *task_options(family))
    assert found == hypotheses
