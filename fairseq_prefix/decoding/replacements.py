"""Working `--no-repeat-ngram-size` and `--diverse-beam-groups`; fairseq's are broken.

Shape letters in comments: B sentences, W hypotheses of each, N = B*W, V symbols, L tokens, T of them written, G groups.
"""

from __future__ import annotations

import math

import torch
from fairseq.search import DiverseBeamSearch
from torch import Tensor, nn


class NGramBlock(nn.Module):
    """`--no-repeat-ngram-size`: no n-gram occurs twice in a hypothesis.

    fairseq's own works only with its CUDA extension, which few installations have. Without the extension it compares
    the padding after the hypothesis, and blocks nothing (facebookresearch/fairseq, issue 5206).
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, tokens: Tensor, scores: Tensor, sentences: int, beam: int, step: int) -> Tensor:
        """Return the scores, changed in place, with -inf at tokens that would complete an earlier n-gram again.

        Args:
            tokens: N x L, of which the first, `</s>`, and `step` others are written.
            scores: N x V, of the next token.
        """
        if step < self.size:
            return scores
        written = tokens[:, 1 : step + 1]  # N x T
        ngrams = written.unfold(1, self.size, 1)  # N x (T-n+1) x n
        last = written[:, step - self.size + 1 :]  # N x n-1
        seen = (ngrams[..., :-1] == last[:, None]).all(dim=-1)  # N x (T-n+1)
        ends = ngrams[..., -1]
        # The minimum, because one token may end several n-grams of which only some are seen.
        return scores.scatter_reduce_(1, ends, scores.gather(1, ends).masked_fill(seen, -math.inf), "amin")


class DiverseBeams(DiverseBeamSearch):
    """`--diverse-beam-groups`: hypothesis i belongs to group i % G, and each group finishes W/G hypotheses.

    fairseq's own indexes the overlap of groups by the dataset's row numbers, which fails from the second batch on.
    After a `</s>` it moves hypotheses between groups, and writes more tokens after the `</s>`.
    """

    group_overlap: Tensor  # B x G x G
    _ended: Tensor  # B x G

    def prune_sentences(self, batch_idxs: Tensor) -> None:
        """fairseq's hook: keep the state of these sentences of the batch."""
        self.group_overlap, self._ended = self.group_overlap[batch_idxs], self._ended[batch_idxs]

    def step(self, step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):
        """Return the scores, symbols and hypotheses of candidates, each B x 2W.

        Candidates that end come first, then W that do not, group by group.

        Args:
            lprobs: B x W x V.
            scores: B x W x `step`, the score up to each token.
        """
        (sentences, beam, _), groups = lprobs.shape, self.num_groups
        share = beam // groups
        if step == 0:
            self.group_overlap = lprobs.new_zeros(sentences, groups, groups)
            self._ended = torch.zeros(sentences, groups, dtype=torch.long, device=lprobs.device)
        ending, others = [], []  # of each group: scores, symbols and hypotheses, B x share
        best: list[Tensor] = []  # of each group: symbols, B x share
        for group in range(groups):
            penalties = torch.zeros_like(lprobs[:, 0])  # B x V
            for earlier, symbols in enumerate(best):
                weight = 1 + self.group_overlap[:, group, earlier, None]
                penalties.scatter_add_(1, symbols, weight.expand(symbols.shape))
            penalised = lprobs[:, group::groups] + self.diversity_strength * penalties[:, None]
            before = scores[:, group::groups] if step else None
            values, symbols, rows = self.beam.step(step, penalised.contiguous(), before)  # B x 2 share
            rows = rows * groups + group
            ends = symbols.eq(self.eos)
            unended = ends.sort(dim=1, stable=True).indices[:, :share]
            others.append([x.gather(1, unended) for x in (values, symbols, rows)])
            values, symbols, rows, ends = (x[:, :share] for x in (values, symbols, rows, ends))
            ends = ends & values.ne(-math.inf)
            ends &= ends.cumsum(dim=1) <= share - self._ended[:, group, None]
            self._ended[:, group] += ends.sum(dim=1)
            ending.append([values.masked_fill(~ends, -math.inf), symbols, rows])
            best.append(symbols)
        symbols = torch.stack(best, dim=2)  # B x share x G
        equal = symbols[:, :, None].eq(symbols[:, :, :, None]).sum(dim=1)  # B x G x G
        self.group_overlap = self.diversity_discount * (self.group_overlap + equal)
        first, second = (
            [torch.stack(x, dim=2).flatten(1) for x in zip(*part, strict=True)] for part in (ending, others)
        )
        ends = first[0].ne(-math.inf)  # B x W
        place = torch.cat([torch.where(ends, 0, 2), torch.ones_like(ends, dtype=torch.long)], dim=1).sort(stable=True)
        return tuple(torch.cat(x, dim=1).gather(1, place.indices) for x in zip(first, second, strict=True))
