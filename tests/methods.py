"""What the tests of prompts, adapters and top layers share: both families behind the same few names."""

import copy

import test_gpt2
import tiny
import torch
from fairseq.sequence_generator import SequenceGenerator

FAMILIES = ("bart", "gpt2")
METHODS = ("prompt", "adapter", "top")
SMALL = {
    "prefix": {"prefix_length": 3, "prefix_mid_dim": 16},
    "prompt": {"prompt_length": 3, "prompt_mid_dim": 16},
    "adapter": {"adapter_dim": 8},
    "top": {"top_layers": 1},
}
UNTOUCHED = {
    "prefix": {"prefix_length": 0},
    "prompt": {"prompt_length": 0},
    "adapter": {"adapter_dim": 0},
    "top": {"top_layers": 0},
}


def make_base(folder, family, seed=0, **options):
    layers = {"decoder_layers": 2} if family == "gpt2" else {}
    return str(tiny.save_base(folder, seed=seed, arch=f"full_{family}_tiny", **layers, **options))


def make_task(family, **options):
    return tiny.make_lm_task(**options) if family == "gpt2" else tiny.make_task(**options)


def build(method, family, base, task=None, **options):
    layers = {"decoder_layers": 2} if family == "gpt2" else {}
    options = {**layers, **SMALL.get(method, {}), **options}
    return tiny.build(f"{method}_{family}_tiny", task, base_model=base, **options)


@torch.no_grad()
def strengthen(model, seed=5):
    """What is trained as large as the base's own weights, so that it matters; in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if name in model.declared_parameters:
            scale = 1.0 if name.startswith(("prefix.", "prompt.")) else 0.3
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs(family):
    """A batch of rows of different lengths."""
    return tiny.batch() if family == "bart" else test_gpt2.inputs(test_gpt2.pairs())


def sources(family, rows=6, seed=1):
    """(sources of different lengths, their lengths), padded on the right."""
    if family == "bart":
        return tiny.batch(rows=rows, source=11, seed=seed)[:2]
    return test_gpt2.inputs(test_gpt2.pairs(rows=rows, seed=seed, longest=20))[:2]


def search(model, family, beam, tokens, lengths):
    """Hypotheses of every row, best first, with tokens and scores."""
    task = make_task(family)
    generator = SequenceGenerator([model], task.target_dictionary, beam_size=beam, max_len_b=12)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    return task.inference_step(generator, [model], sample)


def token_lists(results):
    return [[hypothesis["tokens"].tolist() for hypothesis in row] for row in results]


class Uncached(torch.nn.Module):
    """One row for fairseq's generator, without any cache: each step is a teacher-forced pass from the beginning."""

    def __init__(self, model, tokens):
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, previous):
        rows = len(previous)
        return self.model(self.tokens.repeat(rows, 1), torch.full((rows,), self.tokens.numel()), previous)

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return self.model.get_normalized_probs(net_output, log_probs, sample)

    def max_decoder_positions(self):
        return 100


def search_uncached(model, family, beam, tokens):
    uncached = Uncached(model, tokens)
    return token_lists(search(uncached, family, beam, tokens[None], torch.tensor([len(tokens)])))[0]


def ends_early(model, family, beam):
    """A copy with another output vector of `</s>`: sentences of a batch end at different steps, and leave it."""
    for seed in range(20):
        changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        weight = changed.decoder.output_projection.weight.detach().clone()
        weight[2] = 0.9 * torch.randn(128, generator=generator)
        changed.decoder.output_projection.weight = torch.nn.Parameter(weight)
        results = token_lists(search(changed, family, beam, *sources(family)))
        if len({len(row[0]) for row in results}) > 2:
            return changed
    raise AssertionError("no vector makes sentences end at different steps")


def gradients(model, family):
    model.train()
    logits = model(*inputs(family))[0]
    logits.log_softmax(-1)[..., 7].sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
