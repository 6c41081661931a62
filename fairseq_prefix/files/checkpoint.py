"""Files: bases (fairseq archives, Hugging Face folders), checkpoints of what is trained over one, and exports of that.

A checkpoint holds a prefix, a prompt, adapters or top layers, and says what they were trained for: fingerprints of base
and dictionary, geometry and conventions. How files are read so that nothing in them is run is in loading.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UsageError, first_line
from ..methods.adapter import adapter_size
from ..methods.prefix import SITES, Evaluated, Prefix, SiteGeometry
from ..methods.prompt import empty_prompt
from .loading import EXPORT_KEY, atomically, check_contents, load_tensors, refusing

FORMAT = 1
METADATA_KEY = "prefix.metadata"  # of a checkpoint, whatever the method
ABSENT_SYMBOLS = "decoder.absent_symbols"  # which symbols of the dictionary a GPT-2 does not know, as a mask
MOST_LAYERS = 500  # of a base; the largest GPT-2 has 48
BOOKKEEPING = (".version", "._float_tensor")  # ends of names that are fairseq's own and no weights


# The base ------------------------------------------------------------------------------------------------------------


class Base(NamedTuple):
    """A base's weights under fairseq's names, its dictionary's symbols if they came with it, and recorded settings."""

    path: Path
    state: dict[str, Tensor]
    symbols: list[str] | None
    settings: dict  # of those that no shape shows: fairseq's names of options -> value
    rows: dict[str, int] | None = None  # symbol -> its embedding, where these are not in the dictionary's order


class Family(NamedTuple):
    """A kind of base: the names of its tensors in fairseq, and how a Hugging Face folder of it is read."""

    name: str
    parts: tuple[str, ...]  # the sub-modules that make up the base
    embedding: str  # the tensor that has one row per symbol
    tied: tuple[str, ...]  # other names of that tensor
    settings: tuple[str, ...]  # options that change what a model computes but not the shapes of its weights
    expected: dict  # of a Hugging Face config.json; a key that is not there has the value expected
    convert: Callable[[Path, dict, dict[str, Tensor]], Base]  # (folder, config.json, weights) -> base


def read_base(path: str, family: Family | None = None) -> Base:
    """Read a base: a folder with model.pt and dict.txt, a .pt file, or a Hugging Face folder.

    Raises:
        UsageError: nothing there, or not of this family, or where none is given of none that is known here.
    """
    base = Path(path)
    if base.is_dir():
        if (base / "config.json").exists():
            config, raw = _read_hugging_face(base)
            family = family or _family_of_config(base, config)
            _check_config(base, config, family.expected)
            with _of_family(base, family):
                return family.convert(base, config, raw)
        if not (base / "model.pt").exists():
            raise UsageError(f"{path}: the folder holds neither model.pt nor config.json")
        base = base / "model.pt"
    elif not base.exists():
        raise UsageError(f"{path}: no such file or folder; expected a base")
    state = load_tensors(base)
    if isinstance(state.get("model"), dict) and METADATA_KEY in state["model"]:
        noun = method_of(unpack_metadata(state["model"])).noun
        raise UsageError(f"{base} holds a {noun} alone; pass the base that it was trained over")
    found = family_of(state.get("model"))
    if found is None and family is None:
        raise UsageError(f"{base} is neither a BART nor a GPT-2 of fairseq's")
    if family is not None and found is not family:
        raise UsageError(f"{base} is not a fairseq {family.name} checkpoint (it has no {family.embedding})")
    _check_weights(base, state["model"])
    return Base(base, dict(state["model"]), _symbols(base.parent), _whole_args(state))


@contextlib.contextmanager
def _of_family(path: Path, family: Family) -> Iterator[None]:
    """Weights of any shapes and kinds are brought into this family's form, or refused in one sentence."""
    try:
        yield
    except UsageError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: the weights are not a {family.name}'s ({first_line(error)})") from None


def _read_hugging_face(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """config.json and the weights."""
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise UsageError(f"{folder}/config.json is not a model's configuration ({error})") from None
    if (folder / "model.safetensors").exists():
        try:
            return config, load_file(folder / "model.safetensors")
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{folder}/model.safetensors cannot be loaded: {error}") from None
    if (folder / "pytorch_model.bin").exists():
        weights = load_tensors(folder / "pytorch_model.bin")
        _check_weights(folder / "pytorch_model.bin", weights)
        return config, weights
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).exists():
            raise UsageError(
                f"{folder}/{index}: the weights lie in several files; save them in one, by "
                'save_pretrained(FOLDER, max_shard_size="100GB") of transformers'
            )
    raise UsageError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")


def _check_config(folder: Path, config: dict, expected: dict) -> None:
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise UsageError(f"{folder}/config.json: {key} is {config[key]!r}, but only {value!r} is supported")


def _family_of_config(folder: Path, config: dict) -> Family:
    for family in (BART, GPT2):
        if config.get("model_type") == family.expected["model_type"]:
            return family
    raise UsageError(f"{folder}/config.json: model_type is {config.get('model_type')!r}; it has to be bart or gpt2")


def sizes(base: Base) -> dict[str, int]:
    """Of the options of an architecture those that the shapes of a base's weights show.

    Raises:
        UsageError: the weights are not complete.
    """
    family, found, least = family_of(base.state), {}, 0
    try:
        width = base.state[family.embedding].size(1)
        for part, side in zip(family.parts, ("source", "target")[-len(family.parts) :], strict=True):
            layers = len({name.split(".")[2] for name in base.state if name.startswith(f"{part}.layers.")})
            inner = base.state[f"{part}.layers.0.fc1.weight"].size(0)
            positions = base.state[f"{part}.embed_positions.weight"].size(0) - 2
            found |= {f"{part}_layers": layers, f"{part}_embed_dim": width}
            found |= {f"{part}_ffn_embed_dim": inner, f"max_{side}_positions": positions}
            least += layers * (4 * width**2 + 2 * width * inner) + positions * width
    except KeyError as error:
        raise UsageError(f"{base.path} lacks {error}; this is no whole {family.name}") from None
    except IndexError:
        raise UsageError(f"{base.path}: its weights do not have the shapes of a {family.name}") from None
    # A model takes memory for what its base claims: layers that are a name alone take none in a file.
    deepest = max(found[f"{part}_layers"] for part in family.parts)
    if min(found.values()) < 1 or deepest > MOST_LAYERS or least > _stored(base.state):
        raise UsageError(f"{base.path} does not hold what its names and shapes claim; this is no whole {family.name}")
    return found


def _stored(state: dict[str, Tensor]) -> int:
    """How many numbers the tensors hold, of which several may be parts of one storage."""
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in state.values()}
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in storages.values())


def _convert_bart(folder: Path, config: dict, raw: dict[str, Tensor]) -> Base:
    raw = {name.removeprefix("model."): tensor for name, tensor in raw.items()}
    if raw.pop("final_logits_bias", torch.zeros(1)).any():
        raise UsageError(f"{folder}: final_logits_bias is not zero; fairseq's BART has no place for it")
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    tied = [raw[name] for name in names if name in raw]  # safetensors keeps one of the names of tied weights
    if not tied:
        raise UsageError(f"{folder}: the weights hold no embedding; this is not a BART")
    _require_tied(folder, tied)
    symbols = _symbols(folder)
    _check_mask(folder, symbols)
    state = {name: tensor for name, tensor in raw.items() if name.startswith(("encoder.", "decoder."))}
    state[BART.embedding] = tied[0]
    heads = {f"{part}_attention_heads": config.get(f"{part}_attention_heads") for part in ("encoder", "decoder")}
    return Base(folder, state, symbols, heads)


def _require_tied(path: Path, embeddings: list[Tensor]) -> None:
    """Raise a `UsageError` unless all are equal: one is used for all."""
    if not all(torch.equal(tensor, embeddings[0]) for tensor in embeddings[1:]):
        raise UsageError(f"{path}: the embeddings of its parts differ; only tied embeddings are supported")


def _check_mask(folder: Path, symbols: list[str] | None) -> None:
    """Compare the row of `<mask>` in a Hugging Face BART's vocab.json, if there is one, with that in dict.txt.

    Raises:
        UsageError: they differ, so that the other rows do too.
    """
    path = folder / "vocab.json"
    if symbols is None or not path.exists():
        return
    try:
        rows = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise UsageError(f"{path} is not a vocabulary ({error})") from None
    ours = symbols.index("<mask>") if "<mask>" in symbols else len(symbols)
    if (theirs := rows.get("<mask>", ours)) != ours:
        raise UsageError(
            f"{path}: <mask> is row {theirs}, but by dict.txt row {ours}; write dict.txt in the same order"
        )


GPT2_LAYER = {
    "ln_1": "self_attn_layer_norm",
    "attn.c_proj": "self_attn.out_proj",
    "ln_2": "final_layer_norm",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
}


def _convert_gpt2(folder: Path, config: dict, raw: dict[str, Tensor]) -> Base:
    """Linear layers are stored transposed ("Conv1D"), with q, k and v in one; positions start at fairseq's row 2.

    The vocabulary's ids are the words of fairseq's dict.txt, in another order. `<|endoftext|>`, which separates texts
    and ends them, is `</s>`; where `<s>` or its number stands in a text, that is read as the same.
    """
    raw = {name.removeprefix("transformer."): tensor for name, tensor in raw.items()}
    if "wte.weight" not in raw or "wpe.weight" not in raw:
        raise UsageError(f"{folder}: the weights hold no wte and wpe; this is not a GPT-2")
    embedding, positions = raw["wte.weight"], raw["wpe.weight"]
    _require_tied(folder, [embedding, raw.get("lm_head.weight", embedding)])
    end = config.get("eos_token_id", 50256)
    if not isinstance(end, int) or not 0 <= end < len(embedding):
        raise UsageError(f"{folder}/config.json: eos_token_id is {end!r}, but there are {len(embedding)} embeddings")
    state = {
        GPT2.embedding: embedding,
        "decoder.embed_positions.weight": torch.cat([positions.new_zeros(2, positions.size(1)), positions]),
        "decoder.version": torch.tensor([3.0]),  # from there on fairseq has a last layer norm
    }
    state |= {f"decoder.layer_norm.{name[5:]}": tensor for name, tensor in raw.items() if name.startswith("ln_f.")}
    for name, tensor in raw.items():
        _, _, rest = name.partition(".")
        layer, _, rest = rest.partition(".")
        stem, _, kind = rest.rpartition(".")
        if not name.startswith("h.") or kind not in ("weight", "bias") or stem == "attn":  # attn.bias: a causal mask
            continue
        ours, tensor = f"decoder.layers.{layer}", tensor.T if tensor.dim() == 2 else tensor
        if stem == "attn.c_attn":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{ours}.self_attn.{letter}_proj.{kind}"] = part
        else:
            state[f"{ours}.{GPT2_LAYER.get(stem, stem)}.{kind}"] = tensor
    rows = {str(number): number for number in range(len(embedding))} | {"</s>": end, "<s>": end}
    return Base(folder, state, _symbols(folder), {"decoder_attention_heads": config.get("n_head")}, rows)


BART = Family(
    name="BART",
    parts=("encoder", "decoder"),
    embedding="encoder.embed_tokens.weight",
    tied=("decoder.embed_tokens.weight", "decoder.output_projection.weight", "encoder.output_projection.weight"),
    settings=(
        *("encoder_attention_heads", "decoder_attention_heads", "encoder_normalize_before"),
        *("decoder_normalize_before", "activation_fn", "no_scale_embedding"),
    ),
    expected={
        "model_type": "bart",
        "activation_function": "gelu",
        "scale_embedding": False,
        "normalize_before": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
    convert=_convert_bart,
)
GPT2 = Family(
    name="GPT-2",
    parts=("decoder",),
    embedding="decoder.embed_tokens.weight",
    tied=("decoder.output_projection.weight",),
    settings=("decoder_attention_heads", "decoder_normalize_before", "activation_fn", "no_scale_embedding"),
    expected={
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    convert=_convert_gpt2,
)


def family_of(state: object) -> Family | None:
    """Of which family a whole model's state is."""
    if not isinstance(state, dict):
        return None
    return next((family for family in (BART, GPT2) if family.embedding in state), None)


def read_dictionary(path: Path) -> Dictionary:
    """A dict.txt.

    Raises:
        UsageError: missing or malformed.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file; the base's dictionary has to lie beside it")
    try:
        dictionary = Dictionary.load(str(path))
    except Exception as error:  # fairseq raises that very class for what is not UTF-8
        raise UsageError(f"{path} is not a fairseq dictionary ({first_line(error)})") from None
    dictionary.path = path
    return dictionary


def _blamed(dictionary: Dictionary) -> tuple[str, str]:
    """What a sentence calls a dictionary that is not the base's, and what to do."""
    if path := getattr(dictionary, "path", None):
        return str(path), "expected the complete dict.txt of the base"
    return "the dictionary of the data", "binarise the data with the base's dict.txt"


def _symbols(folder: Path) -> list[str] | None:
    """Symbols of the dict.txt beside a base. (Ids of a Hugging Face BART are fairseq's; its vocab.json does not say
    so.)
    """
    path = folder / "dict.txt"
    return read_dictionary(path).symbols if path.exists() else None


def load_into(model: nn.Module, base: Base, dictionary: Dictionary, arch: str) -> None:
    """Load a base's weights into the parts of `model` that make up its family's base.

    Raises:
        UsageError: the dictionary or the architecture is not the base's.
    """
    family = model.family
    _check_dictionary(base, dictionary)
    _check_settings(base, model, arch)
    parts = tuple(f"{part}." for part in family.parts)
    state = {name: t for name, t in base.state.items() if name.startswith(parts) and name not in family.tied}
    wanted = {
        name: tensor
        for part in family.parts
        for name, tensor in getattr(model, part).state_dict(prefix=f"{part}.").items()
    }
    with _of_family(base.path, family):
        _place_rows(state, base, family, dictionary)
        state |= dict.fromkeys((name for name in family.tied if name in wanted), state[family.embedding])
        model.upgrade_state_dict_named(state, "")
    _require_tied(base.path, [base.state[name] for name in (family.embedding, *family.tied) if name in base.state])
    state = {name: tensor for name, tensor in state.items() if not name.endswith(BOOKKEEPING)}
    missing = [name for name in wanted if name not in state and not name.endswith(BOOKKEEPING)]
    surplus = [name for name in state if name not in wanted]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"holds {surplus[0]}, which --arch {arch} has no place for"
        raise UsageError(f"{base.path} {what}; choose the architecture of this base")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise UsageError(
                f"{base.path}: {name} is {_shape(tensor)}, but --arch {arch} expects {_shape(wanted[name])}; "
                "choose the architecture of this base"
            )
    for part in family.parts:
        own = {name.removeprefix(f"{part}."): t.float() for name, t in state.items() if name.startswith(f"{part}.")}
        getattr(model, part).load_state_dict(own, strict=False)  # completeness was checked above


def _check_settings(base: Base, model: nn.Module, arch: str) -> None:
    """Heads and the like, which change what a model computes but not the shapes of its weights."""
    for option in model.family.settings:
        theirs, ours = base.settings.get(option), getattr(model.args, option)
        if theirs is not None and theirs != ours:
            raise UsageError(
                f"{base.path} was trained with --{option.replace('_', '-')} {theirs}, but --arch {arch} has {ours}; "
                "choose the architecture of this base"
            )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _check_dictionary(base: Base, dictionary: Dictionary) -> None:
    if base.symbols is None:
        return
    ours, theirs = _plain_symbols(dictionary.symbols), _plain_symbols(base.symbols)
    for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise UsageError(
                f"the dictionary of the data is not the base's ({base.path.parent}/dict.txt): "
                f"symbol {index} is {our!r} instead of {their!r}; binarise the data with the base's dict.txt"
            )
    if len(ours) > len(theirs):
        raise UsageError(
            f"the dictionary of the data has {len(ours)} symbols, the base's {len(theirs)}; "
            "binarise the data with the base's dict.txt"
        )


def _place_rows(state: dict[str, Tensor], base: Base, family: Family, dictionary: Dictionary) -> None:
    """Bring the embedding, and a GPT-2's mask of absent symbols, into the order of this dictionary."""
    if base.rows is not None:
        state[family.embedding], absent = _reordered_rows(state[family.embedding], base, dictionary)
    else:
        rows = state[family.embedding]
        absent = state.get(ABSENT_SYMBOLS, torch.zeros(len(rows), dtype=torch.bool))
        absent, state[family.embedding] = (_fit_rows(part, base, family, dictionary) for part in (absent, rows))
    if family is GPT2:
        state[ABSENT_SYMBOLS] = absent


def _reordered_rows(rows: Tensor, base: Base, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """Embeddings in the dictionary's order, and which symbols can never be put out: those that the base lacks, and
    those that are `</s>` to it.
    """
    end = base.rows["</s>"]
    unknown = [symbol for symbol, row in base.rows.items() if symbol not in dictionary.indices and row != end]
    if unknown:
        name, remedy = _blamed(dictionary)
        raise UsageError(
            f"{base.path} has {len(rows)} embeddings, but {name} lacks the token {unknown[0]}; {remedy}, "
            "which names every token (added ones too)"
        )
    indices = torch.tensor([base.rows.get(symbol, -1) for symbol in dictionary.symbols])
    placed = rows[indices.clamp(min=0)] * indices.ge(0)[:, None]
    absent = indices.eq(-1) | indices.eq(end)
    absent[dictionary.eos()] = False
    return placed, absent


def _fit_rows(rows: Tensor, base: Base, family: Family, dictionary: Dictionary) -> Tensor:
    """Return the embedding's rows for this dictionary, which is the base's or its beginning, with or without `<mask>`.

    BART's pretraining task puts `<mask>` after all that dict.txt names: there is one row more.

    Raises:
        UsageError: the base has too few rows, or rows that no symbol names.
    """
    size = len(dictionary)
    if len(rows) < size:
        name, remedy = _blamed(dictionary)
        remedy += "" if base.symbols else " (and lay it beside the base)"
        raise UsageError(f"{base.path} has {len(rows)} embeddings, but {name} has {size} symbols; {remedy}")
    named = base.symbols or dictionary.symbols
    if "<mask>" not in (plain := _plain_symbols(named)) and (family is BART or base.symbols is None):
        known, symbols = (len(plain), len(plain) + 1), f"{len(plain)} symbols and <mask>"
    else:
        known, symbols = (len(named),), f"{len(named)} symbols"
    if len(rows) not in known:
        raise UsageError(
            f"{base.path} has {len(rows)} embeddings, but its dict.txt names {symbols}; name the others there, in the "
            "order of their rows, or remove them"
        )
    if dictionary.symbols[-1] == "<mask>" and len(rows) > size:
        mask = min(named.index("<mask>") if "<mask>" in named else len(rows), len(rows) - 1)
        return torch.cat([rows[: size - 1], rows[mask : mask + 1]])
    return rows[:size]


def _plain_symbols(symbols: list[str]) -> list[str]:
    """Without the trailing `<mask>`, which some dictionaries name and others leave to the task."""
    return symbols[:-1] if symbols[-1] == "<mask>" else symbols


def dictionary_fingerprint(symbols: list[str]) -> str:
    """Hex SHA-256 of the symbols in order, `<mask>` aside."""
    return hashlib.sha256("\n".join(_plain_symbols(symbols)).encode()).hexdigest()


@torch.no_grad()
def fingerprint(model: nn.Module, dictionary: Dictionary) -> str:
    """Hex SHA-256 of a base's weights (names, shapes, fp32 values), the same whichever file form they came in.

    The `<mask>` row is left out: whether it is loaded depends on the task's dictionary.
    """
    digest = hashlib.sha256()
    rows = len(_plain_symbols(dictionary.symbols))
    for part in model.family.parts:
        for name, tensor in sorted(getattr(model, part).state_dict(prefix=f"{part}.").items()):
            if name in model.family.tied or name.endswith(BOOKKEEPING):
                continue
            tensor = tensor[:rows] if name in (model.family.embedding, ABSENT_SYMBOLS) else tensor
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


# What is trained ------------------------------------------------------------------------------------------------------


class TunedFile(NamedTuple):
    """What a checkpoint or an export holds, under the names that the tensors have in the model."""

    metadata: dict
    model_args: dict
    task: dict
    state: dict[str, Tensor]
    folded: dict[str, Tensor]  # what an export of it holds

    @property
    def method(self) -> Method:
        return method_of(self.metadata)


class Method(NamedTuple):
    """A way to train little over a frozen base: what its files hold."""

    name: str  # in metadata and in the names of options
    noun: str  # in sentences, after "the"
    shape: Callable[[dict], str]  # one site of the geometry, for people
    fold: Callable[[dict, dict[str, Tensor]], dict[str, Tensor]]  # (metadata, state) -> what an export holds
    unfold: Callable[[dict[str, Tensor]], dict[str, Tensor]]  # an export's tensors under the names of a checkpoint
    model_args: Callable[[dict], dict]  # the options of the model that an export's metadata describes


def method_of(metadata: dict) -> Method:
    """The method that a file's metadata names.

    Raises:
        UsageError: none that is known here.
    """
    name = metadata.get("method", "prefix")
    if name not in METHODS:
        raise UsageError(f"the file is of the method {name!r}, which this version does not know; update the plugin")
    return METHODS[name]


def _folded(build: Callable[[], Evaluated], part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the virtual tokens of a file are without their MLP. Memory is taken for what the file holds, and not for
    what its metadata may claim.
    """
    with torch.device("meta"):
        _compare_shapes(tensor_shapes(build().state_dict(prefix=part)), tensor_shapes(state))
    tokens = build()
    tokens.load_state_dict({name.removeprefix(part): tensor for name, tensor in state.items()})
    return {site: table.float() for site, table in tokens.folded().items()}


def _fold_prefix(metadata: dict, state: dict[str, Tensor]) -> dict[str, Tensor]:
    geometry = {site: SiteGeometry(**shape) for site, shape in metadata["geometry"].items()}
    return _folded(lambda: Prefix(geometry, metadata["reparam"], metadata["mid_dim"] or 1), "prefix.", state)


def _prefix_model_args(metadata: dict) -> dict:
    lengths = {site: shape["length"] for site, shape in metadata["geometry"].items()}
    if not lengths:
        return {"prefix_reparam": "flat", "prefix_length": 0}
    return {
        "prefix_reparam": "flat",
        "prefix_sites": ",".join(lengths),
        **{f"prefix_{site}_length": length for site, length in lengths.items()},
    }


def _prefix_shape(shape: dict) -> str:
    site = SiteGeometry(**shape)
    return f"{site.length} x {site.layers} layers x {site.heads}*{site.head_dim}"


def _fold_prompt(metadata: dict, state: dict[str, Tensor]) -> dict[str, Tensor]:
    build = functools.partial(empty_prompt, metadata["geometry"], metadata["reparam"], metadata["mid_dim"])
    return _folded(build, "prompt.", state)


def _prompt_model_args(metadata: dict) -> dict:
    lengths = {site: shape["length"] for site, shape in metadata["geometry"].items()}
    if not lengths:
        return {"prompt_reparam": "flat", "prompt_length": 0}
    return {"prompt_reparam": "flat", "prompt_sites": ",".join(lengths), "prompt_length": max(lengths.values())}


def tensor_shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    """name -> shape, in the order of the names: what a file of adapters or top layers says that it holds."""
    return {name: list(tensors[name].shape) for name in sorted(tensors)}


def _verify_tensors(metadata: dict, state: dict[str, Tensor]) -> None:
    """Against what the metadata says that the file holds. (The first files did not say it.)"""
    found = tensor_shapes(state)
    _compare_shapes(metadata.get("tensors", found), found)


def _compare_shapes(recorded: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    for name in sorted(found.keys() ^ recorded.keys()):
        raise ValueError(f"it {'lacks' if name in recorded else 'holds'} {name}")
    for name, shape in recorded.items():
        if found[name] != shape:
            raise ValueError(f"{name} has the shape {found[name]} instead of {shape}")


def _fold_adapters(metadata: dict, state: dict[str, Tensor]) -> dict[str, Tensor]:
    _verify_tensors(metadata, state)
    sites = metadata["geometry"].values()
    expected = sum(shape["layers"] * adapter_size(shape["embed_dim"], shape["dim"]) for shape in sites)
    found = sum(tensor.numel() for tensor in state.values())
    if found != expected:
        raise ValueError(f"{found:,} parameters instead of {expected:,}")
    return state


def _adapter_model_args(metadata: dict) -> dict:
    return {"adapter_dim": max((shape["dim"] for shape in metadata["geometry"].values()), default=0)}


def _fold_top(metadata: dict, state: dict[str, Tensor]) -> dict[str, Tensor]:
    _verify_tensors(metadata, state)
    if bool(state) != bool(metadata["geometry"]):
        raise ValueError(f"{len(state)} tensors")
    return state


def _top_model_args(metadata: dict) -> dict:
    shape = metadata["geometry"].get("decoder", {"layers": 0, "embeddings": 0})
    return {"top_layers": shape["layers"], "top_embedding": "trained" if shape["embeddings"] else "frozen"}


PREFIX = Method(
    name="prefix",
    noun="prefix",
    shape=_prefix_shape,
    fold=_fold_prefix,
    unfold=lambda tensors: {f"prefix.sites.{site}.key_value": tensor for site, tensor in tensors.items()},
    model_args=_prefix_model_args,
)
PROMPT = Method(
    name="prompt",
    noun="prompt",
    shape=lambda shape: f"{shape['length']} x {shape['embed_dim']}",
    fold=_fold_prompt,
    unfold=lambda tensors: {f"prompt.sites.{site}.embedding.weight": tensor for site, tensor in tensors.items()},
    model_args=_prompt_model_args,
)
ADAPTER = Method(
    name="adapter",
    noun="set of adapters",
    shape=lambda shape: f"{shape['dim']} x {shape['layers']} layers x {shape['embed_dim']}",
    fold=_fold_adapters,
    unfold=dict,
    model_args=_adapter_model_args,
)
TOP = Method(
    name="top",
    noun="set of top layers",
    shape=lambda shape: "{layers} of {of} layers x {embed_dim}, {embeddings} embeddings".format(**shape),
    fold=_fold_top,
    unfold=dict,
    model_args=_top_model_args,
)
METHODS = {method.name: method for method in (PREFIX, PROMPT, ADAPTER, TOP)}


def pack_metadata(metadata: dict) -> Tensor:
    """JSON as bytes, because a checkpoint's model part may hold tensors only.

    The bytes are inverted, so that averaging checkpoints overflows and garbles them: averages of an MLP's weights are
    not averages of prefixes, and must not be taken for one.
    """
    return 255 - torch.frombuffer(bytearray(json.dumps(metadata, sort_keys=True).encode("ascii")), dtype=torch.uint8)


def unpack_metadata(state: dict[str, Tensor]) -> dict:
    """The metadata of a checkpoint's model part.

    Raises:
        UsageError: there is none, or it is damaged, or of a later format or method.
    """
    if METADATA_KEY not in state:
        kind = (
            "is a whole model: pass it as --base-model, or to api.load" if family_of(state) else "holds something else"
        )
        raise UsageError(f"expected the checkpoint of a prefix, prompt, adapters or top layers, but this one {kind}")
    try:
        return _checked(json.loads(bytes((255 - state[METADATA_KEY]).tolist()).decode("ascii")))
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        raise UsageError(
            "the checkpoint's metadata is damaged (checkpoints of a prefix and the like cannot be averaged)"
        ) from None


def _checked(metadata: dict) -> dict:
    """The metadata of a file that this version reads.

    Raises:
        UsageError: it is of a later format, or of a method that is not known here.
        KeyError, TypeError: it is no metadata.
    """
    if metadata["format"] != FORMAT:
        raise UsageError(f"the file is of format {metadata['format']}, this version reads {FORMAT}; update the plugin")
    method_of(metadata)
    shapes, conventions = metadata["geometry"].items(), metadata["conventions"]
    numbers = [metadata.get("base_parameters", 0), *(number for _, shape in shapes for number in shape.values())]
    texts = [metadata[key] for key in ("arch", "base_fingerprint", "dictionary_fingerprint")]
    sound = (
        all(site in SITES for site, _ in shapes)
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(text, str) and text.isprintable() for text in texts)
        and isinstance(conventions["bos"], bool)
        and type(limit := conventions.get("max_source_tokens", 0)) is int
        and limit >= 0
    )
    if not sound:
        raise ValueError("its metadata is none of this plugin's")
    return metadata


def verify(state: dict[str, Tensor], model) -> None:
    """Refuse what was trained for another base, dictionary, geometry or convention than `model` has.

    Raises:
        UsageError: in one sentence.
    """
    theirs, ours, method = unpack_metadata(state), model.metadata(), model.method
    if (other := method_of(theirs)) is not method:
        raise UsageError(f"the checkpoint holds a {other.noun}, but --arch {model.args.arch} has a {method.noun}")
    noun = method.noun
    if theirs["geometry"] != ours["geometry"]:
        raise UsageError(
            f"the {noun} in the checkpoint has the geometry {describe_geometry(theirs['geometry'], method)}, "
            f"the model {describe_geometry(ours['geometry'], method)}"
        )
    for key in ("reparam", "mid_dim"):
        if theirs.get(key) != ours.get(key):
            option = f"--{method.name}-" + key.replace("_", "-")
            raise UsageError(f"the {noun} in the checkpoint has {option} {theirs[key]}, the model {ours[key]}")
    if theirs["dictionary_fingerprint"] != ours["dictionary_fingerprint"]:
        raise UsageError(f"the {noun} was trained with another dictionary than that of the data")
    if theirs["base_fingerprint"] != ours["base_fingerprint"]:
        raise UsageError(
            f"the {noun} was trained over another base (fingerprint {theirs['base_fingerprint'][:12]}) than "
            f"{model.args.base_model} ({ours['base_fingerprint'][:12]}); a {noun} works with its own base only"
        )
    if theirs["geometry"]:  # the base alone has got used to nothing
        _verify_conventions(theirs["conventions"], ours["conventions"], noun)


def _verify_conventions(theirs: dict, ours: dict, noun: str) -> None:
    if theirs["bos"] != ours["bos"]:
        with_bos = "with" if theirs["bos"] else "without"
        task = "conditional_generation" if theirs["bos"] else "translation"
        raise UsageError(f"the {noun} was trained {with_bos} <s> around the text; pass --task {task}")
    if theirs.get("prefix_position") != ours.get("prefix_position"):
        raise UsageError(f"the {noun} was trained with --prefix-position {theirs.get('prefix_position')}; pass that")
    if theirs.get("max_source_tokens") != (given := ours.get("max_source_tokens")):
        raise UsageError(
            f"the {noun} was trained with --max-source-tokens {theirs['max_source_tokens']}, not {given}; "
            f"pass --max-source-tokens {theirs['max_source_tokens']} (a search takes it from the checkpoint "
            "if the option is left out)"
        )


def describe_geometry(geometry: dict[str, dict], method: Method = PREFIX) -> str:
    """ "encoder 200 x 12 layers x 16*64, ..." """
    if not geometry:
        return f"of no {method.name}"
    return ", ".join(f"{site} {method.shape(geometry[site])}" for site in SITES if site in geometry)


def read_tuned(path: str) -> TunedFile:
    """Read what was trained over a base from a training checkpoint (.pt) or an export (.safetensors).

    Raises:
        UsageError: it is neither, or damaged.
    """
    check_file(path)
    if str(path).endswith(".safetensors"):
        metadata, model_args, task, state = _read_export(path)
    else:
        loaded = load_tensors(Path(path))
        if not isinstance(loaded.get("model"), dict):
            raise UsageError(f"{path} is not a fairseq checkpoint")
        try:
            metadata = unpack_metadata(loaded["model"])
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        if not isinstance(loaded.get("cfg"), dict):
            raise UsageError(f"{path} is not a fairseq checkpoint: it holds no options")
        state = {name: tensor for name, tensor in loaded["model"].items() if name != METADATA_KEY}
        model_args, task = (_plain(loaded["cfg"].get(part) or {}) for part in ("model", "task"))
        if task.get("max_source_tokens", 0) is None:  # not given in the training, which then had the default
            task["max_source_tokens"] = metadata["conventions"].get("max_source_tokens", 0)
    method = method_of(metadata)
    _check_options(path, method, model_args, task)
    try:
        return TunedFile(metadata, model_args, task, state, method.fold(metadata, state))
    except Exception as error:  # metadata and names may be anything
        raise UsageError(f"{path}: the {method.noun} does not fit its metadata ({first_line(error)})") from None


def check_file(path: str) -> None:
    """Refuse what is no file.

    Raises:
        UsageError: nothing is there, or something else.
    """
    if Path(path).is_dir():
        raise UsageError(f"{path} is a folder; expected a file in it, such as checkpoint_best.pt or prefix.safetensors")
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")


def _check_options(path: str, method: Method, model_args: object, task: object) -> None:
    """The options in a file are those of a model of this method, and of a task; what a file says is not run.

    Raises:
        UsageError: they are not.
    """
    with refusing(path):
        check_contents([model_args, task])
    sound = all(isinstance(part, dict) and all(isinstance(key, str) for key in part) for part in (model_args, task))
    arch, name = (model_args.get("arch"), task.get("_name")) if sound else (None, None)
    known = getattr(ARCH_MODEL_REGISTRY.get(arch), "method", None) if isinstance(arch, str) else None
    if known is None or known.name != method.name:
        raise UsageError(f"{path}: its options name no architecture of a {method.noun}, but {arch!r}")
    numbers = [task.get(key, 0) for key in TASK_ARGS_KEPT if key.startswith("max_")]
    if not all(type(number) is int for number in numbers):
        raise UsageError(f"{path}: its options of the task are not all numbers, but {numbers}")
    if name is not None and not (isinstance(name, str) and name in TASK_REGISTRY):
        raise UsageError(f"{path}: its options name no task that is known here, but {name!r}")


def _read_export(path: str) -> tuple[dict, dict, dict, dict[str, Tensor]]:
    """metadata, options of the model and of the task, and tensors under the names of a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(header[EXPORT_KEY])
        model_args, task = header.pop("model_args"), header.pop("task")
        (metadata,) = header.values()  # under the name of the method
        return _checked(metadata), model_args, task, method_of(metadata).unfold(tensors)
    except UsageError:
        raise
    except Exception as error:  # its header may be anything
        raise UsageError(
            f"{path} is no export of a prefix, prompt, adapters or top layers, or is damaged ({error})"
        ) from None


def _plain(namespace) -> dict:
    """The options of a checkpoint that are plain values; none, where there are no options at all."""
    items = vars(namespace) if isinstance(namespace, argparse.Namespace) else namespace
    items = items if isinstance(items, dict) else {}
    return {k: v for k, v in items.items() if isinstance(v, str | int | float | bool | list | dict | None.__class__)}


def describe(path: str) -> dict:
    """What a checkpoint or an export is, for people and for tables.

    Keys: kind, arch, trained_parameters, stored_parameters, base_parameters, base_fingerprint, dictionary_fingerprint,
    geometry, conventions, updates, bytes, and others that a method has; where a whole model was trained, only those
    that it has.
    """
    check_file(path)
    size = Path(path).stat().st_size
    if not str(path).endswith(".safetensors") and size:
        loaded = load_tensors(Path(path))
        history = loaded.get("optimizer_history")
        last = history[-1] if isinstance(history, list) and history else None
        updates = last.get("num_updates") if isinstance(last, dict) else None
        updates = {"updates": updates} if isinstance(updates, int) else {}
        state = loaded.get("model")
        if family_of(state) and METADATA_KEY not in state:
            return {**_describe_whole(path, loaded), **updates, "bytes": size}
    else:
        updates = {}
    file = read_tuned(path)
    name = "top layers" if file.method is TOP else file.method.name
    return {
        "kind": f"exported {name}" if str(path).endswith(".safetensors") else f"{name} checkpoint",
        **{key: value for key, value in file.metadata.items() if key not in ("format", "tensors")},
        "trained_parameters": sum(tensor.numel() for tensor in file.state.values()),
        "stored_parameters": sum(tensor.numel() for tensor in file.folded.values()),
        "task": file.task.get("_name"),
        **updates,
        "bytes": size,
    }


def _describe_whole(path: str, loaded: dict) -> dict:
    _check_weights(path, loaded["model"])
    left_out = (*family_of(loaded["model"]).tied, ABSENT_SYMBOLS)
    state = {name: tensor for name, tensor in loaded["model"].items() if not name.endswith(BOOKKEEPING)}
    count = sum(tensor.numel() for name, tensor in state.items() if name not in left_out)
    model_args = {key: value for key, value in _whole_args(loaded).items() if isinstance(value, str)}
    return {
        "kind": "whole model",
        "arch": model_args.get("arch"),
        "trained_parameters": count,
        "stored_parameters": count,
        "base_parameters": count,
        "base_fingerprint": model_args.get("base_fingerprint"),
        "finetuned_from": model_args.get("finetuned_from"),
    }


def _whole_args(loaded: dict) -> dict:
    """The options of the model in a whole model's checkpoint."""
    cfg = loaded.get("cfg")
    return _plain(cfg["model"] if isinstance(cfg, dict) and "model" in cfg else loaded.get("args"))


def _check_weights(path: str | os.PathLike, state: dict) -> None:
    """A model's part of a checkpoint is tensors by name.

    Raises:
        UsageError: it is not.
    """
    for name, tensor in state.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise UsageError(f"{path} cannot be loaded: {name!r} in it is no tensor")


MODEL_ARGS_KEPT = ("arch", "activation_fn", "max_source_positions", "max_target_positions", "prefix_position")
TASK_ARGS_KEPT = ("_name", "source_lang", "target_lang", "max_source_tokens", "max_target_tokens")


def write_export(file: TunedFile, path: str) -> None:
    """Fold and write a .safetensors file: the tensors, and the metadata as JSON in the header.

    Of a prefix or a prompt that is one tensor per site, P x (L*2*D) or P x D; of adapters and top layers those that
    were trained.

    Raises:
        UsageError: the path is not one of a file that can be written, or does not end in .safetensors.
    """
    if not str(path).endswith(".safetensors"):
        raise UsageError(f"{path}: expected a name that ends in .safetensors, by which an export is recognised")
    metadata = folded_metadata(file.metadata)
    sizes = {k: v for k, v in file.model_args.items() if k.startswith(("encoder_", "decoder_"))}
    model_args = {**sizes, **{k: file.model_args[k] for k in MODEL_ARGS_KEPT if k in file.model_args}}
    task = {k: file.task[k] for k in TASK_ARGS_KEPT if k in file.task}
    # One key: safetensors writes several in an order that changes from run to run, and equal prefixes are equal files.
    header = {file.method.name: metadata, "model_args": model_args, "task": task}
    header = {EXPORT_KEY: json.dumps(header, sort_keys=True)}
    tensors = {name: tensor.contiguous() for name, tensor in file.folded.items()}
    atomically(path, lambda temporary: save_file(tensors, temporary, header))


def folded_metadata(metadata: dict) -> dict:
    """The metadata of the same virtual tokens without an MLP."""
    return {**metadata, "reparam": "flat", "mid_dim": None} if "reparam" in metadata else metadata


def import_export(file: TunedFile, path: str, base_model: str) -> None:
    """Write a checkpoint that `fairseq-generate` and `fairseq-interactive` read, of what was read from an export."""
    method = file.method
    state = method.unfold(file.folded)
    state[METADATA_KEY] = pack_metadata(folded_metadata(file.metadata))
    model_args = {**file.model_args, **method.model_args(file.metadata)}
    try:
        cfg = configuration(model_args, file.task, base_model)
    except Exception as error:  # options of the right names may have any value
        raise UsageError(
            f"the {method.noun}'s options are not those of a model ({str(error).splitlines()[0]})"
        ) from None
    write_checkpoint(path, cfg, state)


def write_checkpoint(path: str, cfg, model_state: dict[str, Tensor]) -> None:
    """Write a checkpoint that `fairseq-generate` and `fairseq-interactive` read, of a model that was not trained
    here.

    Raises:
        UsageError: the path is not one of a file that can be written, or is one of an export.
    """
    if str(path).endswith(".safetensors"):
        raise UsageError(f"{path}: expected a name that does not end in .safetensors, such as prefix.pt")
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model_state,
        "criterion": None,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 0, "iterations_in_epoch": 0}},
    }
    atomically(path, lambda temporary: torch.save(state, temporary))


def configuration(model_args: dict, task: dict, base_model: str):
    """The configuration that fairseq-train would record for this model, for a checkpoint written without training."""
    task_name = task.get("_name") or ARCH_MODEL_REGISTRY[model_args["arch"]].default_task
    command = [".", "--task", task_name, "--arch", model_args["arch"], "--base-model", base_model]
    args = options.parse_args_and_arch(options.get_training_parser(), command)
    vars(args).update(model_args)
    vars(args).update({key: value for key, value in task.items() if key != "_name"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Hydra's, about how fairseq uses it
        return convert_namespace_to_omegaconf(args)
