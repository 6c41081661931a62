"""A batch whose rows have prefixes of their own against each row alone with its prefix, as the only one of a model."""

import copy
import random
from argparse import Namespace

import methods
import pytest
import test_gpt2
import tiny
import torch

from fairseq_prefix.attention.beams import Beams
from fairseq_prefix.errors import UsageError
from fairseq_prefix.methods.bank import PrefixBank

KINDS = {"bart": ("bart", {}), "gpt2": ("gpt2", {}), "infix": ("gpt2", {"prefix_position": "infix"})}
BART_SITES = {
    "one": {"prefix_length": 1},
    "two": {"prefix_length": 2, "prefix_sites": "encoder"},
    "v3.1": {"prefix_length": 3, "prefix_sites": "decoder,cross", "prefix_cross_length": 5},
    "train": {"prefix_length": 7, "prefix_reparam": "flat", "prefix_encoder_length": 4},
}
GPT2_LENGTHS = {
    "one": {"prefix_length": 1},
    "two": {"prefix_length": 2},
    "v3.1": {"prefix_length": 5, "prefix_reparam": "flat"},
    "train": {"prefix_length": 7},
}
NAMES = [*BART_SITES, None]


class Tasks:
    """A model with a bank of prefixes, and for each of them a model that has it alone."""

    def __init__(self, folder, kind):
        self.family, position = KINDS[kind]
        base = methods.make_base(folder, self.family, scale=0.1)
        shapes = {"bart": BART_SITES, "gpt2": GPT2_LENGTHS}[self.family]
        self.alone = {None: self._build(base, prefix_length=0, **position)}
        for seed, (name, options) in enumerate(shapes.items()):
            model = self._build(base, **options, **position)
            self.alone[name] = methods.strengthen(model, seed)
        self.bank = PrefixBank({name: model.prefix for name, model in self.alone.items() if name is not None})
        self.model = self._build(base, prefix_length=1, **position)
        self.model.use(self.bank)
        self._let_sentences_end()

    def _build(self, base, **options):
        return methods.build("prefix", self.family, base, **{"prefix_mid_dim": 16, **options}).eval()

    def _let_sentences_end(self):
        """Another output vector of `</s>`: sentences of a batch end at different steps, and leave it."""
        weight = self.model.decoder.output_projection.weight.detach().clone()
        weight[2] = 0.15 * torch.randn(weight.size(1), generator=torch.Generator().manual_seed(4))
        for model in (self.model, *self.alone.values()):
            model.decoder.output_projection.weight = torch.nn.Parameter(weight, requires_grad=False)


@pytest.fixture(scope="module", params=KINDS)
def tasks(tmp_path_factory, request):
    return Tasks(tmp_path_factory.mktemp(request.param), request.param)


def random_rows(family, rng, count):
    """Sources of 1 to 20 words, for BART between `<s>` and `</s>`."""
    words = range(tiny.SPECIALS, tiny.SPECIALS + tiny.WORDS)
    rows = [[rng.choice(words) for _ in range(rng.randint(1, 20))] for _ in range(count)]
    return [[0, *row, 2] for row in rows] if family == "bart" else rows


def search(model, family, rows, **options):
    task, lengths = methods.make_task(family), torch.tensor([len(row) for row in rows])
    generator = task.build_generator([model], Namespace(max_len_b=12, **options), extra_gen_cls_kwargs={"max_len": 60})
    sample = {"net_input": {"src_tokens": test_gpt2.pad(rows), "src_lengths": lengths}}
    return task.inference_step(generator, [model], sample)


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_each_row_of_a_search_is_token_identical_to_the_row_alone_with_its_prefix(tasks, beam):
    rng, ends, cases = random.Random(beam), set(), 0
    for number in range(10):
        rows = random_rows(tasks.family, rng, 1 + (number + 2 * beam) % 8)
        names = [rng.choice(NAMES) for _ in rows]
        options = {"beam": beam, "min_len": rng.choice([1, 4]), "no_repeat_ngram_size": rng.choice([0, 2])}
        tasks.bank.select(names)
        together = search(tasks.model, tasks.family, rows, **options)
        for row, name, found in zip(rows, names, together, strict=True):
            (expected,) = search(tasks.alone[name], tasks.family, [row], **options)
            assert [h["tokens"].tolist() for h in found] == [h["tokens"].tolist() for h in expected]
            for ours, theirs in zip(found, expected, strict=True):
                assert abs(ours["score"] - theirs["score"]) < 1e-5
            ends.add(len(found[0]["tokens"]))
            cases += 1
    assert cases >= 40 and len(ends) > 3, "sentences should end at different steps"


@torch.no_grad()
def test_keys_are_gathered_once_a_search_and_follow_the_sentences(tasks, monkeypatch):
    calls, shapes = [], []
    ask = PrefixBank.key_value
    monkeypatch.setattr(PrefixBank, "key_value", lambda *given: calls.append(given[1:]) or ask(*given))
    attention = tasks.model.decoder.layers[0].self_attn

    def note(module, _, kwargs, __):
        beams = Beams.of(kwargs["incremental_state"])
        shapes.append(beams and tuple(beams.cache_of(module).blocks["prefix"].key.shape[:3]))

    hook = attention.register_forward_hook(note, with_kwargs=True)
    rows = random_rows(tasks.family, random.Random(1), 6)
    tasks.bank.select(["one", "train", "v3.1", None, "train", "one"])
    search(tasks.model, tasks.family, rows, beam=2)
    hook.remove()
    searching = [shape for shape in shapes if shape]
    assert len(calls) == len({*calls}) * (1 if tasks.family == "bart" else 2)  # GPT-2 reads the source, then searches
    assert searching[0] == (6, 4, 7) and len(searching) > 2
    assert sorted(searching, reverse=True) == searching and searching[-1] < searching[0], "finished sentences leave"


def test_a_prefix_may_have_two_names_and_a_bank_is_not_saved_as_a_whole(tasks):
    first, second = (tasks.bank[name] for name in tasks.bank.names[:2])
    bank = PrefixBank({"a": second, "b": first, "c": first})
    bank.remove("b")
    assert bank.names == ["a", "c"] and bank["a"] is second and bank["c"] is first
    with pytest.raises(UsageError, match=r"save each prefix of it after model.use"):
        tasks.model.state_dict()
    with pytest.raises(UsageError, match="'one' is one name"):
        bank.select("one")
    with pytest.raises(UsageError, match="must be a non-empty string, not None"):
        bank.add(None, first)
    tasks.model.use(first)
    assert any(name.startswith("prefix.") for name in tasks.model.state_dict())
    tasks.model.use(tasks.bank)


@torch.no_grad()
def test_rows_of_the_same_prefix_share_one_row_of_keys(tasks):
    tasks.bank.select(["train", "train", "train"])
    key, value = tasks.bank.key_value("decoder", 1)
    assert key.shape == value.shape == (1, 4, 7, 32)
    assert tasks.bank.length("decoder") == tasks.bank.row_lengths("decoder") == 7
    assert tasks.bank.key_value("decoder", 1)[0].data_ptr() == key.data_ptr(), "nothing is copied"
    tasks.bank.select([None, None])
    assert tasks.bank.key_value("decoder", 0) is None and tasks.bank.length("decoder") == 0


# Training -------------------------------------------------------------------------------------------------------------


def teacher_forced(family, rng, count):
    """(source, target) of rows, the target as the decoder reads it."""
    begin = [2, 0] if family == "bart" else [2]
    targets = [[*begin, *target] for target in random_rows("gpt2", rng, count)]
    return list(zip(random_rows(family, rng, count), targets, strict=True))


def loss(model, pairs):
    """Of some word at every position of every target."""
    lengths = torch.tensor([len(source) for source, _ in pairs])
    previous = test_gpt2.pad([target for _, target in pairs])
    logits = model(test_gpt2.pad([source for source, _ in pairs]), lengths, previous)[0]
    return (logits.log_softmax(-1)[..., 7] * previous.ne(1)).sum()


def gradients(modules):
    """Those of the prefixes' parameters, which are forgotten."""
    found = {}
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            found[name, key], parameter.grad = parameter.grad, None
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_mixed_batch_are_the_sum_of_those_of_its_rows_alone(tasks, checkpointing):
    rng = random.Random(3)
    names = ["one", "v3.1", None, "train", "v3.1", "one"]  # and none of "two"
    pairs = teacher_forced(tasks.family, rng, len(names))
    model, alone = (copy.deepcopy(module).double().train() for module in (tasks.model, tasks.alone[None]))
    bank, alone = model.prefix, {}
    for name in names:
        if name is not None:
            alone[name] = copy.deepcopy(tasks.alone[name]).double().train()
            alone[name].use(bank[name])
    for block in (layer for layers in model.blocks().values() for layer in layers):
        block.recomputed = checkpointing
    bank.select(names)
    total = loss(model, pairs)
    total.backward()
    together, expected = gradients({name: bank[name] for name in bank.names}), 0.0
    for name, pair in zip(names, pairs, strict=True):
        if name is not None:
            row = loss(alone[name], [pair])
            row.backward()
            expected += row.item()
        else:
            base = copy.deepcopy(tasks.alone[None]).double().train()
            expected += loss(base, [pair]).item()
    assert total.item() == pytest.approx(expected, rel=1e-6)  # fairseq's activation functions compute in fp32
    for key, gradient in gradients({name: bank[name] for name in bank.names}).items():
        if key[0] == "two":
            assert gradient is None and together[key] is None
        else:
            assert gradient.abs().sum() > 0
            torch.testing.assert_close(together[key], gradient, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "prefix" not in name)


def test_batches_selected_one_after_another_have_gradients_of_their_own_in_one_backward_pass(tasks):
    rng, batches = random.Random(5), (["one", "v3.1", None], ["train", "one"], ["two", "two", "train"])
    rows = [teacher_forced(tasks.family, rng, len(names)) for names in batches]
    found = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tasks.model).double().train()
        for block in (layer for layers in model.blocks().values() for layer in layers):
            block.recomputed = checkpointing
        total = 0.0
        for names, pairs in zip(batches, rows, strict=True):
            model.prefix.select(names)
            total = total + loss(model, pairs)
        total.backward()
        found.append(gradients({name: model.prefix[name] for name in model.prefix.names}))
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, msg=str(key))


def test_each_prefix_of_the_batch_is_evaluated_once_a_pass(tasks):
    calls = []
    hooks = [
        module.up.register_forward_hook(lambda *_, name=name, site=site: calls.append((name, site)))
        for name in ("one", "two")
        for site, module in tasks.bank[name].sites.items()
    ]
    model = tasks.model.train()
    for names in (["one", "train", "one"], ["one", None, "one"]):
        tasks.bank.select(names)
        loss(model, teacher_forced(tasks.family, random.Random(1), 3))
    model.eval()
    for hook in hooks:
        hook.remove()
    assert calls == [("one", site) for site in tasks.bank["one"].sites] * 2


# Positions ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["prefix", "infix"])
def short_and_long(tmp_path_factory, request):
    """(a GPT-2 of 512 positions with a bank, for each of two prefixes a model with it alone)."""
    base, options = methods.make_base(tmp_path_factory.mktemp("base"), "gpt2", scale=0.1), {"prefix_reparam": "flat"}
    alone = {
        name: methods.build("prefix", "gpt2", base, prefix_length=length, prefix_position=request.param, **options)
        for name, length in (("short", 1), ("long", 200))
    }
    model = methods.build("prefix", "gpt2", base, prefix_length=1, prefix_position=request.param, **options).eval()
    model.use(PrefixBank({name: methods.strengthen(own).prefix for name, own in alone.items()}))
    return model, alone


def words(count, seed=0):
    return random.Random(seed).choices(range(tiny.SPECIALS, tiny.SPECIALS + tiny.WORDS), k=count)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(400, 2), (400, 0), (300, 100)])
def test_the_padding_of_a_row_with_a_long_prefix_may_reach_beyond_the_positions(short_and_long, lengths):
    model, alone = short_and_long
    sources, targets = [words(length) for length in lengths], [words(3), words(5, seed=1)]
    model.prefix.select(["short", "long"])
    logits = model(*test_gpt2.inputs(list(zip(sources, targets, strict=True))))[0]
    model.prefix.select(["short", "long"])
    found = search(model, "gpt2", sources, beam=2)
    for row, (name, source, target) in enumerate(zip(("short", "long"), sources, targets, strict=True)):
        expected = alone[name](*test_gpt2.inputs([(source, target)]))[0][0]
        torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)
        (hypotheses,) = search(alone[name], "gpt2", [source], beam=2)
        assert [h["tokens"].tolist() for h in found[row]] == [h["tokens"].tolist() for h in hypotheses]


@torch.no_grad()
def test_a_text_that_reaches_beyond_the_positions_is_refused_in_one_sentence(short_and_long):
    model, _ = short_and_long
    model.prefix.select(["short", "long"])
    with pytest.raises(UsageError, match="needs 513 positions with its virtual tokens, but the model has 512"):
        model(*test_gpt2.inputs([(words(400), words(3)), (words(309), words(3))]))


# Use ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decodes(tasks, dtype):
    model = copy.deepcopy(tasks.model).to(dtype)
    assert all(parameter.dtype == torch.float32 for parameter in model.prefix.parameters())
    model.prefix.select(["one", None, "v3.1"])
    assert len(search(model, tasks.family, random_rows(tasks.family, random.Random(1), 3), beam=2)) == 3


def test_prefixes_come_and_go_and_mistakes_are_one_sentence(tasks):
    bank = PrefixBank({name: tasks.bank[name] for name in ("one", "two")})
    with pytest.raises(UsageError, match="no prefixes selected: call .* select"):
        bank.key_value("decoder", 0)
    with pytest.raises(UsageError, match="unknown prefix 'three'; expected one of one, two"):
        bank.select(["one", "three"])
    with pytest.raises(UsageError, match="a prefix 'two' already; remove it first"):
        bank.add("two", tasks.bank["one"])
    with pytest.raises(UsageError, match="prefix 'three' is 'prefix.pt'; expected a Prefix"):
        bank.add("three", "prefix.pt")
    assert bank.names == ["one", "two"]
    bank.select(["one", "two"])
    bank.remove("one")
    with pytest.raises(UsageError, match="call the bank's select"):
        bank.key_value("decoder", 0)
    bank.add("three", tasks.bank["one"])
    assert bank.names == ["two", "three"] and bank["three"] is tasks.bank["one"]
    assert bank.folded_size == tasks.bank["two"].folded_size + tasks.bank["one"].folded_size


@torch.no_grad()
@pytest.mark.parametrize("names", [["one", "two"], ["one", "one"], [None, None], ["one", "two", "train", None]])
def test_a_selection_of_another_size_than_the_batch_is_refused(tasks, names):
    """Also where all rows have the same prefix, of which one row would do."""
    message = f"selected for {len(names)} rows, but the batch has 3"
    rows = random_rows(tasks.family, random.Random(1), 3)
    tasks.bank.select(names)
    with pytest.raises(UsageError, match=message):
        search(tasks.model, tasks.family, rows, beam=2)
    with pytest.raises(UsageError, match=message):
        loss(tasks.model, teacher_forced(tasks.family, random.Random(1), 3))


@torch.no_grad()
def test_a_selection_serves_one_pass(tasks):
    """Whoever forgets to select for the next batch would get the prefixes of the last one."""
    rng = random.Random(1)
    passes = {
        "search": lambda: search(tasks.model, tasks.family, random_rows(tasks.family, rng, 2), beam=2),
        "forward": lambda: loss(tasks.model, teacher_forced(tasks.family, rng, 2)),
    }
    for first in passes.values():
        for second in passes.values():
            tasks.bank.select(["one", "train"])
            first()
            with pytest.raises(UsageError, match=r"used for an earlier batch; call the bank's select\(...\)"):
                second()
    tasks.bank.select(["two", "one"])
    passes["search"]()


@torch.no_grad()
def test_nothing_runs_before_prefixes_are_selected(tasks):
    bank = PrefixBank({"one": tasks.bank["one"]})
    tasks.model.use(bank)
    try:
        for run in (
            lambda: search(tasks.model, tasks.family, random_rows(tasks.family, random.Random(1), 2), beam=2),
            lambda: loss(tasks.model, teacher_forced(tasks.family, random.Random(1), 2)),
        ):
            with pytest.raises(UsageError, match="no prefixes selected"):
                run()
    finally:
        tasks.model.use(tasks.bank)
    for names, message in (([["one"]], "unknown prefix .'one'."), ([1], "unknown prefix 1"), ("one", "is one name")):
        with pytest.raises(UsageError, match=message):
            bank.select(names)


def test_a_model_of_fairseqs_own_attention_takes_no_bank(tmp_path):
    """With no prefix anywhere BART's layers are fairseq's."""
    model = methods.build("prefix", "bart", methods.make_base(tmp_path, "bart"), prefix_length=0)
    with pytest.raises(UsageError, match="was built without a prefix"):
        model.use(PrefixBank())
