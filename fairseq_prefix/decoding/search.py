"""Beam search: fairseq's hypotheses and scores, with less work for each.

Shape letters in comments: B sentences, W hypotheses of each in the search (1 until it branches), N = B*W, V symbols,
L tokens, C candidates, t steps.
"""

from __future__ import annotations

import math

import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.search import BeamSearch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from ..errors import UsageError


def check_options(args) -> None:
    """Refuse options of fairseq's that a search here does not support, or would ignore.

    Args:
        args: fairseq's generation options; any may be missing.

    Raises:
        UsageError: an option is unsupported, or two contradict each other.
    """
    for name in ("constraints", "replace_unk", "print_step", "retain_iter_history", *_REFINEMENT):
        value, usual = getattr(args, name, None), getattr(GenerationConfig, name)
        if value is not None and value != usual:
            raise UsageError(f"--{name.replace('_', '-')} is not supported by this plugin's tasks; leave it out")
    groups, beam = getattr(args, "diverse_beam_groups", -1), getattr(args, "beam", 5)
    if groups > 0 and beam % groups:
        raise UsageError(f"--beam {beam} is not divisible by --diverse-beam-groups {groups}; choose a multiple of it")
    kinds = {
        "sampling": getattr(args, "sampling", False),
        "diverse-beam-groups": groups > 0,
        "match-source-len": getattr(args, "match_source_len", False),
        "diversity-rate": getattr(args, "diversity_rate", -1) > -1,
    }
    chosen = [f"--{option}" for option, value in kinds.items() if value]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} are different searches; choose one")
    for name in ("sampling_topk", "sampling_topp"):
        if getattr(args, name, -1) >= 0 and not kinds["sampling"]:
            raise UsageError(f"--{name.replace('_', '-')} requires --sampling")


# Options of non-autoregressive models; fairseq's own tasks ignore them as well.
_REFINEMENT = tuple(name for name in GenerationConfig.__dataclass_fields__ if name.startswith("iter_decode"))


class Searcher(SequenceGenerator):
    """fairseq's generator with a faster beam search.

    It computes one hypothesis per sentence until the beam branches, picks top candidates before adding cumulative
    scores, reuses one buffer of scores, records no attention, and synchronises with the device once per step.

    fairseq's own search serves what only it supports: other models, models without an encoder, ensembles, searches
    other than by beams, `--match-source-len`, a second language model, other forced tokens than one per sentence,
    `--min-len 0`, and beams of half the vocabulary.
    """

    def _generate(self, sample, prefix_tokens=None, constraints=None, bos_token=None):
        """fairseq's hook: return the finished hypotheses of each sentence, best first.

        Raises:
            UsageError: the lengths contradict each other, or the model's scores are not numbers.
        """
        if self.match_source_len and (longest := int(sample["net_input"]["src_lengths"].max())) >= self.max_len:
            raise UsageError(
                f"--match-source-len: a source has {longest} tokens, but an output at most {self.max_len - 1}; "
                "lower --max-source-tokens"
            )
        if not self._is_plain(prefix_tokens, constraints):
            return super()._generate(sample, prefix_tokens, constraints, bos_token)
        sentences, source_length = sample["net_input"]["src_tokens"].shape
        limit = min(int(self.max_len_a * source_length + self.max_len_b), self.max_len - 1)
        if self.min_len > limit:
            raise UsageError(f"--min-len {self.min_len} exceeds the longest output, {max(limit, 0)} tokens")
        tokens = sample["net_input"]["src_tokens"].new_full((sentences, limit + 2), self.pad)  # N x L
        tokens[:, 0] = self.eos if bos_token is None else bos_token
        sums = torch.zeros(sentences, limit + 1, device=tokens.device)  # N x L: the score up to each token
        scorer = NextTokenScorer(self, sample["net_input"])
        finished = FinishedHypotheses(sentences, self.beam_size, self.eos)
        for step in range(limit + 1):
            forced = prefix_tokens is not None and step == 0
            lprobs = self._forbid(scorer.score(tokens[:, : step + 1]), tokens, step, forced)  # N x V
            if forced:
                tokens[:, 1], sums[:, 0] = prefix_tokens[:, 0], lprobs.gather(1, prefix_tokens)[:, 0]
                continue
            before = sums[:, step - 1, None] if step else 0
            values, symbols, rows = self._candidates(lprobs, before, step == limit, len(finished.unfinished))  # B x C
            ended = symbols.eq(self.eos) & values.ne(-math.inf)
            divisor = (step + 1) ** self.len_penalty if self.normalize_scores else 1
            written = tokens[:, : step + 2], sums[:, : step + 1]
            remaining = finished.add(ended, values, rows, *written, divisor, step == limit)
            if not finished.unfinished:
                return finished.best_first()
            if step == limit:
                break
            values, symbols, rows, ended = (x[remaining] for x in (values, symbols, rows, ended))
            rank = torch.arange(ended.size(1), device=tokens.device) + ended * ended.size(1)
            chosen = rank.topk(self.beam_size, dim=1, largest=False).indices  # B x W: the best that did not end
            order = rows.gather(1, chosen).flatten()  # N
            tokens, sums = tokens.index_select(0, order), sums.index_select(0, order)
            tokens[:, step + 1] = symbols.gather(1, chosen).flatten()
            sums[:, step] = values.gather(1, chosen).flatten()
            scorer.reorder(order)
        raise UsageError(
            "no hypothesis has a score that is a number: the model is damaged, or half precision overflows "
            "(then leave --fp16 out)"
        )

    def _is_plain(self, prefix_tokens: Tensor | None, constraints: Tensor | None) -> bool:
        """Return whether the faster search supports this one."""
        if (
            self.model.models_size != 1
            or not hasattr(self.model.single_model, "family")
            or not self.model.has_encoder()
        ):
            return False
        if type(self.search) is not BeamSearch or self.lm_model is not None or constraints is not None:
            return False
        if self.min_len < 1 or self.match_source_len or 2 * self.beam_size >= self.vocab_size - 1:
            return False
        if prefix_tokens is None:
            return True
        unforced = prefix_tokens.eq(self.pad) | prefix_tokens.eq(self.eos)
        return prefix_tokens.size(1) == 1 and not bool(unforced.any())

    def _forbid(self, lprobs: Tensor, tokens: Tensor, step: int, forced: bool) -> Tensor:
        """Return the scores (N x V), changed in place, with -inf at symbols that must not come next."""
        lprobs[:, self.pad] = -math.inf
        lprobs[:, self.unk] -= self.unk_penalty
        if step < self.min_len and not forced:
            lprobs[:, self.eos] = -math.inf
        if self.token_indices_to_suppress is not None and not forced:
            lprobs[:, self.token_indices_to_suppress] = -math.inf
        if self.repeat_ngram_blocker is not None:
            lprobs = self.repeat_ngram_blocker(tokens, lprobs, len(tokens), 1, step)
        return lprobs

    def _candidates(
        self, lprobs: Tensor, before: Tensor | int, at_end: bool, sentences: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best continuations of each sentence: their scores, symbols and the rows they continue, B x C.

        Args:
            lprobs: N x V.
            before: the scores so far, N x 1 (0 in the first step).
            at_end: whether every hypothesis must end now.
        """
        if at_end:
            values = lprobs[:, self.eos, None]  # N x 1
            symbols = torch.full_like(values, self.eos, dtype=torch.long)
        else:
            values, symbols = lprobs.topk(2 * self.beam_size)  # N x C: half of them may be </s>
        values = (values + before).nan_to_num(nan=-math.inf, neginf=-math.inf)
        rows = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
        values, symbols, rows = (x.reshape(sentences, -1) for x in (values, symbols, rows))  # B x W*C
        values, best = values.topk(min(2 * self.beam_size, values.size(1)))
        return values, symbols.gather(1, best), rows.gather(1, best)


class NextTokenScorer:
    """Score the next token of hypotheses, from step to step."""

    def __init__(self, generator: SequenceGenerator, net_input: dict[str, Tensor]):
        self._model, self._temperature = generator.model, generator.temperature
        self._encoded = generator.model.forward_encoder(net_input)
        self._state: dict = {}
        self._rows = len(net_input["src_tokens"])
        self._lprobs: Tensor | None = None

    def score(self, tokens: Tensor) -> Tensor:
        """Return the log-probabilities after `tokens` (N x t), N x V, in a table that the next step overwrites."""
        decoder = self._model.single_model.decoder
        logits = decoder(tokens, encoder_out=self._encoded[0], incremental_state=self._state)[0][:, -1].float()
        if self._temperature != 1:
            logits = logits / self._temperature
        if self._lprobs is None or self._lprobs.shape != logits.shape:
            self._lprobs = torch.empty_like(logits)
        return torch.log_softmax(logits, dim=-1, out=self._lprobs)

    def reorder(self, order: Tensor) -> None:
        """Continue with the hypotheses `order` (rows so far)."""
        self._model.reorder_incremental_state([self._state], order)
        if len(order) != self._rows:  # else rows move within sentences only, which share what is encoded
            self._encoded, self._rows = self._model.reorder_encoder_out(self._encoded, order), len(order)


class FinishedHypotheses:
    """The finished hypotheses of a batch's sentences, in the form that fairseq returns."""

    def __init__(self, sentences: int, beam: int, eos: int):
        self.unfinished = list(range(sentences))  # sentences with fewer than `beam` finished hypotheses
        self._beam, self._eos = beam, eos
        self._hypotheses: list[list[dict]] = [[] for _ in range(sentences)]

    def add(self, ended, values, rows, tokens, sums, divisor: float, at_end: bool) -> Tensor | slice:
        """Add the candidates that ended, and return which of the searched sentences remain.

        Args:
            ended, values, rows: whether a candidate ended, its score, and the row of `tokens` and `sums` that it
                continues, each B x C.
            tokens: N x t+1, from the symbol that starts the text to the place of `</s>`.
            sums: N x t, the score up to each token.
            divisor: of the scores, for their length.
            at_end: whether the search ends with this step: then one hypothesis is enough.
        """
        places = ended[:, : self._beam].cpu().nonzero().tolist()  # here, once a step, the host waits for the device
        if not places and not at_end:
            return slice(None)
        place = torch.tensor(places, dtype=torch.long, device=tokens.device).view(-1, 2).unbind(1)
        tokens, sums = tokens[rows[place], 1:], sums[rows[place]]
        tokens[:, -1], sums[:, -1] = self._eos, values[place]
        steps = torch.diff(sums, dim=1, prepend=torch.zeros_like(sums[:, :1]))
        for (number, _), row in zip(places, zip(tokens, values[place] / divisor, steps, strict=True), strict=True):
            of_sentence = self._hypotheses[self.unfinished[number]]
            if len(of_sentence) < self._beam:
                hypothesis = dict(zip(("tokens", "score", "positional_scores"), row, strict=True))
                of_sentence.append({**hypothesis, "attention": torch.empty(0), "alignment": torch.empty(0)})
        enough = 1 if at_end else self._beam
        remaining = [n for n, sentence in enumerate(self.unfinished) if len(self._hypotheses[sentence]) < enough]
        if len(remaining) == len(self.unfinished):
            return slice(None)
        self.unfinished = [self.unfinished[number] for number in remaining]
        return torch.tensor(remaining, dtype=torch.long, device=tokens.device)

    def best_first(self) -> list[list[dict]]:
        """Return the hypotheses of each sentence, best first."""
        scores = torch.stack([found["score"] for row in self._hypotheses for found in row]).cpu()
        rows = zip(self._hypotheses, scores.split([len(row) for row in self._hypotheses]), strict=True)
        return [[row[place] for place in found.sort(descending=True).indices] for row, found in rows]
