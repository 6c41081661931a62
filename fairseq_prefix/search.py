"""What is replaced of fairseq's beam search."""

from __future__ import annotations

from torch import Tensor, nn


class NGramBlock(nn.Module):
    """`--no-repeat-ngram-size`: no n-gram stands twice in a hypothesis.

    fairseq's own works with its CUDA extension only, which few installations have: without it, it compares the padding
    behind the hypothesis, and blocks nothing (facebookresearch/fairseq, issue 5206).
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, tokens: Tensor, scores: Tensor, sentences: int, beam: int, step: int) -> Tensor:
        """Scores of the next token with -inf where it would end an n-gram that was there before.

        Args:
            tokens: N x L, of which `</s>`, which starts every hypothesis, and `step` tokens are written.
            scores: N x V.
        """
        written = tokens[:, 1 : step + 1]  # N x T
        if step < self.size:
            return scores
        ngrams = written.unfold(1, self.size, 1)  # N x (T-n+1) x n
        last = written[:, step - self.size + 1 :]  # N x n-1
        seen = (ngrams[..., :-1] == last[:, None]).all(dim=-1)  # N x (T-n+1)
        ends = ngrams[..., -1]
        # The least of several, where one token ended n-grams that began in different ways.
        return scores.scatter_reduce(1, ends, scores.gather(1, ends).masked_fill(seen, float("-inf")), "amin")
