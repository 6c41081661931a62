"""Full fine-tuning of a base, or pretraining from scratch where no base is given: every parameter is trained."""

from __future__ import annotations

from torch import nn

from ..errors import UsageError
from ..files import metadata
from ..interfaces.method import Method, Options, register_method
from ..mixin import Mixin
from .tuned import refuse_unsupported


class Whole(Mixin):
    """A model that is trained whole; its checkpoint is whole too and does not need the base."""

    @classmethod
    def build_model(cls, args, task):
        """Build the model from a base or from scratch (fairseq's hook).

        A base that was loaded is recorded in `args.finetuned_from`, and the checkpoint forgets its path.
        """
        refuse_unsupported(args)
        model = super().build_model(args, task)
        if args.base_model:
            model.load_base(args, task)
            args.finetuned_from, args.base_fingerprint, args.base_model = args.base_model, model.base_fingerprint, None
        else:
            _initialise_from_scratch(model)
        model.base_fingerprint = getattr(args, "base_fingerprint", None)
        return model

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load a checkpoint as fairseq does.

        Raises:
            UsageError: the checkpoint does not hold a whole model of this architecture.
        """
        if metadata.METADATA_KEY in state_dict:
            noun = metadata.method_of(metadata.unpack(state_dict)).noun
            raise UsageError(f"the checkpoint holds a {noun}, but --arch {self.args.arch} expects a whole model")
        try:
            return super().load_state_dict(state_dict, strict, model_cfg, args)
        except KeyError as error:
            detail = f"it lacks {error}"
        except RuntimeError as error:
            detail = str(error).split("\n")[:2][-1].strip()  # the first line names only the class
        raise UsageError(f"the checkpoint does not fit --arch {self.args.arch}: {detail[:400]}")

    @property
    def declared_parameters(self) -> set[str]:
        """Names of the parameters that this method trains: all."""
        return {name for name, _ in self.named_parameters()}

    @property
    def folded_parameters(self) -> int:
        """Numbers that a deployed task stores: all."""
        return self.base_parameters


def _initialise_from_scratch(model) -> None:
    """Draw every linear layer from Xavier's distribution: a small model does not learn to copy from N(0, 0.02)."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.decoder.output_projection:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class FullMethod(Method):
    """Full fine-tuning, whose files are whole models."""

    name = "full"
    noun = "whole model"
    options = Options
    model = Whole
    untouched = {}
    stored = False


register_method(FullMethod())
