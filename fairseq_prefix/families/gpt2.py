"""GPT-2 (Radford et al. 2019): architectures `{method}_gpt2_{small,medium,large,xl,tiny}` for every method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerConfig, TransformerDecoderBase
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from torch import Tensor

from ..attention.layers import CausalDecoderLayer
from ..errors import UsageError
from ..files.base import require_tied
from ..files.dictionary import read_symbols
from ..interfaces.family import Base, Family, Framing
from .causal import Causal, CausalDecoder
from .model import register_family, set_defaults

EMBEDDING = "decoder.embed_tokens.weight"
# `</s>` is GPT-2's `<|endoftext|>`; the original code uses it as bos and eos.
FRAMING = Framing(after_source=(), start="</s>", joined=True)


class GPT2Decoder(CausalDecoder, TransformerDecoderBase):
    """fairseq's decoder with GPT-2's learned positions."""

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens, no_encoder_attn=True)
        self.prepare(args, dictionary)

    def build_decoder_layer(self, cfg, no_encoder_attn=True):
        return CausalDecoderLayer(cfg)

    def place(self, embedded: Tensor, positions: Tensor) -> Tensor:
        rows = positions + self.padding_idx + 1  # fairseq's table of positions begins after the padding's row
        return self.dropout_module(embedded + F.embedding(rows, self.embed_positions.weight))

    def through_layers(self, x: Tensor, positions: Tensor, mask: Tensor | None, state: dict | None) -> Tensor:
        x = x.transpose(0, 1)
        for layer in self.layers:
            x, _, _ = layer(x, incremental_state=state, self_attn_mask=mask)
        return self.layer_norm(x).transpose(0, 1)

    @property
    def room(self) -> int:
        return self.embed_positions.max_positions


class GPT2(Causal, TransformerLanguageModel):
    """fairseq's transformer language model with GPT-2's settings, over a base."""

    decoder_class = GPT2Decoder

    @classmethod
    def add_args(cls, parser):
        """Add sizes and dropouts of fairseq's transformer language model, and the method's options."""
        add = parser.add_argument
        for name in ("embed-dim", "ffn-embed-dim", "layers", "attention-heads"):
            add(f"--decoder-{name}", type=int, metavar="N", help=f"the decoder's {name.replace('-', ' ')}")
        add("--max-target-positions", type=int, metavar="N", help="longest text, prefix included")
        for name in ("dropout", "attention-dropout", "activation-dropout"):
            add(f"--{name}", type=float, metavar="D", help=f"{name.replace('-', ' ')} probability of the base")
        add("--checkpoint-activations", action="store_true", help="recompute activations in the backward pass")
        cls.method.options.add_to(parser, cls.method.name, cls.family)


LAYER = {  # Hugging Face's names in a layer -> fairseq's
    "ln_1": "self_attn_layer_norm",
    "attn.c_proj": "self_attn.out_proj",
    "ln_2": "final_layer_norm",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
}


def convert(family: Family, folder: Path, config: dict, raw: dict[str, Tensor]) -> Base:
    """Return the weights of a Hugging Face GPT-2 under fairseq's names.

    Linear layers are stored transposed ("Conv1D"), with q, k and v in one; positions start at fairseq's row 2. The ids
    of the vocabulary are the words of fairseq's dict.txt, in another order. `</s>` is `<|endoftext|>`, which separates
    and ends texts; `<s>` or its number in a text is read as the same.

    Raises:
        UsageError: the weights are incomplete or their embeddings untied.
    """
    raw = {name.removeprefix("transformer."): tensor for name, tensor in raw.items()}
    if "wte.weight" not in raw or "wpe.weight" not in raw:
        raise UsageError(f"{folder}: the weights hold no wte and wpe; this is not a GPT-2")
    embedding, positions = raw["wte.weight"], raw["wpe.weight"]
    require_tied(folder, [embedding, raw.get("lm_head.weight", embedding)])
    end = config.get("eos_token_id", 50256)
    if not isinstance(end, int) or not 0 <= end < len(embedding):
        raise UsageError(f"{folder}/config.json: eos_token_id is {end!r}, but there are {len(embedding)} embeddings")
    state = {
        EMBEDDING: embedding,
        "decoder.embed_positions.weight": torch.cat([positions.new_zeros(2, positions.size(1)), positions]),
        "decoder.version": torch.tensor([3.0]),  # from there on fairseq has a last layer norm
    }
    state |= {f"decoder.layer_norm.{name[5:]}": tensor for name, tensor in raw.items() if name.startswith("ln_f.")}
    for name, tensor in raw.items():
        _, _, rest = name.partition(".")
        layer, _, rest = rest.partition(".")
        stem, _, kind = rest.rpartition(".")
        if not name.startswith("h.") or kind not in ("weight", "bias") or stem == "attn":  # attn.bias: a causal mask
            continue
        ours, tensor = f"decoder.layers.{layer}", tensor.T if tensor.dim() == 2 else tensor
        if stem == "attn.c_attn":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{ours}.self_attn.{letter}_proj.{kind}"] = part
        else:
            state[f"{ours}.{LAYER.get(stem, stem)}.{kind}"] = tensor
    rows = {str(number): number for number in range(len(embedding))} | {"</s>": end, "<s>": end}
    return Base(folder, state, read_symbols(folder, family), {"decoder_attention_heads": config.get("n_head")}, rows)


def architecture(args, layers: int, embed_dim: int, heads: int):
    """Complete the options of a GPT-2: pre-norm, learned positions, GELU's tanh approximation, tied embeddings."""
    set_defaults(args, decoder_layers=layers, decoder_embed_dim=embed_dim, decoder_attention_heads=heads)
    set_defaults(
        args,
        decoder_ffn_embed_dim=4 * args.decoder_embed_dim,
        decoder_learned_pos=True,
        max_target_positions=1024,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.0,
        activation_fn="gelu_accurate",
        share_decoder_input_output_embed=True,
        no_scale_embedding=True,
    )
    base_lm_architecture(args)


def tiny_architecture(args):
    """A GPT-2 that two CPU cores pretrain in minutes: about a million parameters, and no dropout."""
    set_defaults(args, max_target_positions=512, dropout=0.0, attention_dropout=0.0)
    architecture(args, layers=4, embed_dim=128, heads=4)


FAMILY = Family(
    key="gpt2",
    name="GPT-2",
    parts=("decoder",),
    embedding=EMBEDDING,
    tied=("decoder.output_projection.weight",),
    settings=("decoder_attention_heads", "decoder_normalize_before", "activation_fn", "no_scale_embedding"),
    config={
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    convert=convert,
    recognises=lambda state, _: EMBEDDING in state and "encoder.embed_tokens.weight" not in state,
    sites=("decoder",),
    prompt_sites=("decoder",),
    default_task="conditional_lm",
    framing=lambda _: FRAMING,
    defaults={  # the original trains virtual tokens without the base's dropout, and other methods with it
        "prefix": {"prefix_length": 10, "prefix_mid_dim": 512, "base_dropout": "off"},
        "prompt": {"prompt_mid_dim": 512, "base_dropout": "off"},
    },
)
SIZES: dict[str, Callable] = {
    "small": partial(architecture, layers=12, embed_dim=768, heads=12),
    "medium": partial(architecture, layers=24, embed_dim=1024, heads=16),
    "large": partial(architecture, layers=36, embed_dim=1280, heads=20),
    "xl": partial(architecture, layers=48, embed_dim=1600, heads=25),
    "tiny": tiny_architecture,
}
register_family(FAMILY, GPT2, SIZES)
