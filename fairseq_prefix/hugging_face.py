"""Use a prefix with a model that this package did not build: a decoder-only model of transformers.

`add_prefix` registers an attention function that prepends the prefix's keys and values in every layer. The KV cache
holds the text's tokens only, so beams, padding and gradient checkpointing need no special case. (A prefix inside
`past_key_values` depends on the cache's changing classes, and gradient checkpointing runs without a cache.)

Shape letters in comments: B rows, H heads, G key heads, P prefix, T queries, S keys, d head width.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UsageError
from .methods.prefix import Prefix, SiteGeometry

ATTENTION = "fairseq_prefix"  # the name of the attention function in transformers' registry
SITE = "decoder"


def mark_only_trainable(model: nn.Module) -> int:
    """Freeze all parameters of `model` except those of its prefixes; return how many numbers are trained."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Prefix):
            module.requires_grad_(True)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def prefix_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the prefix's part of `model.state_dict()`; load it by `model.load_state_dict(state, strict=False)`."""
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Prefix):
            state |= module.state_dict(prefix=f"{name}.")
    return state


@contextlib.contextmanager
def prefix_disabled(model: Any) -> Iterator[None]:
    """Run the bare base inside a `with` block (also nested), in every thread that uses this model meanwhile."""
    before, model.prefix_enabled = model.prefix_enabled, False
    try:
        yield
    finally:
        model.prefix_enabled = before


def geometry(model: Any, length: int) -> dict[str, SiteGeometry]:
    """Return the shape of a prefix of `length` virtual tokens for a decoder-only model of transformers."""
    config = model.config
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise UsageError(f"{type(model).__name__} has cross-attention; expected a decoder-only model")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return {SITE: SiteGeometry(length, config.num_hidden_layers, key_heads, head_dim)}


def add_prefix(model: Any, prefix: Prefix, shift_positions: bool = True) -> None:
    """Make a decoder-only model of transformers attend to `prefix`, which becomes `model.prefix`.

    The model gets a method `prefix_disabled()` and runs on scaled_dot_product_attention. A second call replaces the
    prefix.

    Args:
        prefix: of the shape `geometry(model, P)`. Rotary positions do not rotate its keys.
        shift_positions: whether the text starts at position P, as in prefix-tuning of GPT-2, or at 0.

    Raises:
        UsageError: the shape differs, or the model does not support transformers' AttentionInterface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    if prefix.geometry != (expected := geometry(model, prefix.length(SITE))):
        raise UsageError(f"the prefix has the geometry {prefix.geometry}, but {type(model).__name__} needs {expected}")
    if not model.is_backend_compatible():
        raise UsageError(f"{type(model).__name__} does not support transformers' AttentionInterface")
    AttentionInterface.register(ATTENTION, functools.partial(_attend, sdpa_attention_forward))
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    if not hasattr(model, "prefix_enabled"):  # partial functions, not closures: in a copied model they use the copy
        model.base_model.register_forward_pre_hook(functools.partial(_pass_prefix, model), with_kwargs=True)
        model.prefix_disabled = functools.partial(prefix_disabled, model)
    model.prefix = prefix.to(model.device).train(model.training)
    model.prefix_enabled, model.shift_positions = True, shift_positions


def load_prefix(model: Any, path: str) -> None:
    """Add a prefix that `fairseq-train` trained over the same GPT-2, from its `prefix.safetensors` or checkpoint.

    Raises:
        UsageError: the file is damaged, or holds something other than a prefix of this model's geometry. (It is not
            verified that the base is the same: the file's fingerprint is of fairseq's form of the weights.)
    """
    from .files.checkpoint import read_tuned  # needs fairseq's registry of models

    file = read_tuned(path)
    if file.method.name != "prefix" or file.metadata["conventions"].get("prefix_position") != "prefix":
        raise UsageError(f"{path}: expected a prefix before the source of a decoder-only model")
    add_prefix(model, Prefix.from_file(file))


def _pass_prefix(model: Any, base: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Hand the prefix down to every attention layer before a forward pass, and shift the text's positions."""
    if not model.prefix_enabled:
        return args, {**kwargs, "prefix": None}
    model.prefix.refresh()
    if model.shift_positions:
        if (positions := kwargs.get("position_ids")) is None:
            inputs, cache = (kwargs.get(name) for name in ("inputs_embeds", "past_key_values"))
            inputs = inputs if inputs is not None else args[0] if args else kwargs["input_ids"]  # B x T (x D)
            positions = torch.arange(inputs.size(1), device=inputs.device)[None]  # 1 x T
            positions = positions + (cache.get_seq_length() if cache is not None else 0)
        kwargs = {**kwargs, "position_ids": positions + model.prefix.length(SITE)}
    return args, {**kwargs, "prefix": model.prefix.current()}


def _attend(attend: Callable, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options):
    """Call transformers' own `attend` on [prefix | keys], which also scales, drops out and groups key heads.

    Args:
        q: B x H x T x d.
        k, v: B x G x S x d.
        mask: B x 1 x T x S, boolean or additive; None means causal.
        options: `prefix`, the keys and values of all layers or None, and those of transformers' functions.

    Raises:
        UsageError: the model's layers do not pass `prefix` on to their attention.
    """
    if "prefix" not in options:
        raise UsageError(f"{type(module).__name__} receives no prefix; the model drops its layers' keyword arguments")
    if (prefix := options.pop("prefix")) is not None:
        key_value = prefix.key_value(SITE, module.layer_idx)
        key, value = (virtual.to(k).expand(len(k), -1, -1, -1) for virtual in key_value)
        k, v = torch.cat([key, k], dim=2), torch.cat([value, v], dim=2)  # B x G x (P+S) x d
        if mask is not None:
            mask = F.pad(mask, (key.size(2), 0), value=float(mask.dtype == torch.bool))
        elif q.size(2) > 1:  # a single query sees all keys
            mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=k.device).tril(key.size(2))
    return attend(module, q, k, v, mask, **options)
