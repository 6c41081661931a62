"""Trained prefixes for applications: one base in memory, a prefix for each task, text in and text out.

    import fairseq_prefix.api as prefix
    model = prefix.load("bases/bart_large", vocabulary="resources/gpt2_bpe")
    model.add("xsum", "runs/xsum/bart_large/prefix/101/prefix.safetensors")
    model.add("webnlg", "runs/webnlg/bart_large/prefix/101/prefix.safetensors")
    print(model.generate(["a text", "another"], tasks=["xsum", "webnlg"], beam=6))

Texts are encoded, cut, searched and decoded as in the workflow. Only tensors and plain containers are unpickled. A
wrong argument or file raises `UsageError`, a `ValueError` of one or two sentences. Threads may share a `Model`: their
calls run one after another.
"""

from __future__ import annotations

import argparse
import os
import reprlib
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import groupby
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from fairseq.utils import apply_to_sample, get_available_activation_fns
from tqdm import tqdm

from .attention.linear import speed_up
from .errors import UsageError, first_line
from .files.base import read_base, sizes
from .files.checkpoint import read_tuned
from .files.dictionary import read_dictionary
from .files.metadata import verify
from .files.subwords import Subwords, read_vocabulary
from .files.vocabulary import VocabularyError
from .interfaces.family import Base, Framing
from .methods.bank import PrefixBank
from .methods.prefix import Prefix, Prefixed
from .toolkit.task import MAX_SOURCE_TOKENS, ConditionalGenerationConfig, PairTask

LARGEST_LENPEN = 10  # scores in fp32 cannot be divided by a length to a higher power
N = TypeVar("N", int, float)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@torch.inference_mode(False)  # tensors made in inference mode have no version counters
def load(base: str | Path, vocabulary: str | Path | None = None, device: str = "cpu", dtype: str = "fp32") -> Model:
    """Load a base; its files determine the family and the sizes.

    Args:
        base: a folder with model.pt and dict.txt, a model.pt, or a Hugging Face folder with dict.txt in it or in the
            vocabulary's folder (as `--base-model`).
        vocabulary: the folder of spm.model, of encoder.json and vocab.bpe, or of vocab.json and merges.txt; or a
            sentencepiece model's file. Default: the base's folder.
        device: a torch device.
        dtype: fp32, bf16 or, on a GPU, fp16. Prefixes stay in fp32 and are cast where they are used.

    Raises:
        UsageError: an argument is wrong, or a file is missing, damaged or of the wrong kind.
    """
    _check_path("base", base)
    if vocabulary is not None:
        _check_path("vocabulary", vocabulary)
    on_gpu = _check_device(device)
    if not isinstance(dtype, str) or dtype not in DTYPES or dtype == "fp16" and not on_gpu:
        raise UsageError(f"dtype is {dtype!r}; choose 'fp32' or 'bf16', or on a GPU 'fp16'")
    folder = Path(base) if Path(base).is_dir() else Path(base).parent
    place = Path(vocabulary) if vocabulary else folder
    dictionary_path = _first_existing(folder / "dict.txt", place / "dict.txt")
    weights = read_base(str(base))
    args = _options_of(str(base), weights)
    model_class = ARCH_MODEL_REGISTRY[args.arch]
    dictionary = read_dictionary(dictionary_path)
    subwords = read_vocabulary(place, dictionary, TASK_REGISTRY[model_class.family.default_task].leading_space)
    config = ConditionalGenerationConfig(max_source_tokens=sys.maxsize)  # each prefix has its own limit
    task = TASK_REGISTRY[model_class.family.default_task](config, dictionary, dictionary)
    task.base = weights
    model = model_class.build_model(args, task)
    del task.base  # the model holds a copy
    model.use(PrefixBank())
    model.to(device=device, dtype=DTYPES[dtype]).eval()
    speed_up(model, packing=True)
    return Model(model, task, subwords, dictionary_path)


class _Use(NamedTuple):
    """How texts with a prefix (or with the base alone) are read and continued.

    Attributes:
        max_source_tokens: the length to which sources are cut; 0: not cut.
        infix: whether the prefix comes after the source.
        positions: for the output with its `</s>`; of a decoder-only model, for the source as well.
        framing: the symbols around a text.
    """

    max_source_tokens: int
    infix: bool
    positions: int
    framing: Framing

    def room(self, source: int) -> int:
        """Return the positions for the output after a source of so many tokens, or after the longest if it is cut."""
        return self.positions - ((self.max_source_tokens or source) if self.framing.joined else 0)

    def source_size(self, tokens: int) -> int:
        """Return the length of a source of so many tokens with its framing."""
        return len(self.framing.before_source) + tokens + len(self.framing.after_source)


class Model:
    """A frozen base and the prefixes that were added to it, each under the name of its task.

    Threads may share a model: calls run one after another, so that each text gets the prefix of its own task.
    """

    def __init__(self, model: Prefixed, task: PairTask, subwords: Subwords, dictionary_path: Path):
        """Call `load` instead."""
        self._model, self._task, self._subwords = model, task, subwords
        self._dictionary_path = dictionary_path
        self._bank: PrefixBank = model.prefix
        self._lock = threading.Lock()  # held while prefixes are selected, added or removed
        self._positions = model.max_decoder_positions()  # without a prefix
        self._source_room = model.source_room(model.args)
        limit = min(MAX_SOURCE_TOKENS, self._source_room)
        self._uses: dict[str | None, _Use] = {None: self._use(0, {**model.conventions, "max_source_tokens": limit})}

    @property
    def tasks(self) -> list[str]:
        """Names of the prefixes."""
        return self._bank.names

    @torch.inference_mode(False)
    def add(self, name: str, path: str | Path) -> None:
        """Add a prefix from a prefix.safetensors or a training checkpoint; on failure the model stays as it was.

        Raises:
            UsageError: the file is not a prefix for this base, dictionary and family, or the name is taken.
        """
        _check_path("path", path)
        file = read_tuned(str(path))
        self._verify(path, file.metadata)
        prefix = Prefix.from_file(file)
        prefix.requires_grad_(False).to(self._model.decoder.embed_tokens.weight.device).eval()
        use = self._use(prefix.length("decoder"), file.metadata["conventions"])
        self._task.ids(*sorted(use.framing.symbols))  # raises for a symbol that the base lacks
        if use.room(1) < 2:
            raise UsageError(
                f"{path}: {prefix.length('decoder')} virtual tokens and a source of {use.max_source_tokens} tokens "
                f"leave no room for an output in the {self._positions} positions of the base"
            )
        with self._lock:
            self._bank.add(name, prefix)
            self._uses[name] = use

    def remove(self, name: str) -> None:
        """Remove a prefix.

        Raises:
            UsageError: no prefix has this name.
        """
        with self._lock:
            self._bank.remove(name)
            del self._uses[name]

    @torch.no_grad()
    def generate(
        self,
        texts: Sequence[str],
        tasks: str | None | Sequence[str | None],
        *,
        beam: int = 5,
        lenpen: float = 1.0,
        max_len_a: float = 0.0,
        max_len_b: int = 200,
        min_len: int = 1,
        no_repeat_ngram_size: int = 0,
        batch_size: int = 32,
        progress: bool = False,
    ) -> list[str]:
        """Return the best hypothesis for every text, in their order, each on one line.

        Texts of different tasks share batches. Options and their defaults are those of fairseq-generate. A text's
        result does not depend on other texts: `max_len_a` applies to the text's own length, not to the longest of its
        batch.

        Args:
            texts: sources; a source is cut to the length that its prefix was trained with.
            tasks: the name of each text's prefix, or one name for all; None is the base alone.
            beam: beam size.
            lenpen: length penalty: scores are divided by length to this power.
            max_len_a, max_len_b: longest output in tokens: max_len_a times the source's length, plus max_len_b.
            min_len: shortest output in tokens.
            no_repeat_ngram_size: no n-gram of this many tokens occurs twice; 0 allows any.
            batch_size: texts that are searched at a time.
            progress: show a progress bar on stderr after two seconds.

        Raises:
            UsageError: a task is unknown, a text is empty or not a str, or an option is out of range or contradicts
                another.
        """
        texts, tasks = _rows(texts, tasks)
        beam, batch_size = _number("beam", beam, int, 1), _number("batch_size", batch_size, int, 1)
        max_len_a, max_len_b = _number("max_len_a", max_len_a, float, 0), _number("max_len_b", max_len_b, int, 0)
        min_len = _number("min_len", min_len, int, 0)
        options = argparse.Namespace(
            beam=beam,
            lenpen=_number("lenpen", lenpen, float, -LARGEST_LENPEN, LARGEST_LENPEN),
            min_len=min_len,
            no_repeat_ngram_size=_number("no_repeat_ngram_size", no_repeat_ngram_size, int, 0),
        )
        with self._lock:
            uses = [self._uses[name] for name in self._known(tasks)]
            ids = [self._encode(number, *row) for number, row in enumerate(zip(texts, uses, strict=True), 1)]
            sizes = [use.source_size(len(row) - 1) for row, use in zip(ids, uses, strict=True)]  # a row ends with </s>
            limits = [
                min(int(max_len_a * size + max_len_b), use.room(size) - 1)
                for size, use in zip(sizes, uses, strict=True)
            ]
            for number, limit in enumerate(limits, 1):
                if min_len > limit:
                    raise UsageError(f"min_len is {min_len}, but text {number} may get {limit} tokens at most")
            found = [""] * len(texts)
            with _bar(len(texts), progress) as bar:
                for rows in _batches(sizes, limits, uses, batch_size):
                    options.max_len_b = limits[rows[0]]
                    self._model.decoder.infix, self._task.framing = uses[rows[0]].infix, uses[rows[0]].framing
                    hypotheses = self._search([ids[row] for row in rows], [tasks[row] for row in rows], options)
                    for row, hypothesis in zip(rows, hypotheses, strict=True):
                        found[row] = self._decode(hypothesis)
                    bar.update(len(rows))
        return found

    def _known(self, tasks: list[str | None]) -> list[str | None]:
        """Return the names after checking that each is None or the name of a prefix."""
        for name in tasks:
            if name is not None:
                self._bank[name]  # raises for an unknown name
        return tasks

    def _search(self, ids: list[torch.Tensor], tasks: list[str | None], options) -> list[torch.Tensor]:
        """Return the tokens of the best hypothesis of each source."""
        generator = self._task.build_generator([self._model], options, extra_gen_cls_kwargs={"max_len": sys.maxsize})
        dataset = self._task.build_dataset_for_inference(ids, [len(row) for row in ids])
        sample = dataset.collater([dataset[row] for row in range(len(ids))])
        rows = sample["id"].tolist()  # by length
        device = self._model.decoder.embed_tokens.weight.device
        sample = apply_to_sample(lambda tensor: tensor.to(device), sample)
        self._bank.select([tasks[row] for row in rows])
        hypotheses = self._task.inference_step(generator, [self._model], sample)
        best = {row: found[0]["tokens"].cpu() for row, found in zip(rows, hypotheses, strict=True)}
        return [best[row] for row in range(len(ids))]

    def _encode(self, number: int, text: str, use: _Use) -> torch.Tensor:
        dictionary = self._task.source_dictionary
        try:
            pieces = self._subwords.pieces(text)
        except VocabularyError as error:
            raise UsageError(f"text {number} {error}") from None
        pieces = pieces[: use.max_source_tokens or None]
        longest = use.positions - 2 if use.framing.joined else self._source_room  # 2: a token and </s>
        if len(pieces) > longest:
            raise UsageError(f"text {number} has {len(pieces)} tokens, but there is room for {longest}; shorten it")
        return torch.tensor([*map(dictionary.index, pieces), dictionary.eos()])

    def _decode(self, tokens: torch.Tensor) -> str:
        dictionary = self._task.target_dictionary
        silent = {dictionary.pad(), *map(dictionary.index, self._task.framing.symbols)}
        pieces = dictionary.string(tokens, extra_symbols_to_ignore=silent).split()
        try:
            return self._subwords.text(pieces)
        except VocabularyError as error:
            raise UsageError(f"a hypothesis cannot be decoded: {error}") from None

    def _use(self, length: int, conventions: dict) -> _Use:
        """Return how texts are read and continued with a prefix of `length` virtual tokens in the decoder."""
        framing = self._model.family.framing(conventions)
        positions = self._positions - (length if framing.joined else 0)  # source and target share the positions
        return _Use(conventions["max_source_tokens"], conventions.get("prefix_position") == "infix", positions, framing)

    def _verify(self, path: str | Path, metadata: dict) -> None:
        family = getattr(ARCH_MODEL_REGISTRY.get(metadata["arch"]), "family", None)
        if family is not self._model.family:
            raise UsageError(
                f"{path} is of the architecture {metadata['arch']}, but the base is a {self._model.family.name}"
            )
        dictionary = f"{self._dictionary_path}; check that it is the complete one that the data was binarised with"
        verify(metadata, self._model, str(path), dictionary, adopted=True)


def _batches(sizes: list[int], limits: list[int], uses: list[_Use], size: int) -> Iterator[list[int]]:
    """Yield rows that are searched together: the same longest output and reading, sources of similar length."""

    def kind(row: int) -> tuple:
        return limits[row], uses[row].infix, repr(uses[row].framing)

    order = sorted(range(len(sizes)), key=lambda row: (kind(row), sizes[row]), reverse=True)
    for _, group in groupby(order, kind):
        rows = list(group)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _options_of(path: str, base: Base) -> argparse.Namespace:
    """Return the options of a prefix model over this base: an architecture, and the sizes that the weights show.

    The model gets one virtual token, which a bank replaces: without any, attention would be fairseq's own.
    """
    family, shapes = base.family, sizes(base)
    assert family is not None  # sizes() has recognised it
    known = (*family.settings, *family.recorded)
    settings = {name: value for name, value in base.settings.items() if name in known and value is not None}
    for arch, model_class in ARCH_MODEL_REGISTRY.items():
        if issubclass(model_class, Prefixed) and model_class.family is family:
            usual = argparse.Namespace()
            ARCH_CONFIG_REGISTRY[arch](usual)
            same = all(getattr(usual, name) == shapes[name] for name in ("decoder_layers", "decoder_embed_dim"))
            if same or "decoder_attention_heads" in settings:
                break
    else:
        raise UsageError(f"{path} does not say how many attention heads it has, and no architecture is of its size")
    given = {"base_model": path, "prefix_length": 1, "prefix_reparam": "flat", **shapes, **settings}
    args = argparse.Namespace(arch=arch, task=model_class.family.default_task, **given)
    ARCH_CONFIG_REGISTRY[arch](args)
    for name in family.settings:
        if not _is_sound(name, value := getattr(args, name, None), shapes["decoder_embed_dim"]):
            raise UsageError(f"{path}: its {name} is {value!r}, which no {family.name} can have")
    return args


def _is_sound(name: str, value: object, width: int) -> bool:
    """Return whether a value that a file records is one that this option may have."""
    if name.endswith("attention_heads"):
        return type(value) is int and value > 0 and width % value == 0
    if name == "activation_fn":
        return value in get_available_activation_fns()
    return value is None or isinstance(value, bool)


def _check_device(device: str) -> bool:
    """Return whether the device is a GPU; raise a `UsageError` if it is not available."""
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UsageError(
            f"device is {device!r}, which is not available here ({first_line(error)}); "
            "choose cpu, or cuda, cuda:1 and so on where there are GPUs"
        ) from None
    return place.type == "cuda"


def _check_path(name: str, path: object) -> None:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise UsageError(f"{name} is {path!r}; expected a path")


def _rows(texts: object, tasks: object) -> tuple[list[str], list[str | None]]:
    """Return the texts and the name of each one's task."""
    if isinstance(texts, str | bytes):
        raise UsageError("texts is one text; pass a list of texts")
    texts = _list("texts", texts)
    tasks = [tasks] * len(texts) if tasks is None or isinstance(tasks, str) else _list("tasks", tasks)
    if len(texts) != len(tasks):
        raise UsageError(f"there are {len(texts)} texts, but {len(tasks)} tasks")
    for number, (text, task) in enumerate(zip(texts, tasks, strict=True), 1):
        if not isinstance(text, str):
            raise UsageError(f"text {number} is {reprlib.repr(text)}; expected a str")
        if not (task is None or isinstance(task, str)):
            raise UsageError(f"the task of text {number} is {reprlib.repr(task)}; expected a name or None")
    return texts, tasks


def _list(name: str, values: object) -> list:
    if isinstance(values, Iterable) and not isinstance(values, Mapping | Set | bytes):  # only what has an order
        return list(values)
    raise UsageError(f"{name} is {reprlib.repr(values)}; expected a list")


def _number(name: str, value: Any, kind: type[N], least: int, most: int = sys.maxsize) -> N:
    """Return an option's value, which may be a number of any type (numpy's too), as a plain number."""
    numbers: Any = Integral if kind is int else Real
    if isinstance(value, numbers) and not isinstance(value, bool) and least <= value <= most:
        return kind(value)
    what = "a whole number" if kind is int else "a number"
    raise UsageError(f"{name} is {reprlib.repr(value)}; expected {what} from {least} to {most}")


def _first_existing(*paths: Path) -> Path:
    return next((path for path in paths if path.exists()), paths[0])


def _bar(total: int, shown: bool) -> tqdm:
    """Return a bar on stderr that appears after two seconds; in a log it is redrawn only twice a minute."""
    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(total=total, disable=not shown, desc="generating", unit=" texts", delay=2, mininterval=interval)
