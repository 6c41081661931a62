"""One file for a method, one for a family: both are made here, outside the package, with nothing else changed."""

import dataclasses

import methods
import pytest
import tiny
import torch
from fairseq import options

from fairseq_prefix.__main__ import main
from fairseq_prefix.errors import UsageError
from fairseq_prefix.families import bart
from fairseq_prefix.families.model import register_family
from fairseq_prefix.files.checkpoint import configuration, describe, read_tuned, write_checkpoint
from fairseq_prefix.interfaces.family import FAMILIES
from fairseq_prefix.interfaces.method import METHODS, FrozenOptions, Method, option, register_method
from fairseq_prefix.methods.tuned import OwnTensors
from fairseq_prefix.toolkit.criterion import verify_trainable


@dataclasses.dataclass
class BiasOptions(FrozenOptions):
    """Options of bias tuning."""

    bias_sides: int = option(2, "decoder alone (1) or encoder as well (2)", "N")


class BiasTuned(OwnTensors):
    """A frozen base whose biases are trained (Ben Zaken et al. 2022)."""

    def add(self, options, args, task):
        self.sides = ("decoder.", "encoder.")[: options.bias_sides]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self.declared_parameters)

    @property
    def declared_parameters(self):
        return {name for name, _ in self.named_parameters() if name.endswith(".bias") and name.startswith(self.sides)}

    @property
    def added_parameters(self):
        return set()

    @property
    def geometry(self):
        return {"decoder": {"sides": len(self.sides)}} if self.sides else {}


class BiasMethod(Method):
    """Files of biases."""

    name = "bias"
    noun = "set of biases"
    options = BiasOptions
    model = BiasTuned
    untouched = {"bias_sides": 0}

    def describe_site(self, shape):
        return f"biases of {shape['sides']} sides"

    def model_args(self, metadata):
        return {"bias_sides": metadata["geometry"].get("decoder", {"sides": 0})["sides"]}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """A method, and then a family for which all methods exist. Afterwards only fairseq's registries know them."""
    families, known = list(FAMILIES), dict(METHODS)
    register_method(BiasMethod())
    model = type("OtherBART", (bart.BART,), {"__module__": __name__})
    register_family(dataclasses.replace(bart.FAMILY, key="other"), model, {"tiny": bart.tiny_architecture})
    yield
    FAMILIES[:] = families
    METHODS.clear()
    METHODS.update(known)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return methods.make_base(tmp_path_factory.mktemp("base"), "bart")


@pytest.mark.parametrize("method", ["full", "prefix", "prompt", "adapter", "top"])
def test_a_family_gets_a_model_for_every_method(base, method):
    """The same model as the family that it copies."""
    options = {"base_model": base, **methods.SMALL.get(method, {})}
    found = []
    for family in ("bart", "other"):
        torch.manual_seed(1)
        model = tiny.build(f"{method}_{family}_tiny", **options).eval()
        with torch.no_grad():
            found.append(model(*tiny.batch())[0])
    assert torch.equal(*found)


def test_a_method_trains_exports_and_comes_back(base, tmp_path):
    args = tiny.make_args("bias_other_tiny", base_model=base)
    model = tiny.make_task().build_model(args)
    trained = verify_trainable(model)
    assert 0 < trained < model.base_parameters / 50
    methods.strengthen(model)
    path, exported, imported = (str(tmp_path / name) for name in ("c.pt", "b.safetensors", "i.pt"))
    write_checkpoint(path, configuration(vars(args), {"max_source_tokens": 50}, base), model.state_dict())
    main(["export", path, exported])
    main(["import", exported, imported, "--base-model", base])
    assert describe(imported)["kind"] == "bias checkpoint" and describe(imported)["trained_parameters"] == trained
    sides = read_tuned(imported).model_args["bias_sides"]
    other = tiny.make_task().build_model(tiny.make_args("bias_other_tiny", base_model=base, bias_sides=sides))
    other.load_state_dict(torch.load(imported, weights_only=True)["model"])
    with torch.no_grad():
        assert torch.equal(other.eval()(*tiny.batch())[0], model(*tiny.batch())[0])
    fewer = tiny.make_task().build_model(tiny.make_args("bias_other_tiny", base_model=base, bias_sides=1))
    with pytest.raises(UsageError, match="has the geometry decoder biases of 2 sides, the model decoder biases of 1"):
        fewer.load_state_dict(model.state_dict())


def test_the_command_line_has_the_method_s_options():
    line = ["data", "--task", "conditional_generation", "--arch", "bias_other_tiny"]
    args = options.parse_args_and_arch(options.get_training_parser(), [*line, "--bias-sides", "1"])
    assert (args.bias_sides, args.base_dropout) == (1, "on")
    assert options.parse_args_and_arch(options.get_training_parser(), line).bias_sides == 2
