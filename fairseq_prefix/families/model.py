"""What the models of all families share, and the registration of a family's models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from ..attention.layers import PrefixAttention
from ..attention.linear import speed_up
from ..errors import UsageError
from ..files.base import fingerprint, load_into, read_base
from ..files.dictionary import append_symbols
from ..interfaces.family import FAMILIES, Family, Framing
from ..interfaces.method import METHODS, Method
from ..mixin import Mixin


class FamilyModel(Mixin):
    """A model whose weights come from `--base-model`.

    The model class of a family derives from it and from a model of fairseq's. `register_family` sets `family` and, on
    the class of each method, `method`.
    """

    family: Family
    method: Method
    base_fingerprint: str | None = None
    added_parameters: frozenset[str] | set[str] = frozenset()  # names of those that are not the base's

    @classmethod
    def add_args(cls, parser):
        """Add the options of the model and of its method (fairseq's hook)."""
        super().add_args(parser)
        cls.method.options.add_to(parser, cls.method.name, cls.family)

    @classmethod
    def build_model(cls, args, task):
        """Build the model for a task whose dictionaries get the family's symbols (fairseq's hook)."""
        cls.prepare_task(args, task)
        return super().build_model(args, task)

    @classmethod
    def prepare_task(cls, args, task) -> None:
        """Append the family's symbols to the task's dictionaries, where they lack them.

        Raises:
            UsageError: the task does not frame texts as the family requires.
        """
        if cls.family.recorded and not hasattr(task, "conventions"):
            raise UsageError(f"--arch {args.arch} requires --task {cls.family.default_task}")
        for dictionary in (task.source_dictionary, task.target_dictionary):
            append_symbols(dictionary, cls.family)

    @classmethod
    def recorded(cls, args) -> dict[str, object]:
        """Return the family's options that a tuned file records."""
        return {name: getattr(args, name) for name in cls.family.recorded if hasattr(args, name)}

    @classmethod
    def source_room(cls, args) -> int:
        """Return the longest source, in tokens, that `--max-source-tokens` may allow."""
        raise NotImplementedError

    def attentions(self) -> Iterator[tuple[str, int, nn.Module]]:
        """Yield (site, layer, attention) for every attention of the model."""
        raise NotImplementedError

    def blocks(self) -> dict[str, nn.ModuleList]:
        """Return site -> the layers of that stack, bottom first."""
        raise NotImplementedError

    def word_room(self) -> int:
        """Return how many words the base can read at once, to initialise a prefix from them."""
        raise NotImplementedError

    def read_words(self, text: list[int]) -> dict[str, Tensor]:
        """Return the keys and values of words that the base reads, site -> L x 2 x H x T x d."""
        raise NotImplementedError

    def build_prompt(self, geometry: Mapping, reparam: str, mid_dim: int):
        """Return a new prompt, attached to where the model reads it."""
        raise NotImplementedError

    def width(self, site: str) -> int:
        """Return the width of a stack."""
        return getattr(self, site).embed_tokens.embedding_dim

    @property
    def framing(self) -> Framing:
        """The symbols around source and target that this model's options ask for."""
        return self.family.framing(self.recorded(self.args))

    @classmethod
    def conventions_of(cls, args, task) -> dict:
        """Return the input conventions that trained parameters depend on; loading verifies them."""
        if not hasattr(task, "conventions"):
            return {"bos": False}
        recorded = cls.recorded(args)
        return {**task.conventions(), "bos": "<s>" in cls.family.framing(recorded).before_source, **recorded}

    def set_beam_size(self, beam):
        """Do nothing: fairseq leaves the beam size on the attention, where it corrupts later teacher-forced passes."""

    def prepare_for_inference_(self, cfg):
        """Prepare for a search (fairseq's hook).

        Raises:
            UsageError: `--print-alignment` is given, but the model records no attention weights.
        """
        recorded = not any(isinstance(attention, PrefixAttention) for _, _, attention in self.attentions())
        if getattr(cfg.generation, "print_alignment", None) and not recorded:
            raise UsageError(
                f"--print-alignment is not available for --arch {self.args.arch}: it records no attention weights"
            )
        super().prepare_for_inference_(cfg)
        speed_up(self, packing=True)

    def load_base(self, args, task) -> None:
        """Fill the model from `args.base_model`, or from `task.base` if that was read already."""
        base = getattr(task, "base", None)
        if base is None:
            if not Path(args.base_model).exists():
                raise UsageError(
                    f"--base-model {args.base_model}: no such file or folder (when generating, override its path with "
                    f"--model-overrides \"{{'base_model': 'PATH'}}\")"
                )
            base = read_base(args.base_model, self.family)
        load_into(self, base, task.source_dictionary, getattr(args, "arch", "?"))
        self.base_fingerprint = fingerprint(self, task.source_dictionary)

    @property
    def base_parameters(self) -> int:
        """Number of the base's parameters; tied ones count once."""
        added = self.added_parameters
        return sum(p.numel() for name, p in self.named_parameters() if name not in added)


def register_family(family: Family, model: type[FamilyModel], sizes: Mapping[str, Callable]) -> None:
    """Register a family: for every method the model `{method}_{key}`, and its architectures `{method}_{key}_{size}`.

    Args:
        model: the model class that all methods share.
        sizes: size -> fairseq's architecture function, which completes the options.
    """
    FAMILIES.append(family)
    model.family = family
    for method in METHODS.values():
        name = f"{method.name}_{family.key}"
        members = {"method": method, "__doc__": method.model.__doc__, "__module__": model.__module__}
        built = type(f"{method.model.__name__}{model.__name__}", (method.model, model), members)
        setattr(sys.modules[model.__module__], built.__name__, built)  # so that copies and pickles find the class
        register_model(name)(built)
        for size, architecture in sizes.items():
            register_model_architecture(name, f"{name}_{size}")(_architecture(method, family, architecture))


def _architecture(method: Method, family: Family, size: Callable) -> Callable:
    """Return the function that completes a method's options and those of a size."""

    def complete(args):
        set_defaults(args, **method.options.defaults(method.name, family))
        size(args)

    return complete


def set_defaults(args, **values) -> None:
    """Set each option that was not given."""
    for name, value in values.items():
        setattr(args, name, getattr(args, name, value))
