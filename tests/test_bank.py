"""A batch whose rows have prefixes of their own against each row alone with its prefix, as the only one of a model."""

import copy
import random
from argparse import Namespace

import methods
import pytest
import test_gpt2
import tiny
import torch

from fairseq_prefix.bank import PrefixBank
from fairseq_prefix.errors import UsageError

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
