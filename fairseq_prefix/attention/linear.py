"""Faster linear layers over frozen weights, on the CPU.

torch multiplies fp32 matrices with MKL. For tens to hundreds of rows (on many processors, for any number) MKL takes up
to twice as long as oneDNN, the library that torch uses for bf16. `FrozenLinear` calls oneDNN. In training it
multiplies the weights as they are. In a search, where each step reads all weights for a few rows, it packs them at the
first call, in the order in which oneDNN reads them: this costs a second copy of the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Product(torch.autograd.Function):
    """x @ weight.T + bias, x being a matrix; only x may need a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return torch.ops.mkldnn._linear_pointwise(gradient, weight.mT, None, "none", [], ""), None, None


class FrozenLinear(nn.Linear):
    """A linear layer computed by oneDNN in fp32 on the CPU where its parameters need no gradient, by torch elsewhere.

    It shares the parameters of `linear`. The attribute `packing`, which `speed_up` sets, says whether to multiply
    packed weights where no gradient is needed.
    """

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        self.packing = False
        self._forget()

    _packed: Tensor | None
    _packed_for: tuple | None

    def forward(self, x: Tensor) -> Tensor:
        if not self._accelerates(x):
            return F.linear(x, self.weight, self.bias)
        if torch.is_grad_enabled() or not self.packing:
            y = _Product.apply(x.reshape(-1, x.size(-1)), self.weight, self.bias)
            return y.view(*x.shape[:-1], self.out_features)
        state = (self.weight.data_ptr(), self.weight._version)
        if self._packed_for != state:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), x.numel() // x.size(-1))
            self._packed_for = state
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    def _accelerates(self, x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        learning = trained and torch.is_grad_enabled()
        return plain and x.numel() > 0 and not learning and not torch.is_autocast_enabled("cpu")

    def train(self, mode: bool = True) -> FrozenLinear:
        if mode != self.training:  # fairseq's optimizers write through `.data`, which no version counter sees
            self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        self._packed = None
        self._packed_for = None

    def _apply(self, fn, recurse: bool = True) -> FrozenLinear:
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None, "_packed_for": None}


def available() -> bool:
    """Return whether this build of torch has the oneDNN operators of `FrozenLinear` (those of torch's own compiler)."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


def speed_up(model: nn.Module, packing: bool) -> None:
    """Replace the frozen linear layers of a model by `FrozenLinear`.

    Args:
        packing: whether the model only searches from now on: pack the weights, and replace all linear layers.
    """
    if not available():
        return
    once = {part for module in model.modules() if getattr(module, "evaluated_once", False) for part in module.modules()}
    for module in set(model.modules()) - once:  # packing a prefix's MLP would cost more than its one evaluation
        for name, child in module.named_children():
            if type(child) is nn.Linear and (packing or not child.weight.requires_grad):
                setattr(module, name, FrozenLinear(child))
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            module.packing = packing
