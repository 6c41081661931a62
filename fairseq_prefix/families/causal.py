"""Decoder-only models that continue a source: reading, masks, positions, infix and search, for any family.

A text is [source | `</s>` | target]. The prefix's keys and values precede it (`--prefix-position prefix`: all of the
text sees them) or come between source and `</s>` (`infix`: only the target sees them). Positions behind the prefix are
shifted by its length, as in the original code. A prompt's virtual tokens have positions 0 to P-1 and see only each
other, so the base reads them once; afterwards their keys and values act as a prefix.

Rows of a batch are joined without padding between source and target, and only targets are projected to the vocabulary.
fairseq's generator sees an encoder-decoder whose "encoder" is the decoder itself reading the source (`SourceReader`).

Shape letters in comments: B sentences, N hypotheses, S source tokens, T tokens, P virtual tokens, D width, L layers, H
heads of width d, V symbols.
"""

from __future__ import annotations

import torch
from fairseq.tasks.language_modeling import LanguageModelingTask
from torch import Tensor

from ..attention.beams import Beams, SearchedDecoder
from ..errors import UsageError
from ..methods.prefix import NO_PREFIX
from ..methods.prompt import ReadPrompt
from .model import FamilyModel

NEVER = -1e4  # logit of a symbol that a base does not have; finite, for the arithmetic of losses and of fp16


class Causal(FamilyModel):
    """What decoder-only families share; derive from it and from a model of fairseq's.

    The family sets `decoder_class`, a `CausalDecoder` that is built from (args, dictionary, embedding).
    """

    decoder_class: type

    @classmethod
    def build_model(cls, args, task):
        """Build the model (fairseq's hook). If the task has sources, set `model.encoder` to a `SourceReader`.

        Raises:
            UsageError: the task is neither the plugin's nor language modelling, so it may pad sources on the left.
        """
        if not (hasattr(task, "conventions") or isinstance(task, LanguageModelingTask)):
            raise UsageError(f"--arch {args.arch} reads source and target as one text; pass --task conditional_lm")
        cls.prepare_task(args, task)
        embedding = cls.build_embedding(args, task.source_dictionary, args.decoder_embed_dim)
        model = cls(cls.decoder_class(args, task.target_dictionary, embedding))
        model.args = args
        if hasattr(task, "conventions"):
            model.encoder = SourceReader(model.decoder)
        return model

    @classmethod
    def source_room(cls, args) -> int:
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
        """Return the logits of the targets, B x T x V; without `prev_output_tokens`, those of whole texts.

        Args:
            src_tokens: B x S, padded on the right.
            src_lengths: B.
            prev_output_tokens: `</s>` and the target, B x T, padded on the right.
        """
        if prev_output_tokens is None:
            return self.decoder(src_tokens)
        return self.decoder.continue_source(src_tokens, src_lengths, prev_output_tokens)

    def word_room(self) -> int:
        """Return how many words the base can read at once."""
        return self.decoder.room

    def read_words(self, text: list[int]) -> dict[str, Tensor]:
        """Return the keys and values of words at positions 0 to T-1 (original: `get_gold_init`), L x 2 x H x T x d."""
        return {"decoder": self.decoder.read_alone(self.decoder.embed_tokens(torch.tensor(text)))}

    def build_prompt(self, geometry, reparam: str, mid_dim: int) -> ReadPrompt:
        """Return a new prompt, attached to every attention layer.

        Raises:
            UsageError: the prompt leaves no position for a text.
        """
        prompt, room = ReadPrompt(geometry, reparam, mid_dim, self.decoder.read_alone), self.decoder.max_positions()
        if (length := prompt.length("decoder")) >= room:
            raise UsageError(f"--prompt-length {length} leaves none of the model's {room} positions for a text")
        self.attach(prompt)
        return prompt


class SourceReader:
    """What fairseq's generator takes for an encoder: the decoder reads the sources, once for all beams."""

    def __init__(self, decoder: CausalDecoder):
        self.decoder = decoder

    def forward_torchscript(self, net_input: dict[str, Tensor]) -> dict:
        """Return the keys and values of the sources (B x S, padded on the right) and the position after each."""
        source, lengths = net_input["src_tokens"], net_input["src_lengths"]
        state: dict = {}
        self.decoder.begin(len(source))
        if source.size(1):
            self.decoder.read(source, lengths, state)
        padding = torch.arange(source.size(1), device=source.device) >= lengths[:, None]
        return {"ends": lengths[:, None] + self.decoder.prefix_row_lengths, "padding": padding, "state": state}  # B x 1

    def reorder_encoder_out(self, encoder_out: dict, new_order: Tensor) -> dict:
        """Reorder the positions with the hypotheses; attention follows the search by itself."""
        return {**encoder_out, "ends": encoder_out["ends"].index_select(0, new_order)}


class CausalDecoder(SearchedDecoder):
    """A decoder without cross-attention, which reads whole texts, or one token at a time after a source.

    A family's decoder derives from it, calls `prepare` when it is built, and has: `layers`, each with a `self_attn` of
    `attention.layers.CausalPrefixAttention`; `embed_tokens`, `output_projection`, `padding_idx`; and the methods that
    raise NotImplementedError here.
    """

    def place(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Return embeddings (... x D) as the first layer reads them at these positions (...)."""
        raise NotImplementedError

    def through_layers(self, x: Tensor, positions: Tensor, mask: Tensor | None, state: dict | None) -> Tensor:
        """Return normed hidden states, N x T x D.

        Args:
            x: N x T x D.
            positions: N x T, or anything that broadcasts to it.
            mask: true where [prefix | text] is visible, T x (P+T) or N x 1 x T x (P+T); None is causal.
            state: incremental state, of a search or to be filled with the keys and values of a text.
        """
        raise NotImplementedError

    @property
    def room(self) -> int:
        """Positions of the model, those of virtual tokens included."""
        raise NotImplementedError

    def prepare(self, args, dictionary) -> None:
        """Set up what a family's decoder does not have by itself."""
        self.infix = getattr(args, "prefix_position", "prefix") == "infix"
        # As bytes: fairseq's scripts add and divide all that a checkpoint holds, which booleans do not allow.
        self.register_buffer("absent_symbols", torch.zeros(len(dictionary), dtype=torch.uint8))
        for number, layer in enumerate(self.layers):
            layer.self_attn.attach(NO_PREFIX, "decoder", number)

    @property
    def prefix_length(self) -> int:
        """Virtual tokens of the row that has most."""
        return self.layers[0].self_attn.prefix_length

    @property
    def prefix_row_lengths(self) -> int | Tensor:
        """Virtual tokens of each row, B x 1, or one number for all."""
        return self.layers[0].self_attn.prefix_row_lengths

    def begin(self, rows: int) -> None:
        """Begin a pass over a batch of `rows` sentences."""
        self.layers[0].self_attn.begin(rows)

    def max_positions(self) -> int:
        """Return the positions that the prefix leaves for source, `</s>` and target."""
        return self.room - self.prefix_length

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None, features_only=False, **unused):
        """Return logits of whole texts without a source, or of the next step of a search."""
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
        """Return the logits at the tokens of `target`, which follow the source: B x T x V."""
        self.begin(len(source))
        text = self._join(source, lengths, target)
        columns = lengths[:, None] + torch.arange(target.size(1), device=target.device)
        columns = columns.clamp(max=text.size(1) - 1)  # the target's padding may get any logits
        x = self.read(text, lengths)
        x = x.gather(1, columns[:, :, None].expand(-1, -1, x.size(2)))
        return self.output_layer(x), {"attn": [None]}

    def _join(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Return [source | target] row by row, without padding between the two."""
        total = lengths + target.ne(self.padding_idx).sum(dim=1)
        columns = torch.arange(int(total.max()), device=source.device)
        starts = lengths[:, None]
        index = torch.where(columns < starts, columns, columns - starts + source.size(1))
        both = torch.cat([source, target], dim=1)
        text = both.gather(1, index.clamp(max=both.size(1) - 1))
        return text.masked_fill(columns >= total[:, None], self.padding_idx)

    def read(self, tokens: Tensor, lengths: Tensor, incremental_state: dict | None = None) -> Tensor:
        """Return the hidden states of texts, B x T x D.

        Args:
            tokens: B x T, padded on the right.
            lengths: how many tokens of each text are source, B.
            incremental_state: is filled with keys and values, if given.
        """
        columns = torch.arange(tokens.size(1), device=tokens.device)
        is_target = columns >= lengths[:, None]  # B x T
        shifted = is_target if self.infix else torch.ones_like(columns, dtype=torch.bool)[None]
        positions = self._within_room(tokens, columns + self.prefix_row_lengths * shifted)
        x = self.place(self.embed_tokens(tokens), positions)
        return self.through_layers(x, positions, self._mask(is_target), incremental_state)

    def _within_room(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the positions of texts (B x T), with those of padding behind a text moved into the model's range.

        Raises:
            UsageError: a text itself exceeds the range.
        """
        if tokens.size(1) + self.prefix_length <= self.room:
            return positions
        beyond = (positions >= self.room) & tokens.ne(self.padding_idx)
        if beyond.any():
            needed = int(positions.expand_as(beyond)[beyond].max()) + 1
            raise UsageError(
                f"a text needs {needed} positions with its virtual tokens, but the model has {self.room}; "
                "shorten the source, the target or the prefix"
            )
        return positions.clamp(max=self.room - 1)

    def read_alone(self, embedded: Tensor) -> Tensor:
        """Return the keys and values of embeddings (T x D) that nothing precedes, L x 2 x H x T x d."""
        positions = torch.arange(len(embedded), device=embedded.device)
        state: dict = {}
        x = self.place(embedded.to(self.embed_tokens.weight.dtype), positions)
        self.through_layers(x[None], positions, None, state)
        return torch.stack([torch.cat(layer.self_attn.cached_key_value(state)) for layer in self.layers])

    def _mask(self, is_target: Tensor) -> Tensor | None:
        """Return where [prefix | text] is visible; padding on the right is behind everything that counts."""
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
        """Return the hidden state at the last of `tokens` (N x t); earlier steps have read the others."""
        self._next_step(encoder_out, state, tokens)
        ends = encoder_out["ends"] if encoder_out else self.prefix_row_lengths
        positions = ends + torch.full_like(tokens[:, -1:], tokens.size(1) - 1)
        x = self.place(self.embed_tokens(tokens[:, -1:]), positions)
        return self.through_layers(x, positions, None, state)

    def _start_search(self, encoder_out: dict | None, state: dict, tokens: Tensor) -> None:
        beams = Beams.begin(state, len(encoder_out["padding"]) if encoder_out else None, tokens)
        if encoder_out and encoder_out["state"]:
            for layer in self.layers:
                layer.self_attn.start_from_prefill(encoder_out["state"], encoder_out["padding"], beams)

    def output_layer(self, features: Tensor) -> Tensor:
        """Return logits; symbols that the base does not have get no probability."""
        return self.output_projection(features).masked_fill_(self.absent_symbols.bool(), NEVER)
