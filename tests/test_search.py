"""The beam search beside fairseq's, the n-gram block beside transformers', and linear layers on the CPU."""

import copy
import random
import sys
from argparse import Namespace

import methods
import pytest
import tiny
import torch
from fairseq.models.bart.model import BARTModel
from fairseq.search import DiverseBeamSearch, DiverseSiblingsSearch, LengthConstrainedBeamSearch, Sampling
from fairseq.sequence_generator import SequenceGenerator
from torch import nn

from fairseq_prefix.attention import beams, linear
from fairseq_prefix.attention.linear import FrozenLinear
from fairseq_prefix.decoding.replacements import NGramBlock
from fairseq_prefix.decoding.search import Searcher
from fairseq_prefix.errors import UsageError

EOS, PAD = 2, 1


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_tokens_that_would_repeat_an_ngram_are_those_that_transformers_bans(size):
    sys.modules.setdefault("torchaudio", None)  # transformers would load it, and it is not made for every torch
    from transformers import NoRepeatNGramLogitsProcessor

    for case in range(60):
        rng = random.Random(case)
        step, room = rng.randrange(0, 12), rng.randrange(0, 6)
        text = torch.tensor([[rng.randrange(4, 8) for _ in range(step)] for _ in range(5)], dtype=torch.long).view(
            5, step
        )
        buffer = torch.cat([torch.full((5, 1), EOS), text, torch.full((5, room), PAD)], dim=1)
        scores = torch.randn(5, 9)
        expected = NoRepeatNGramLogitsProcessor(size)(buffer[:, : step + 1], scores.clone())
        assert torch.equal(NGramBlock(size)(buffer, scores, 5, 1, step), expected), (case, step)


def test_a_size_of_one_lets_no_token_stand_twice_and_hypotheses_end():
    buffer = torch.tensor([[EOS, 5, 6, PAD, PAD]])
    blocked = NGramBlock(1)(buffer, torch.zeros(1, 9), 1, 1, 2)
    assert blocked.isinf().nonzero()[:, 1].tolist() == [5, 6]


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_generation_repeats_no_ngram_where_it_is_told_so(family, tmp_path):
    """fairseq's own block does nothing without its CUDA extension."""
    task = tiny.make_task() if family == "bart" else tiny.make_lm_task()
    symbols = task.target_dictionary
    base = tiny.save_base(tmp_path, symbols=symbols, arch=f"full_{family}_tiny")
    model = tiny.build(f"prefix_{family}_tiny", task, base_model=str(base), prefix_length=3).eval()
    source, lengths, _ = tiny.batch(rows=6)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}

    def generate(size):
        options = Namespace(beam=3, max_len_a=0, max_len_b=20, min_len=20, no_repeat_ngram_size=size)
        generator = task.build_generator([model], options)
        return [
            hypothesis["tokens"].tolist()
            for row in task.inference_step(generator, [model], sample)
            for hypothesis in row
        ]

    def repeats(tokens):
        pairs = list(zip(tokens, tokens[1:], strict=False))
        return len(set(pairs)) < len(pairs)

    assert any(repeats(tokens) for tokens in generate(0))
    assert not any(repeats(tokens) for tokens in generate(2))


needs_onednn = pytest.mark.skipif(not linear.available(), reason="this build of torch has no oneDNN")


@pytest.fixture(params=[False, True], ids=["as they are", "packed"])
def layers(request):
    """(nn.Linear, a FrozenLinear over the same weights)"""
    plain = nn.Linear(48, 96).requires_grad_(False)
    fast = FrozenLinear(plain)
    fast.packing = request.param
    return plain, fast


@needs_onednn
def test_frozen_weights_give_the_same_product(layers):
    plain, fast = layers
    for shape in ((1, 48), (24, 48), (3, 7, 48)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=0)
            assert (fast._packed is not None) == fast.packing


@needs_onednn
def test_frozen_weights_give_the_same_gradient(layers):
    plain, fast = layers
    for shape in ((24, 48), (7, 3, 48)):
        x, upstream = torch.randn(shape), torch.randn(*shape[:-1], 96)
        gradients = []
        for layer in (plain, fast):
            leaf = x.clone().requires_grad_()
            y = layer(leaf.transpose(0, 1)) if x.dim() == 3 else layer(leaf)  # encoders have time first
            (y * upstream.transpose(0, 1) if x.dim() == 3 else y * upstream).sum().backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
        leaf = x.clone().requires_grad_()
        fast(leaf).sum().backward()  # its gradient is one number, expanded
        torch.testing.assert_close(leaf.grad, fast.weight.sum(dim=0).expand_as(leaf), atol=1e-5, rtol=0)
    assert fast._packed is None


@needs_onednn
def test_weights_are_packed_once_whatever_says_again_that_nothing_is_trained(layers):
    """Every generator of fairseq's calls `eval()`."""
    _, fast = layers
    fast.packing, x = True, torch.randn(5, 48)
    with torch.no_grad():
        fast.eval()(x)
        packed = fast._packed
        fast.eval()(x)
        assert fast._packed is packed
        fast.train().eval()(x)
        assert fast._packed is not packed, "an optimizer may have changed them meanwhile"


@needs_onednn
def test_weights_that_change_are_packed_anew(layers):
    plain, fast = layers
    x = torch.randn(5, 48)
    with torch.no_grad():
        fast(x)
        plain.weight.mul_(2)
        torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=0)
        plain.weight.data = torch.randn(96, 48)
        torch.testing.assert_close(fast(x), plain(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_what_is_thawed_gets_its_gradient_after_all(layers, trained):
    plain, fast = layers
    getattr(plain, trained).requires_grad_(True)
    fast(torch.randn(5, 48)).sum().backward()
    assert getattr(plain, trained).grad is not None


def test_half_precision_goes_through_the_weights_themselves(layers):
    plain, fast = layers
    x = torch.randn(5, 48).bfloat16()
    with torch.no_grad():
        assert torch.equal(fast.bfloat16()(x), plain.bfloat16()(x))


@needs_onednn
def test_what_is_trained_keeps_its_layers_and_the_base_gets_faster_ones(tmp_path):
    base = tiny.save_base(tmp_path)
    model = tiny.build("prefix_bart_tiny", base_model=str(base), prefix_length=3)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all((kind is nn.Linear) == name.startswith("prefix.") for name, kind in kinds.items())
    assert {type(module) for module in tiny.build("full_bart_tiny", base_model=str(base)).modules()}.isdisjoint(
        {FrozenLinear}
    )


@needs_onednn
def test_a_model_prepared_for_inference_keeps_its_parameters_and_copies(tmp_path):
    task = tiny.make_task()
    base = tiny.save_base(tmp_path, symbols=task.target_dictionary, scale=0.05)
    model = tiny.build("prefix_bart_tiny", task, base_model=str(base), prefix_length=3).eval()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    inputs = tiny.batch()
    with torch.no_grad():
        expected = model(*inputs)[0]
    linear.speed_up(model, packing=True)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    with torch.no_grad():
        for each in (model, copy.deepcopy(model)):
            torch.testing.assert_close(each(*inputs)[0], expected, atol=1e-5, rtol=0)
            assert each.decoder.output_projection._packed is not None


# The search beside fairseq's ------------------------------------------------------------------------------------------

BATCHES = 48  # of each of three models; 3.5 sentences each on average


@pytest.fixture(scope="module", params=["prefix_bart", "prefix_gpt2", "adapter_bart"])
def searched(request, tmp_path_factory):
    """(family, a model over attention of ours or of fairseq's, whose hypotheses end at different steps)"""
    method, family = request.param.split("_")
    base = methods.make_base(tmp_path_factory.mktemp("base"), family, scale=0.05)
    model = methods.strengthen(methods.build(method, family, base))
    return family, methods.ends_early(model, family, beam=3)


def random_options(rng):
    least = rng.choice((1, 1, 3))
    return {
        "beam": rng.choice((1, 2, 3, 5, 6)),
        "lenpen": rng.choice((0.6, 1.0, 2.0)),
        "unnormalized": rng.random() < 0.2,
        "min_len": least,
        "max_len_a": 0,
        "max_len_b": rng.randrange(least, 9),
        "no_repeat_ngram_size": rng.choice((0, 0, 1, 2, 3)),
        "temperature": rng.choice((1.0, 1.0, 0.7)),
        "unkpen": rng.choice((0.0, 0.5)),
    }


def stock_search(model, task, options, row):
    """fairseq's generator on one sentence, whose every step is a pass from the beginning; with an n-gram block."""
    generator = SequenceGenerator(
        [methods.Uncached(model, row)],
        task.target_dictionary,
        beam_size=options["beam"],
        len_penalty=options["lenpen"],
        normalize_scores=not options["unnormalized"],
        min_len=options["min_len"],
        max_len_b=options["max_len_b"],
        temperature=options["temperature"],
        unk_penalty=options["unkpen"],
    )
    if options["no_repeat_ngram_size"]:
        generator.repeat_ngram_blocker = NGramBlock(options["no_repeat_ngram_size"])
    sample = {"net_input": {"src_tokens": row[None], "src_lengths": torch.tensor([len(row)])}}
    return task.inference_step(generator, [model], sample)[0]


@pytest.mark.parametrize("part", range(4))
@torch.no_grad()
def test_hypotheses_and_scores_are_those_of_fairseq_on_each_sentence_alone(searched, part):
    family, model = searched
    task = methods.make_task(family)
    lengths_found = set()
    for case in range(part * BATCHES // 4, (part + 1) * BATCHES // 4):
        rng = random.Random(case)
        options, rows = random_options(rng), rng.randrange(1, 7)
        tokens, lengths = methods.sources(family, rows=rows, seed=case)
        sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
        generator = task.build_generator([model], Namespace(**options))
        assert type(generator) is Searcher
        found = task.inference_step(generator, [model], sample)
        for row, hypotheses in enumerate(found):
            expected = stock_search(model, task, options, tokens[row, : lengths[row]])
            assert len(hypotheses) == len(expected)
            for ours, theirs in zip(hypotheses, expected, strict=True):
                assert ours["tokens"].tolist() == theirs["tokens"].tolist(), (case, row, options)
                for score in ("score", "positional_scores"):
                    torch.testing.assert_close(ours[score], theirs[score], rtol=1e-5, atol=1e-5)
                lengths_found.add(len(ours["tokens"]))
    assert len(lengths_found) > 3


@torch.no_grad()
def test_what_is_fairseqs_alone_is_left_to_it(searched):
    """Two forced tokens; constraints and sampling go the same way."""
    family, model = searched
    task, options = methods.make_task(family), Namespace(beam=3, max_len_b=8)
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    forced = torch.tensor([[0, 7]]).repeat(len(tokens), 1)
    generator = task.build_generator([model], options)
    stock = task.build_generator([model], options, seq_gen_cls=SequenceGenerator)
    ours, theirs = (
        methods.token_lists(task.inference_step(one, [model], sample, forced)) for one in (generator, stock)
    )
    assert ours == theirs and all(hypothesis[:2] == [0, 7] for row in ours for hypothesis in row)
    sampled = task.build_generator([model], Namespace(beam=3, max_len_b=8, sampling=True))
    assert all(len(row) == 3 for row in task.inference_step(sampled, [model], sample))


# fairseq's own searches -----------------------------------------------------------------------------------------------


def searched_alone(model, task, tokens, lengths, forced=None, seed=None, **options):
    """Hypotheses of fairseq's generator for each sentence alone, whose every step is a pass from the beginning."""
    found = []
    for row, length in enumerate(lengths):
        source = tokens[row, :length]
        uncached = [methods.Uncached(each, source) for each in (model if isinstance(model, list) else [model])]
        generator = SequenceGenerator(uncached, task.target_dictionary, **options)
        sample = {"net_input": {"src_tokens": source[None], "src_lengths": length[None]}}
        if seed is not None:
            torch.manual_seed(seed)
        found += task.inference_step(generator, uncached, sample, forced if forced is None else forced[row : row + 1])
    return found


def compare(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for our, their in zip(ours, theirs, strict=True):
            for score in ("score", "positional_scores"):
                torch.testing.assert_close(our[score], their[score], rtol=1e-4, atol=1e-4)


def batch_of(family, case, first_id=40):
    """A later batch of a pass over a data set, whose examples fairseq sorted by length."""
    tokens, lengths = methods.sources(family, rows=4, seed=case)
    ids = first_id + torch.tensor([3, 0, 2, 1])
    return tokens, lengths, {"id": ids, "net_input": {"src_tokens": tokens, "src_lengths": lengths}}


SEARCHES = {
    "diversity rate": ({"diversity_rate": 0.5}, lambda symbols: DiverseSiblingsSearch(symbols, 0.5)),
    "source length": (
        {"match_source_len": True},
        lambda symbols: LengthConstrainedBeamSearch(symbols, min_len_a=1, min_len_b=0, max_len_a=1, max_len_b=0),
    ),
    # Groups never part where no hypothesis ends before the last step: until then fairseq's own is right.
    "diverse groups": (
        {"diverse_beam_groups": 2, "diverse_beam_strength": 0.7, "min_len": 8},
        lambda symbols: DiverseBeamSearch(symbols, 2, 0.7),
    ),
    "diverse hypotheses": (
        {"diverse_beam_groups": 4, "diverse_beam_strength": 2.0, "min_len": 8},
        lambda symbols: DiverseBeamSearch(symbols, 4, 2.0),
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
@torch.no_grad()
def test_other_searches_of_a_batch_are_fairseqs_on_each_sentence_alone(searched, name):
    family, model = searched
    task, (options, strategy) = methods.make_task(family), SEARCHES[name]
    given = {"match_source_len": options.get("match_source_len", False), "min_len": options.get("min_len", 1)}
    for case in range(2):
        tokens, lengths, sample = batch_of(family, case)
        generator = task.build_generator([model], Namespace(beam=4, max_len_b=8, **options))
        strategy_of = {"search_strategy": strategy(task.target_dictionary), "beam_size": 4, "max_len_b": 8}
        expected = searched_alone(model, task, tokens, lengths, **strategy_of, **given)
        found = task.inference_step(generator, [model], sample)
        if name == "source length":  # what fairseq finds besides the best depends on the longest source of the batch
            found, expected = ([row[:1] for row in rows] for rows in (found, expected))
        compare(found, expected)


@torch.no_grad()
def test_without_a_penalty_each_group_of_a_diverse_search_is_a_beam_search(searched):
    """fairseq's own writes on behind `</s>`, and its groups exchange hypotheses."""
    family, model = searched
    task, ended = methods.make_task(family), set()
    for case, (beam, groups) in enumerate([(4, 2), (6, 3), (3, 3), (9, 3)]):
        _, _, sample = batch_of(family, case + 1)
        options = {"diverse_beam_groups": groups, "diverse_beam_strength": 0.0}
        diverse = task.build_generator([model], Namespace(beam=beam, max_len_b=12, **options))
        plain = task.build_generator([model], Namespace(beam=beam // groups, max_len_b=12))
        found, expected = (task.inference_step(each, [model], sample) for each in (diverse, plain))
        compare(found, [[hypothesis for hypothesis in row for _ in range(groups)] for row in expected])
        ended |= {len(hypothesis["tokens"]) for row in found for hypothesis in row}
    assert len(ended) > 2


@torch.no_grad()
def test_a_diverse_search_of_a_batch_is_that_of_each_sentence_alone(searched):
    family, model = searched
    task = methods.make_task(family)
    for case, strength in enumerate([0.5, 3.0]):
        tokens, lengths, sample = batch_of(family, case)
        options = Namespace(beam=6, max_len_b=12, diverse_beam_groups=3, diverse_beam_strength=strength)
        found = task.inference_step(task.build_generator([model], options), [model], sample)
        for row, length in enumerate(lengths):
            one = {"net_input": {"src_tokens": tokens[row : row + 1, :length], "src_lengths": length[None]}}
            compare([found[row]], task.inference_step(task.build_generator([model], options), [model], one))
        assert all(EOS not in hypothesis["tokens"][:-1] for row in found for hypothesis in row)


@pytest.mark.parametrize("options", [{}, {"sampling_topk": 5}, {"sampling_topp": 0.8}])
@torch.no_grad()
def test_sampling_draws_what_fairseq_draws(searched, options):
    family, model = searched
    task = methods.make_task(family)
    tokens, lengths, _ = batch_of(family, 1)
    for row, length in enumerate(lengths):  # of a batch, the draws of a sentence depend on the others
        sample = {"net_input": {"src_tokens": tokens[row : row + 1, :length], "src_lengths": length[None]}}
        generator = task.build_generator([model], Namespace(beam=3, max_len_b=8, sampling=True, **options))
        torch.manual_seed(row)
        found = task.inference_step(generator, [model], sample)
        strategy = Sampling(task.target_dictionary, **options)
        given = {"beam_size": 3, "max_len_b": 8, "search_strategy": strategy, "seed": row}
        compare(found, searched_alone(model, task, sample["net_input"]["src_tokens"], length[None], **given))


@torch.no_grad()
def test_forced_tokens_ensembles_and_language_models_are_searched_as_by_fairseq(searched, tmp_path):
    family, model = searched
    task, symbols = methods.make_task(family), methods.make_task(family).target_dictionary
    tokens, lengths, sample = batch_of(family, 2)
    forced = torch.tensor([[0, 7, 9], [0, 8, 2], [0, 5, 6], [0, 4, 2]])  # as --prefix-size 3 has them
    forced[forced.eq(EOS).cumsum(1).gt(1)] = PAD
    base = methods.make_base(tmp_path, "gpt2", symbols=symbols, scale=0.05)
    language_model = methods.build("full", "gpt2", base, tiny.make_lm_task(symbols))
    other = methods.strengthen(copy.deepcopy(model), seed=9)
    given = {"lm_model": language_model.eval(), "lm_weight": 0.7}
    for models, tokens_forced, extra in (([model], forced, {}), ([model, other], None, {}), ([model], None, given)):
        generator = task.build_generator(models, Namespace(beam=3, max_len_b=8), extra_gen_cls_kwargs=extra)
        found = task.inference_step(generator, models, sample, prefix_tokens=tokens_forced)
        kwargs = {"beam_size": 3, "max_len_b": 8, **extra}
        compare(found, searched_alone(models, task, tokens, lengths, tokens_forced, **kwargs))


@torch.no_grad()
def test_references_are_scored_by_a_teacher_forced_pass(searched):
    family, model = searched
    task = methods.make_task(family)
    tokens, lengths, previous = methods.inputs(family)
    target = torch.cat([previous[:, 1:], previous.new_full((len(previous), 1), PAD)], dim=1)
    target.scatter_(1, previous.ne(PAD).sum(dim=1, keepdim=True) - 1, EOS)
    net_input = {"src_tokens": tokens, "src_lengths": lengths, "prev_output_tokens": previous}
    sample = {"net_input": net_input, "target": target}
    found = task.inference_step(task.build_generator([model], Namespace(score_reference=True)), [model], sample)
    lprobs = model(tokens, lengths, previous)[0].log_softmax(-1).gather(2, target[:, :, None])[:, :, 0]
    for row, (hypothesis,) in enumerate(found):
        count = int(target[row].ne(PAD).sum())
        assert hypothesis["tokens"].tolist() == target[row, :count].tolist()
        torch.testing.assert_close(hypothesis["positional_scores"], lprobs[row, :count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diverse_beam_groups": 3}, "--beam 4 is not divisible by --diverse-beam-groups 3"),
        ({"diverse_beam_groups": 2, "sampling": True}, "--sampling and --diverse-beam-groups are different searches"),
        ({"diversity_rate": 0.0, "match_source_len": True}, "--match-source-len and --diversity-rate are different"),
        ({"sampling_topk": 5}, "--sampling-topk requires --sampling"),
        ({"constraints": "ordered"}, "--constraints is not supported"),
        ({"print_step": True}, "--print-step is not supported"),
        ({"retain_iter_history": True}, "--retain-iter-history is not supported"),
        ({"iter_decode_max_iter": 3}, "--iter-decode-max-iter is not supported"),
        ({"replace_unk": ""}, "--replace-unk is not supported"),
    ],
)
def test_search_options_that_cannot_act_are_refused_in_one_sentence(searched, options, message):
    family, model = searched
    with pytest.raises(UsageError, match=message):
        methods.make_task(family).build_generator([model], Namespace(**{"beam": 4, **options}))


@torch.no_grad()
def test_an_output_as_long_as_its_source_has_to_fit_the_positions(searched):
    family, model = searched
    task = methods.make_task(family)
    tokens, lengths, sample = batch_of(family, 1)
    options = Namespace(beam=2, match_source_len=True)
    generator = task.build_generator([model], options, extra_gen_cls_kwargs={"max_len": int(lengths.max())})
    with pytest.raises(UsageError, match=f"--match-source-len: a source has {lengths.max()} tokens, but an output"):
        task.inference_step(generator, [model], sample)


# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_until_they_branch_hypotheses_are_computed_once_a_sentence(searched):
    family, model = searched
    task, rows = methods.make_task(family), []
    hook = model.decoder.output_projection.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    task.inference_step(task.build_generator([model], Namespace(beam=3, max_len_b=12)), [model], sample)
    hook.remove()
    single = 2 if family == "bart" else 1  # BART's first token is <s>
    assert rows[: single + 1] == [len(tokens)] * single + [3 * len(tokens)]
    assert sorted(rows[single:], reverse=True) == rows[single:] and rows[-1] < rows[single], "finished sentences leave"


@torch.no_grad()
def test_what_a_search_cannot_do_is_said(searched):
    family, model = searched
    task = methods.make_task(family)
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    with pytest.raises(UsageError, match="--min-len 9 exceeds the longest output, 5 tokens"):
        task.inference_step(task.build_generator([model], Namespace(beam=2, min_len=9, max_len_b=5)), [model], sample)
    damaged = copy.deepcopy(model)
    damaged.decoder.layers[0].fc1.weight.data.fill_(float("nan"))
    with pytest.raises(UsageError, match="no hypothesis has a score that is a number"):
        task.inference_step(task.build_generator([damaged], Namespace(beam=2, max_len_b=5)), [damaged], sample)


@torch.no_grad()
def test_very_many_hypotheses_copy_their_keys_and_stay_the_same(searched, monkeypatch):
    family, model = searched
    task = methods.make_task(family)
    tokens, lengths = methods.sources(family)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    found = []
    for many in (16, 2):
        monkeypatch.setattr(beams, "MANY", many)
        generator = task.build_generator([model], Namespace(beam=4, max_len_b=12))
        found.append(methods.token_lists(task.inference_step(generator, [model], sample)))
    assert found[0] == found[1]


@torch.no_grad()
def test_another_librarys_model_is_searched_by_fairseq(tmp_path):
    """fairseq's own BART tells its attention the beam size, and computes nothing with one row per sentence."""
    task = tiny.make_task()
    model = BARTModel.build_model(tiny.make_args("full_bart_tiny"), task).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.3)
    tokens, lengths = methods.sources("bart")
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    found = [
        methods.token_lists(
            task.inference_step(
                task.build_generator([model], Namespace(beam=3, max_len_b=9), seq_gen_cls=kind), [model], sample
            )
        )
        for kind in (None, SequenceGenerator)
    ]
    assert found[0] == found[1]


@torch.no_grad()
def test_a_language_model_alone_is_searched_too(tmp_path):
    """Without a source it is not known which hypotheses belong together."""
    base = methods.make_base(tmp_path, "gpt2", scale=0.1)
    model = methods.build("full", "gpt2", base).eval()
    symbols = methods.make_task("gpt2").target_dictionary

    class Alone(nn.Module):
        """The decoder as fairseq's language models have it; without an incremental state if not `cached`."""

        def __init__(self, cached):
            super().__init__()
            self.cached, self.model = cached, model
            if cached:
                self.decoder = model.decoder

        def forward(self, tokens):
            return self.model.decoder(tokens)

        def get_normalized_probs(self, *args, **kwargs):
            return self.model.get_normalized_probs(*args, **kwargs)

        def max_decoder_positions(self):
            return 60

    prompts = torch.tensor([[7, 8, 9], [20, 21, 22]])
    sample = {"net_input": {"src_tokens": prompts, "src_lengths": torch.tensor([3, 3])}}
    found = []
    for cached in (True, False):
        generator = SequenceGenerator([Alone(cached)], symbols, beam_size=3, max_len_b=9)
        found.append(methods.token_lists(generator.generate([model], sample, prefix_tokens=prompts)))
    assert found[0] == found[1]


@torch.no_grad()
def test_a_forced_token_may_be_one_that_is_suppressed_elsewhere(tmp_path):
    base = methods.make_base(tmp_path, "bart", scale=0.05)
    model, task = methods.build("full", "bart", base).eval(), methods.make_task("bart")
    tokens, lengths = methods.sources("bart")
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    options = Namespace(beam=2, max_len_b=6, min_len=6)
    generator = task.build_generator([model], options, extra_gen_cls_kwargs={"tokens_to_suppress": ["<s>"]})
    for row in methods.token_lists(task.inference_step(generator, [model], sample)):
        assert all(hypothesis[0] == 0 and 0 not in hypothesis[1:] for hypothesis in row)
