"""Linear layers for a search on the CPU: weights in the order in which oneDNN reads them.

The matrix product of a few dozen hypotheses with the vocabulary takes most of a step, and torch's own takes more than
twice as long for it as oneDNN over packed weights; for other shapes a tenth to a third longer. They are a second copy
of the weights, made at the first call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """`nn.Linear` over the same parameters; without gradients, on the CPU and in fp32 it multiplies packed weights."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        self._forget()

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_for(x):
            return F.linear(x, self.weight, self.bias)
        state = (self.weight.data_ptr(), self.weight._version)
        if self._packed_for != state:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), x.numel() // x.size(-1))
            self._packed_for = state
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    def _is_for(self, x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        return plain and x.numel() > 0 and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")

    def _forget(self) -> None:
        self._packed: Tensor | None = None
        self._packed_for: tuple | None = None

    def _apply(self, fn, recurse: bool = True) -> PackedLinear:
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None, "_packed_for": None}


def available() -> bool:
    """Whether this build of torch has what packing needs (operators that its own compiler uses)."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


def pack(model: nn.Module) -> None:
    """Replace every linear layer of a model that is only searched with from now on."""
    if not available():
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
