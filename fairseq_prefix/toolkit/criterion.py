"""`prefix_cross_entropy`: token cross-entropy that verifies which parameters are trained.

The model freezes its base when it is built. This criterion refuses to compute a loss unless exactly the parameters that
the model declares are trainable. It does not freeze them itself: fairseq builds the optimizer before the first forward
pass (and with fp16 its flat buffer would write gradients of the prefix into the base).
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from torch.nn import Parameter

from ..errors import UsageError

logger = logging.getLogger(__name__)


@dataclass
class PrefixCrossEntropyConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """The options of fairseq's label-smoothed cross-entropy; the default is no smoothing, as in the paper."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "epsilon for label smoothing (fairseq's: spread over V-1 labels)"}
    )


@register_criterion("prefix_cross_entropy", dataclass=PrefixCrossEntropyConfig)
class PrefixCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """Summed negative log-likelihood of the target's tokens, of which fairseq takes the mean.

    The tokens include `</s>` and forced symbols such as BART's `<s>`.
    """

    _logged = False

    def __init__(self, task, sentence_avg, label_smoothing, ignore_prefix_size=0, report_accuracy=False):
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"--label-smoothing is {label_smoothing}; expected 0 or more, and less than 1")
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)

    def forward(self, model, sample, reduce=True):
        """Return fairseq's loss after verifying which parameters are trained; the first call logs their number."""
        trained = verify_trainable(model)
        if not self._logged:
            self._logged = True
            folded, base, total = model.folded_parameters, model.base_parameters, _count(model.parameters())
            logger.info(
                f"trained parameters: {trained:,} | folded (stored per task): {folded:,} = "
                f"{100 * folded / base:.2f} % of the base | base: {base:,} | total: {total:,}"
            )
        return super().forward(model, sample, reduce)

    def compute_loss(self, model, net_output, sample, reduce=True):
        """Return fairseq's losses, smoothing over the symbols that the base has.

        Without smoothing, read the scores of the whole vocabulary fewer times than fairseq does.
        """
        absent: Any = getattr(model.decoder, "absent_symbols", None)
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
    """Check that exactly `model.declared_parameters` require gradients; return how many numbers they hold.

    Raises:
        UsageError: a parameter is trainable that must be frozen, or the reverse, or there is nothing to train.
    """
    if not hasattr(model, "declared_parameters"):
        raise UsageError(
            "--criterion prefix_cross_entropy needs a model that declares what it trains, "
            "such as --arch prefix_bart_large"
        )
    declared = model.declared_parameters
    if not declared and model.training:
        raise UsageError("the model has nothing to train: it is the base alone, with a length, dimension or count of 0")
    wrapper = re.compile(r"^(module\.)+")  # of distributed training
    trainable = {wrapper.sub("", name): p for name, p in model.named_parameters() if p.requires_grad}
    if unfrozen := trainable.keys() - declared:
        raise UsageError(
            f"{min(unfrozen)} would be trained although the method declares it frozen; nothing was updated"
        )
    if frozen := declared - trainable.keys():
        raise UsageError(f"{min(frozen)} is frozen although the method declares it trained; nothing was updated")
    return _count(trainable.values())


def _count(parameters: Iterable[Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
