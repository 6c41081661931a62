"""`prefix_cross_entropy`: token cross-entropy that verifies what is being trained.

The model freezes its base when it is built; this criterion refuses to compute a loss unless exactly the parameters
that the model declares are trainable. fairseq builds the optimizer before the first forward pass, so freezing here
would be too late (with fp16 the flat buffer would write gradients of the prefix into the base).
"""

import logging
import re
from dataclasses import dataclass, field

import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)

from ..errors import UsageError

logger = logging.getLogger(__name__)


@dataclass
class PrefixCrossEntropyConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """As fairseq's label-smoothed cross-entropy, without smoothing unless asked for (paper: none)."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "epsilon for label smoothing (fairseq's: spread over V-1 labels)"}
    )


@register_criterion("prefix_cross_entropy", dataclass=PrefixCrossEntropyConfig)
class PrefixCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """Mean negative log-likelihood of the target tokens, `<s>` (for BART) and `</s>` among them, in base 2 as fairseq
    logs it.
    """

    _logged = False

    def __init__(self, task, sentence_avg, label_smoothing, ignore_prefix_size=0, report_accuracy=False):
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"--label-smoothing is {label_smoothing}; expected 0 or more, and less than 1")
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)

    def forward(self, model, sample, reduce=True):
        """As fairseq's; every call verifies, and the first one logs, what is trained."""
        trained = verify_trainable(model)
        if not self._logged:
            self._logged = True
            logger.info(
                "trained parameters: %s | folded (stored per task): %s = %.2f %% of the base | base: %s | total: %s",
                *(f"{trained:,}", f"{model.folded_parameters:,}"),
                *(100 * model.folded_parameters / model.base_parameters, f"{model.base_parameters:,}"),
                f"{sum(p.numel() for p in model.parameters()):,}",
            )
        return super().forward(model, sample, reduce)

    def compute_loss(self, model, net_output, sample, reduce=True):
        """As fairseq's, with the smoothing spread over the symbols that the base has; without smoothing the scores of
        the whole vocabulary are gone through fewer times.
        """
        absent = getattr(model.decoder, "absent_symbols", None)
        if self.eps and absent is None:
            return super().compute_loss(model, net_output, sample, reduce)
        lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
        if not self.eps:
            reduction = "sum" if reduce else "none"
            nll_loss = F.nll_loss(lprobs, target, ignore_index=self.padding_idx, reduction=reduction)
            return nll_loss, nll_loss
        absent, counted = absent.bool(), target.ne(self.padding_idx)
        nll_loss = -lprobs.gather(1, target[:, None])[:, 0] * counted
        smooth_loss = -lprobs.masked_fill(absent, 0.0).sum(dim=1) * counted
        if reduce:
            nll_loss, smooth_loss = nll_loss.sum(), smooth_loss.sum()
        share = self.eps / ((~absent).sum() - 1)
        return (1 - self.eps - share) * nll_loss + share * smooth_loss, nll_loss


def verify_trainable(model) -> int:
    """Check that exactly `model.declared_parameters` require gradients; returns how many numbers these are.

    Raises:
        UsageError: naming a parameter that should be frozen, or should not; or there is nothing to train.
    """
    if not hasattr(model, "declared_parameters"):
        raise UsageError(
            "--criterion prefix_cross_entropy needs a model that declares what it trains, "
            "such as --arch prefix_bart_large"
        )
    declared = model.declared_parameters
    if not declared and model.training:
        raise UsageError("the model has nothing to train: it is the base alone, with a length, dimension or count of 0")
    named = (
        (re.sub(r"^(module\.)+", "", name), p) for name, p in model.named_parameters()
    )  # as distributed training wraps
    trainable = {name: parameter.numel() for name, parameter in named if parameter.requires_grad}
    for name in sorted(trainable.keys() - declared):
        raise UsageError(f"{name} would be trained although the method declares it frozen; nothing was updated")
    for name in sorted(declared - trainable.keys()):
        raise UsageError(f"{name} is frozen although the method declares it trained; nothing was updated")
    return sum(trainable.values())
