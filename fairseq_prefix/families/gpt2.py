"""GPT-2 with a prefix (`prefix_gpt2_*`), a prompt (`prompt_gpt2_*`), adapters (`adapter_gpt2_*`), trained top layers
(`top_gpt2_*`), and GPT-2 trained whole (`full_gpt2_*`): fairseq's transformer language model with GPT-2's settings.
What they share with other families is in model.py.

A text is [source | `</s>` | target], `</s>` being GPT-2's `<|endoftext|>`. The prefix's keys and values come before it
(`--prefix-position prefix`: all of the text sees them) or between source and `</s>` (`infix`: the target alone does).
Positions behind the prefix are shifted by its length, as in the original code. A prompt's virtual tokens have positions
0 to P-1, as there; nothing else being visible to them, they are read once, and are a prefix from then on.

Rows of a batch are joined without padding between source and target, and only targets are projected to the vocabulary.
For the generator the model passes for an encoder-decoder whose "encoder" is the decoder itself reading the source in
one pass (`SourceReader`).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from fairseq.models import register_model
from fairseq.models.transformer import TransformerConfig, TransformerDecoderBase
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from fairseq.tasks.language_modeling import LanguageModelingTask
from torch import Tensor

from ..attention.layers import SourceDecoderLayer
from ..decoding.beams import Beams, SearchedDecoder
from ..errors import UsageError
from ..files import checkpoint as files
from ..methods.prefix import Prefix
from ..methods.prompt import ReadPrompt
from . import model as common

SITES = ("decoder",)
PREFIX_DEFAULTS = {"prefix_length": 10, "prefix_mid_dim": 512, "prefix_position": "prefix", "base_dropout": "off"}
PROMPT_DEFAULTS = {"prompt_length": 10, "prompt_mid_dim": 512, "base_dropout": "off"}
NEVER = -1e4  # the logit of a symbol that a base does not have; finite, for the arithmetic of losses and of fp16


class BaseGPT2(common.FromBase, TransformerLanguageModel):
    """What GPT-2's models have in common."""

    family = files.GPT2
    sites = SITES
    prompt_sites = SITES
    default_task = "conditional_lm"

    @staticmethod
    def add_args(parser):
        """The sizes and dropouts of fairseq's transformer language model, and where the base is."""
        add = parser.add_argument
        for name in ("embed-dim", "ffn-embed-dim", "layers", "attention-heads"):
            add(f"--decoder-{name}", type=int, metavar="N", help=f"the decoder's {name.replace('-', ' ')}")
        add("--max-target-positions", type=int, metavar="N", help="longest text, prefix included")
        for name in ("dropout", "attention-dropout", "activation-dropout"):
            add(f"--{name}", type=float, metavar="D", help=f"{name.replace('-', ' ')} probability of the base")
        add("--checkpoint-activations", action="store_true", help="recompute activations in the backward pass")
        common.add_base_argument(
            parser, "the pretrained GPT-2: folder with model.pt and dict.txt, a model.pt, or a Hugging Face folder"
        )

    @classmethod
    def build_model(cls, args, task):
        """fairseq's hook. For a task that has sources, the generator is offered an encoder.

        Raises:
            UsageError: the task pads sources on the left, where the model would join them to something else.
        """
        if not (hasattr(task, "conventions") or isinstance(task, LanguageModelingTask)):
            raise UsageError(f"--arch {args.arch} reads source and target as one text; pass --task conditional_lm")
        embedding = cls.build_embedding(args, task.source_dictionary, args.decoder_embed_dim)
        model = cls(GPT2Decoder(args, task.target_dictionary, embedding))
        model.args = args
        if hasattr(task, "conventions"):
            model.encoder = SourceReader(model.decoder)
        return model

    @staticmethod
    def source_room(args) -> int:
        return args.max_target_positions // 2

    def attentions(self):
        for layer, module in enumerate(self.decoder.layers):
            yield "decoder", layer, module.self_attn

    def blocks(self):
        return {"decoder": self.decoder.layers}

    @classmethod
    def conventions_of(cls, args, task) -> dict:
        conventions = super().conventions_of(args, task)
        if "separator" not in conventions:
            raise UsageError(f"--arch {args.arch} reads source and target as one text; pass --task conditional_lm")
        return conventions

    def forward(self, src_tokens, src_lengths=None, prev_output_tokens=None):
        """Logits of the targets, B x T x V; or, without `prev_output_tokens`, those of whole texts.

        Args:
            src_tokens: B x S, padded on the right.
            prev_output_tokens: `</s>` and the target, B x T, padded on the right.
        """
        if prev_output_tokens is None:
            return self.decoder(src_tokens)
        return self.decoder.continue_source(src_tokens, src_lengths, prev_output_tokens)


@register_model("full_gpt2")
class FullGPT2Model(common.Whole, BaseGPT2):
    """GPT-2, trained whole: with `--task conditional_lm`, or from scratch with fairseq's `--task language_modeling`."""


@register_model("prefix_gpt2")
class PrefixGPT2Model(common.Prefixed, BaseGPT2):
    """A frozen GPT-2 and a prefix, or an infix, for its attention."""

    @staticmethod
    def add_args(parser):
        """GPT-2's options and the prefix's."""
        BaseGPT2.add_args(parser)
        common.add_prefix_arguments(parser, PREFIX_DEFAULTS, SITES)
        parser.add_argument(
            "--prefix-position",
            choices=("prefix", "infix"),
            help="before the source, or between source and target (default: prefix)",
        )

    @classmethod
    def conventions_of(cls, args, task) -> dict:
        return {**super().conventions_of(args, task), "prefix_position": args.prefix_position}

    def word_room(self) -> int:
        return self.decoder.embed_positions.max_positions

    def read_words(self, text: list[int]) -> dict[str, int]:
        """From position 0 on, as if the words stood before the text (original: `get_gold_init`)."""
        self.decoder(torch.tensor([text]))
        return {"decoder": 0}


@register_model("prompt_gpt2")
class PromptGPT2Model(common.Prompted, BaseGPT2):
    """A frozen GPT-2 and virtual tokens before the source."""

    @staticmethod
    def add_args(parser):
        """GPT-2's options and the prompt's."""
        BaseGPT2.add_args(parser)
        common.add_prompt_arguments(parser, PROMPT_DEFAULTS, SITES)

    def _make_prompt(self, geometry, reparam, mid_dim):
        prompt, room = ReadPrompt(geometry, reparam, mid_dim, self.decoder.read_prompt), self.decoder.max_positions()
        if prompt.length("decoder") >= room:
            raise UsageError(
                f"--prompt-length {prompt.length('decoder')} leaves nothing of the model's {room} positions"
            )
        self._attach(prompt)
        return prompt


@register_model("adapter_gpt2")
class AdapterGPT2Model(common.Adapted, BaseGPT2):
    """A frozen GPT-2 and an adapter after every layer."""

    @staticmethod
    def add_args(parser):
        """GPT-2's options and the adapters'."""
        BaseGPT2.add_args(parser)
        common.add_adapter_arguments(parser)


@register_model("top_gpt2")
class TopGPT2Model(common.TopTuned, BaseGPT2):
    """GPT-2 of which the last layers and the norm after them are trained."""

    @staticmethod
    def add_args(parser):
        """GPT-2's options and how many layers."""
        BaseGPT2.add_args(parser)
        common.add_top_arguments(parser)


class SourceReader:
    """What fairseq's generator takes for an encoder: the decoder reads the sources, once for all beams."""

    def __init__(self, decoder: GPT2Decoder):
        self.decoder = decoder

    def forward_torchscript(self, net_input: dict[str, Tensor]) -> dict:
        """Keys and values of the sources (B x S, padded on the right), and where what follows them has its place."""
        source, lengths, state = net_input["src_tokens"], net_input["src_lengths"], {}
        self.decoder.begin(len(source))
        if source.size(1):
            self.decoder.read(source, lengths, state)
        padding = torch.arange(source.size(1), device=source.device) >= lengths[:, None]
        return {"ends": lengths[:, None] + self.decoder.prefix_row_lengths, "padding": padding, "state": state}  # B x 1

    def reorder_encoder_out(self, encoder_out: dict, new_order: Tensor) -> dict:
        """Places go with the hypotheses. Keys and values stay: attention follows the search by itself."""
        return {**encoder_out, "ends": encoder_out["ends"].index_select(0, new_order)}


class GPT2Decoder(SearchedDecoder, TransformerDecoderBase):
    """fairseq's decoder without cross-attention; reads whole texts, or one token at a time after a source."""

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens, no_encoder_attn=True)
        self.infix = getattr(args, "prefix_position", "prefix") == "infix"
        # As bytes: fairseq's scripts add up and divide all that a checkpoint holds, which booleans do not allow.
        self.register_buffer("absent_symbols", torch.zeros(len(dictionary), dtype=torch.uint8))
        nothing = Prefix({})
        for number, layer in enumerate(self.layers):
            layer.self_attn.attach(nothing, "decoder", number)

    def build_decoder_layer(self, cfg, no_encoder_attn=True):
        return SourceDecoderLayer(cfg)

    @property
    def prefix_length(self) -> int:
        return self.layers[0].self_attn.prefix_length

    @property
    def prefix_row_lengths(self) -> int | Tensor:
        """That of each row, where they differ: B x 1."""
        return self.layers[0].self_attn.prefix_row_lengths

    def begin(self, rows: int) -> None:
        """Begin a pass over a batch of `rows` sentences."""
        self.layers[0].self_attn.begin(rows)

    def max_positions(self) -> int:
        """What the prefix leaves for source, `</s>` and target."""
        return self.embed_positions.max_positions - self.prefix_length

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None, features_only=False, **unused):
        """Whole texts that have no source, or the next step of a search."""
        if incremental_state is None:
            self.begin(len(prev_output_tokens))
            lengths = torch.full_like(prev_output_tokens[:, 0], prev_output_tokens.size(1))
            x = self.read(prev_output_tokens, lengths)
        else:
            x = self._step(prev_output_tokens, encoder_out, incremental_state)
        return x if features_only else self.output_layer(x), {"attn": [None]}

    def extract_features(self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused):
        return self(prev_output_tokens, encoder_out, incremental_state, features_only=True)

    def continue_source(self, source: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, dict]:
        """Logits at the tokens of `target`, which follow the source: B x T x V."""
        self.begin(len(source))
        text = self._join(source, lengths, target)
        columns = lengths[:, None] + torch.arange(target.size(1), device=target.device)
        columns = columns.clamp(max=text.size(1) - 1)  # at the target's padding: anything
        x = self.read(text, lengths)
        x = x.gather(1, columns[:, :, None].expand(-1, -1, x.size(2)))
        return self.output_layer(x), {"attn": [None]}

    def _join(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """[source | target] row by row, with no padding between the two."""
        total = lengths + target.ne(self.padding_idx).sum(dim=1)
        columns = torch.arange(int(total.max()), device=source.device)
        starts = lengths[:, None]
        index = torch.where(columns < starts, columns, columns - starts + source.size(1))
        both = torch.cat([source, target], dim=1)
        text = both.gather(1, index.clamp(max=both.size(1) - 1))
        return text.masked_fill(columns >= total[:, None], self.padding_idx)

    def read(self, tokens: Tensor, lengths: Tensor, incremental_state: dict | None = None) -> Tensor:
        """Hidden states of texts (B x T, padded on the right), of which the first `lengths` (B) tokens are source."""
        columns = torch.arange(tokens.size(1), device=tokens.device)
        is_target = columns >= lengths[:, None]  # B x T
        shifted = is_target if self.infix else torch.ones_like(columns, dtype=torch.bool)[None]
        positions = self._within_table(tokens, columns + self.prefix_row_lengths * shifted)
        x = self._embed(tokens, positions).transpose(0, 1)
        mask = self._mask(is_target)
        for layer in self.layers:
            x, _, _ = layer(x, incremental_state=incremental_state, self_attn_mask=mask)
        return self.layer_norm(x).transpose(0, 1)

    def _within_table(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The positions of texts (B x T), where those of padding behind a text may reach beyond the model's.

        Raises:
            UsageError: a text itself reaches beyond them.
        """
        room = self.embed_positions.max_positions
        if tokens.size(1) + self.prefix_length <= room:
            return positions
        beyond = (positions >= room) & tokens.ne(self.padding_idx)
        if beyond.any():
            needed = int(positions.expand_as(beyond)[beyond].max()) + 1
            raise UsageError(
                f"a text needs {needed} positions with its virtual tokens, but the model has {room}; "
                "shorten the source, the target or the prefix"
            )
        return positions.clamp(max=room - 1)

    def read_prompt(self, table: Tensor) -> Tensor:
        """Keys and values of virtual tokens (P x D), which nothing comes before: L x 2 x H x P x d."""
        embedded = table.to(self.embed_positions.weight.dtype)
        x = self._place(embedded, torch.arange(len(table), device=table.device)).unsqueeze(1)  # P x 1 x D
        state: dict = {}
        for layer in self.layers:
            x, _, _ = layer(x, incremental_state=state)
        return torch.stack([torch.cat(layer.self_attn.cached_key_value(state)) for layer in self.layers])

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self._place(self.embed_tokens(tokens), positions)

    def _place(self, embedded: Tensor, positions: Tensor) -> Tensor:
        rows = positions + self.padding_idx + 1  # fairseq's table of positions begins after the padding's row
        return self.dropout_module(embedded + F.embedding(rows, self.embed_positions.weight))

    def _mask(self, is_target: Tensor) -> Tensor | None:
        """Where [prefix | text] may be attended to; padding on the right is behind everything that counts."""
        if not self.prefix_length:
            return None
        rows, length = is_target.shape
        visible = torch.ones(length, self.prefix_length + length, dtype=torch.bool, device=is_target.device)
        visible = visible.tril(self.prefix_length)
        padding = self.layers[0].self_attn.prefix_padding
        if not self.infix and padding is None:
            return visible
        visible = visible.repeat(rows, 1, 1, 1)
        if self.infix:
            visible[..., : self.prefix_length] = is_target[:, None, :, None]
        if padding is not None:
            visible[..., : self.prefix_length] &= ~padding[:, None, None]
        return visible

    def _step(self, tokens: Tensor, encoder_out: dict | None, state: dict) -> Tensor:
        """The hidden state at the last of `tokens` (N x t), those before it having been seen in earlier steps."""
        self._next_step(encoder_out, state, tokens)
        ends = encoder_out["ends"] if encoder_out else self.prefix_row_lengths
        positions = ends + torch.full_like(tokens[:, -1:], tokens.size(1) - 1)
        x = self._embed(tokens[:, -1:], positions).transpose(0, 1)
        for layer in self.layers:
            x, _, _ = layer(x, incremental_state=state)
        return self.layer_norm(x).transpose(0, 1)

    def _start_search(self, encoder_out: dict | None, state: dict, tokens: Tensor) -> None:
        beams = Beams.begin(state, len(encoder_out["padding"]) if encoder_out else None, tokens)
        if encoder_out and encoder_out["state"]:
            for layer in self.layers:
                layer.self_attn.start_from_prefill(encoder_out["state"], encoder_out["padding"], beams)

    def output_layer(self, features):
        """Logits; symbols that the base does not have get none of the probability."""
        return self.output_projection(features).masked_fill_(self.absent_symbols.bool(), NEVER)


def gpt2_architecture(args, layers: int, embed_dim: int, heads: int):
    """GPT-2 (Radford et al. 2019): pre-norm, learned positions, GELU's tanh approximation, tied embeddings."""
    common.set_defaults(args, decoder_layers=layers, decoder_embed_dim=embed_dim, decoder_attention_heads=heads)
    common.set_defaults(
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


def tiny_gpt2_architecture(args):
    """A GPT-2 that two CPU cores pretrain in minutes: about a million parameters, and no dropout."""
    common.set_defaults(args, max_target_positions=512, dropout=0.0, attention_dropout=0.0)
    gpt2_architecture(args, layers=4, embed_dim=128, heads=4)


_SIZES = {
    "small": partial(gpt2_architecture, layers=12, embed_dim=768, heads=12),
    "medium": partial(gpt2_architecture, layers=24, embed_dim=1024, heads=16),
    "large": partial(gpt2_architecture, layers=36, embed_dim=1280, heads=20),
    "xl": partial(gpt2_architecture, layers=48, embed_dim=1600, heads=25),
    "tiny": tiny_gpt2_architecture,
}
common.register_architectures(
    "prefix_gpt2", _SIZES, partial(common.prefix_defaults, defaults=PREFIX_DEFAULTS, sites=SITES)
)
common.register_architectures(
    "prompt_gpt2", _SIZES, partial(common.prompt_defaults, defaults=PROMPT_DEFAULTS, sites=SITES)
)
common.register_architectures("adapter_gpt2", _SIZES, common.adapter_defaults)
common.register_architectures("top_gpt2", _SIZES, common.top_defaults)
common.register_architectures("full_gpt2", _SIZES, common.whole_defaults)
