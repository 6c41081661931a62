"""BART (Lewis et al. 2020): architectures `{method}_bart_{large,base,tiny}` for every method."""

from __future__ import annotations

from pathlib import Path

import torch
from fairseq.models.bart.model import BARTModel, bart_base_architecture, bart_large_architecture
from torch import Tensor

from ..errors import UsageError
from ..files.base import read_json, require_tied
from ..files.dictionary import read_symbols
from ..interfaces.family import Base, Family, Framing
from .encoder_decoder import EncoderDecoder
from .model import register_family, set_defaults

EMBEDDING = "encoder.embed_tokens.weight"
# fairseq's BART saw `<s> text </s>` on both sides; its translation task would leave `<s>` out.
FRAMING = Framing(before_source=("<s>",), after_source=("</s>",), start="</s>", before_target=("<s>",))


class BART(EncoderDecoder, BARTModel):
    """fairseq's BART over a base."""


def convert(family: Family, folder: Path, config: dict, raw: dict[str, Tensor]) -> Base:
    """Return the weights of a Hugging Face folder of BART's form under fairseq's names.

    Raises:
        UsageError: the weights are incomplete, or fairseq's model has no place for them.
    """
    raw = {name.removeprefix("model."): tensor for name, tensor in raw.items()}
    if raw.pop("final_logits_bias", torch.zeros(1)).any():
        raise UsageError(f"{folder}: final_logits_bias is not zero; fairseq's {family.name} has no place for it")
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    tied = [raw[name] for name in names if name in raw]  # safetensors keeps one of the names of tied weights
    if not tied:
        raise UsageError(f"{folder}: the weights hold no embedding; this is not a {family.name}")
    require_tied(folder, tied)
    symbols = read_symbols(folder, family)
    _check_mask(folder, symbols)
    state = {name: tensor for name, tensor in raw.items() if name.startswith(("encoder.", "decoder."))}
    state[EMBEDDING] = tied[0]
    heads = {f"{part}_attention_heads": config.get(f"{part}_attention_heads") for part in ("encoder", "decoder")}
    return Base(folder, state, symbols, heads)


def _check_mask(folder: Path, symbols: list[str] | None) -> None:
    """Compare the row of `<mask>` in a Hugging Face vocab.json, if there is one, with that in dict.txt.

    Raises:
        UsageError: they differ, so the other rows do too.
    """
    path = folder / "vocab.json"
    if symbols is None or not path.exists():
        return
    ours = symbols.index("<mask>") if "<mask>" in symbols else len(symbols)
    if (theirs := read_json(path, "a vocabulary").get("<mask>", ours)) != ours:
        raise UsageError(
            f"{path}: <mask> is row {theirs}, but by dict.txt row {ours}; write dict.txt in the same order"
        )


def tiny_architecture(args):
    """A BART that two CPU cores pretrain in minutes: 1-2 M parameters; with dropout it would not learn in that time."""
    set_defaults(
        args,
        encoder_embed_dim=128,
        encoder_ffn_embed_dim=512,
        encoder_layers=2,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_attention_heads=4,
        max_source_positions=256,
        max_target_positions=256,
        dropout=0.0,
    )
    bart_large_architecture(args)


FAMILY = Family(
    key="bart",
    name="BART",
    parts=("encoder", "decoder"),
    embedding=EMBEDDING,
    tied=("decoder.embed_tokens.weight", "decoder.output_projection.weight", "encoder.output_projection.weight"),
    settings=(
        "encoder_attention_heads",
        "decoder_attention_heads",
        "encoder_normalize_before",
        "decoder_normalize_before",
        "activation_fn",
        "no_scale_embedding",
    ),
    config={
        "model_type": "bart",
        "activation_function": "gelu",
        "scale_embedding": False,
        "normalize_before": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
    convert=convert,
    recognises=lambda state, _: EMBEDDING in state,
    sites=("encoder", "decoder", "cross"),
    prompt_sites=("encoder", "decoder"),
    default_task="conditional_generation",
    framing=lambda _: FRAMING,
    mask_row=True,
)
register_family(
    FAMILY, BART, {"large": bart_large_architecture, "base": bart_base_architecture, "tiny": tiny_architecture}
)
