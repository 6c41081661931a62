"""Linear layers over frozen weights, on the CPU by oneDNN.

torch multiplies matrices in fp32 by the library that it was built with (MKL), which on many processors, and for a few
dozen or a few hundred rows on all, takes up to twice as long as oneDNN, which torch has as well and uses for bf16. In
training the weights are multiplied as they are. For a search, where each step reads all of them for a few rows, they
are packed first, in the order in which oneDNN reads them: a second copy of them, made at the first call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..methods.prefix import Evaluated


class _Product(torch.autograd.Function):
    """x @ weight.T + bias for an x of two dimensions, of which only x may need a gradient."""

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
    """`nn.Linear` over the same parameters, which have no gradients: faster in fp32 on the CPU, the same elsewhere."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        self.packing = False
        self._forget()

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_for(x):
            return F.linear(x, self.weight, self.bias)
        if torch.is_grad_enabled() or not self.packing:
            y = _Product.apply(x.reshape(-1, x.size(-1)), self.weight, self.bias)
            return y.view(*x.shape[:-1], self.out_features)
        state = (self.weight.data_ptr(), self.weight._version)
        if self._packed_for != state:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), x.numel() // x.size(-1))
            self._packed_for = state
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    def _is_for(self, x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        learning = trained and torch.is_grad_enabled()
        return plain and x.numel() > 0 and not learning and not torch.is_autocast_enabled("cpu")

    def train(self, mode: bool = True) -> FrozenLinear:
        if mode != self.training:  # fairseq's optimizers change weights in a way that leaves no trace
            self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        self._packed: Tensor | None = None
        self._packed_for: tuple | None = None

    def _apply(self, fn, recurse: bool = True) -> FrozenLinear:
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None, "_packed_for": None}


def available() -> bool:
    """Whether this build of torch has what it needs of oneDNN (operators that torch's own compiler uses)."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


def speed_up(model: nn.Module, packing: bool) -> None:
    """Replace the linear layers of a model: those that are frozen or, with `packing`, all, for a model that is only
    searched with from now on.
    """
    if not available():
        return
    once = {part for module in model.modules() if isinstance(module, Evaluated) for part in module.modules()}
    for module in set(model.modules()) - once:  # the MLP of a prefix is evaluated once, and then no more
        for name, child in module.named_children():
            if type(child) is nn.Linear and (packing or not child.weight.requires_grad):
                setattr(module, name, FrozenLinear(child))
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            module.packing = packing
