"""Tiny models for the plugin's tests: a dictionary, a random base on disk, and models built as fairseq builds them."""

from argparse import Namespace
from pathlib import Path

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

import fairseq_prefix  # noqa: F401  (registration)
from fairseq_prefix.files.loading import PLAIN_TYPES
from fairseq_prefix.toolkit.task import ConditionalGenerationConfig, ConditionalGenerationTask, ConditionalLMTask

torch.serialization.add_safe_globals(PLAIN_TYPES)  # tests look into checkpoints with torch.load

WORDS = 60
SPECIALS = 4  # <s> <pad> </s> <unk>


def dictionary(mask: bool = True, words: int = WORDS) -> Dictionary:
    symbols = Dictionary()
    for number in range(words):
        symbols.add_symbol(f"w{number}")
    if mask:
        symbols.add_symbol("<mask>")
    return symbols


def make_task(symbols: Dictionary | None = None, **options) -> ConditionalGenerationTask:
    symbols = symbols or dictionary()
    options = {"max_source_tokens": 50, **options}
    return ConditionalGenerationTask(ConditionalGenerationConfig(**options), symbols, symbols)


def make_lm_task(symbols: Dictionary | None = None, **options) -> ConditionalLMTask:
    symbols = symbols or dictionary(mask=False)
    options = {"max_source_tokens": 50, **options}
    return ConditionalLMTask(ConditionalGenerationConfig(**options), symbols, symbols)


def make_args(arch: str, **options) -> Namespace:
    """The options as fairseq-train would complete them."""
    args = Namespace(arch=arch, _name=arch, task=ARCH_MODEL_REGISTRY[arch].family.default_task, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    return args


def build(arch: str, task=None, **options):
    """A model as `fairseq-train --arch ARCH` builds it."""
    task = task or (make_lm_task() if "gpt2" in arch else make_task())
    return ARCH_MODEL_REGISTRY[arch].build_model(make_args(arch, **options), task)


def save_base(
    folder: Path,
    seed: int = 0,
    symbols: Dictionary | None = None,
    arch: str = "full_bart_tiny",
    scale: float = 0.3,
    **options,
) -> Path:
    """A random base in a fairseq archive's layout. Its weights are large enough for every attention to matter; with a
    smaller scale rounding errors do not grow from layer to layer.
    """
    symbols = symbols or dictionary(mask="bart" in arch)
    torch.manual_seed(seed)
    model = build(arch, make_lm_task(symbols) if "gpt2" in arch else make_task(symbols), **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, scale)
            if "embed_tokens" in name or "embed_positions" in name:
                parameter[symbols.pad()].zero_()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"args": None, "cfg": None, "model": model.state_dict()}, folder / "model.pt")
    symbols.save(str(folder / "dict.txt"))
    return folder


def batch(rows: int = 4, source: int = 9, target: int = 6, seed: int = 1, padding: bool = True):
    """(source tokens, lengths, previous output tokens), padded on the right where asked."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SPECIALS, SPECIALS + WORDS, (rows, source), generator=generator)
    previous = torch.randint(SPECIALS, SPECIALS + WORDS, (rows, target), generator=generator)
    tokens[:, 0], previous[:, 0], previous[:, 1] = 0, 2, 0
    lengths = torch.full((rows,), source)
    if padding:
        for row in range(1, rows):
            lengths[row] = source - row
            tokens[row, source - row :] = 1
            tokens[row, source - row - 1] = 2
    return tokens, lengths, previous
