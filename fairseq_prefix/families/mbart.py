"""mBART (Liu et al. 2020), 25 languages: architectures `{method}_mbart_{large,base,tiny}` for every method.

An encoder reads `source </s> [source tag]`; a decoder is fed `[target tag]` and learns to predict `target </s>`.
`--source-tag` and `--target-tag` name the two languages and are recorded with what is trained.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from fairseq.models.bart.model import BARTModel, mbart_base_architecture, mbart_large_architecture
from torch import Tensor

from ..interfaces.family import Base, Family, Framing
from . import bart
from .encoder_decoder import EncoderDecoder
from .model import register_family, set_defaults

TAGS = (  # in the order of the embedding's rows
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
).split()
SYMBOLS = tuple(f"[{tag}]" for tag in TAGS)
NORM = "encoder.layer_norm.weight"  # after the last layer, where BART has none


class MBART(EncoderDecoder, BARTModel):
    """fairseq's BART with mBART's settings, over a base."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Return fairseq's general hub interface: BART's own would force `<s>`."""
        return super(BARTModel, cls).from_pretrained(*args, **kwargs)

    @classmethod
    def add_args(cls, parser):
        """Add the options of the model and of its method, and the two languages."""
        super().add_args(parser)
        for side in ("source", "target"):
            text = f"language of the {side}s (default: en_XX)"
            parser.add_argument(f"--{side}-tag", choices=TAGS, metavar="TAG", help=text)


def framing(options) -> Framing:
    """Return the symbols around texts of the languages that `source_tag` and `target_tag` name."""
    source, target = (f"[{options.get(f'{side}_tag', 'en_XX')}]" for side in ("source", "target"))
    return Framing(after_source=("</s>", source), start=target, others=SYMBOLS)


def recognises(state, settings) -> bool:
    """Return whether these are the weights of an mBART. A BART of that form records that embeddings are not scaled."""
    return bart.FAMILY.recognises(state, settings) and NORM in state and settings.get("no_scale_embedding") is not True


def convert(family: Family, folder: Path, config: dict, raw: dict[str, Tensor]) -> Base:
    """Return the weights of a Hugging Face mBART under fairseq's names.

    Raises:
        UsageError: the weights are incomplete, or fairseq's model has no place for them.
    """
    base = bart.convert(family, folder, config, raw)
    # Without a version, fairseq takes a stack for one of its first, which had no norm after the last layer.
    base.state.update({f"{part}.version": torch.tensor([3.0]) for part in family.parts})
    return base


def architecture(args, size) -> None:
    """Complete the options of an mBART: norms before each sub-layer, scaled embeddings."""
    set_defaults(
        args,
        source_tag="en_XX",
        target_tag="en_XX",
        encoder_normalize_before=True,
        decoder_normalize_before=True,
        no_scale_embedding=False,
    )
    size(args)


FAMILY = Family(
    key="mbart",
    name="mBART",
    parts=bart.FAMILY.parts,
    embedding=bart.FAMILY.embedding,
    tied=bart.FAMILY.tied,
    settings=bart.FAMILY.settings,
    config={**bart.FAMILY.config, "model_type": "mbart", "scale_embedding": True, "normalize_before": True},
    convert=convert,
    recognises=recognises,
    sites=bart.FAMILY.sites,
    prompt_sites=bart.FAMILY.prompt_sites,
    default_task=bart.FAMILY.default_task,
    framing=framing,
    recorded=("source_tag", "target_tag"),
    appended=SYMBOLS,
    mask_row=True,
)
SIZES = {"large": mbart_large_architecture, "base": mbart_base_architecture, "tiny": bart.tiny_architecture}
register_family(FAMILY, MBART, {size: partial(architecture, size=function) for size, function in SIZES.items()})
