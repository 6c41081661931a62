"""Pairs of source and target: read them from binarised data, frame them, and batch them without losing one."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
from fairseq import utils
from fairseq.data import (
    AppendTokenDataset,
    ConcatDataset,
    Dictionary,
    LanguagePairDataset,
    PrependTokenDataset,
    StripTokenDataset,
    TruncateDataset,
    data_utils,
    indexed_dataset,
)

from ..errors import UsageError, first_line
from ..files.dictionary import read_dictionary

logger = logging.getLogger(__name__)


class CompletePairDataset(LanguagePairDataset):
    """Right-padded pairs of source and target; batching drops none.

    fairseq leaves out the last batch of a pass unless its size is a multiple of `--required-batch-size-multiple` (8):
    a training would never see some examples, and a test set would lack up to a batch.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, left_pad_source=False, left_pad_target=False, **kwargs)

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """Return fairseq's batches, and the remainder as a last, smaller batch.

        Raises:
            UsageError: an option is below 1, or an example exceeds `--max-tokens`.
        """
        options = {"batch-size": max_sentences, "max-tokens": max_tokens}
        options["required-batch-size-multiple"] = required_batch_size_multiple
        for option, value in options.items():
            if value is not None and value < 1:
                raise UsageError(f"--{option} is {value}; expected 1 or more")
        longest = self.num_tokens_vec(indices).max(initial=0)
        if max_tokens is not None and longest > max_tokens:
            raise UsageError(
                f"an example has {longest} tokens, but a batch holds {max_tokens} (--max-tokens, or --max-tokens-valid "
                "in a validation); pass a larger number, or --batch-size instead"
            )
        batches = super().batch_by_size(indices, max_tokens, max_sentences, required_batch_size_multiple)
        rest = indices[sum(len(batch) for batch in batches) :]
        return [*batches, rest] if len(rest) else batches

    def filter_indices_by_size(self, indices, max_sizes):
        """Return (all indices, []). fairseq would leave examples that are too long out of training, with a warning.

        Raises:
            UsageError: an example is too long.
        """
        indices, ignored = super().filter_indices_by_size(indices, max_sizes)
        if len(ignored):
            first = ignored[0]
            source, target = (0 if sizes is None else sizes[first] for sizes in (self.src_sizes, self.tgt_sizes))
            raise UsageError(
                f"{len(ignored)} examples are too long, such as number {first} with {source} source and {target} "
                f"target tokens, where there is room for {max_sizes} (the model's positions, or --max-tokens); "
                "cut sources with --max-source-tokens N, and targets in training with --max-target-tokens N"
            )
        return indices, ignored


class JoinedPairDataset(CompletePairDataset):
    """Pairs that a model joins to one text each: the size of a pair is the length of both together."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.sizes = self.src_sizes + (self.tgt_sizes if self.tgt_sizes is not None else 1)  # 1: </s>

    def num_tokens(self, index):
        return self.sizes[index]

    def num_tokens_vec(self, indices):
        return self.sizes[indices]

    def size(self, index):
        return self.sizes[index]

    def ordered_indices(self):
        """Return the indices by length; pairs of equal length are in random order in training."""
        indices = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return indices[np.argsort(self.sizes[indices], kind="stable")]

    def filter_indices_by_size(self, indices, max_sizes):
        """Return (all indices, []), as `CompletePairDataset.filter_indices_by_size`.

        Raises:
            UsageError: a pair is too long.
        """
        longest = indices[np.argmax(self.sizes[indices])] if len(indices) else 0
        if max_sizes is not None and len(indices) and self.sizes[longest] > max_sizes:
            raise UsageError(
                f"example {longest} has {self.sizes[longest]} tokens, source and target together, but there is room "
                f"for {max_sizes} (the model's positions, less virtual tokens, or --max-tokens); "
                "cut sources with --max-source-tokens N, and targets in training with --max-target-tokens N"
            )
        return indices, []


def framed(dataset, eos: int, before: list[int], after: list[int], limit: int):
    """Return a dataset with `before tokens after` for each `tokens </s>`, the tokens cut to `limit` unless that is 0.

    The chain is fairseq's. Its sizes, by which batches are made, count `</s>` before they are cut.
    """
    if limit or after[:1] != [eos]:
        dataset = StripTokenDataset(dataset, eos)
        dataset = TruncateDataset(dataset, limit) if limit else dataset
    else:
        after = after[1:]
    for symbol in after:
        dataset = AppendTokenDataset(dataset, symbol)
    for symbol in reversed(before):
        dataset = PrependTokenDataset(dataset, symbol)
    return dataset


# Reading --------------------------------------------------------------------------------------------------------------


def read_dictionaries(cfg: Any) -> list[Dictionary]:
    """Return the dictionaries of source and target, which are equal, of a folder that fairseq-preprocess wrote.

    Raises:
        UsageError: the folder or a dictionary is missing, or the dictionaries differ.
    """
    first, *others = map(Path, utils.split_paths(cfg.data))
    dictionaries = [_read_dictionary(first / f"dict.{side}.txt") for side in (cfg.source_lang, cfg.target_lang)]
    if dictionaries[0] != dictionaries[1]:
        raise UsageError(
            f"{first}: source and target have different dictionaries, but the base has one for both; run "
            "fairseq-preprocess with --joined-dictionary and --srcdict, the dict.txt of the base"
        )
    for path in (other / f"dict.{side}.txt" for other in others for side in (cfg.source_lang, cfg.target_lang)):
        if path.exists() and _read_dictionary(path) != dictionaries[0]:
            raise UsageError(f"{path} differs from the dictionary in {first}; binarise all folders with one dict.txt")
    return dictionaries


def _read_dictionary(path: Path) -> Dictionary:
    """Return a dictionary of binarised data.

    Raises:
        UsageError: the file is missing; names the languages that the folder holds instead.
    """
    if path.exists():
        return read_dictionary(path)
    folder, sides = path.parent, sorted(other.name.split(".")[1] for other in path.parent.glob("dict.*.txt"))
    if sides:
        raise UsageError(f"{path}: no such file; {folder} holds {' and '.join(sides)}: pass -s and -t")
    raise UsageError(f"{path}: no such file; is {folder} a folder that fairseq-preprocess wrote?")


def read_split(cfg: Any, dictionary: Dictionary, split: str, epoch: int, combine: bool) -> tuple[Any, Any]:
    """Return the sources and the targets of a split; the latter are None where the data has none.

    Args:
        epoch: selects one of several folders of training data.
        combine: whether train1, train2 ... belong to train.

    Raises:
        UsageError: the split is missing or damaged, or source and target differ in number.
    """
    training = split == cfg.train_subset
    folders = utils.split_paths(cfg.data)
    stems = [_stems(cfg, folder, split, combine) for folder in (folders if training else folders[:1])]
    required = training and combine  # fairseq-train combines all parts; fairseq-generate may read train, too
    parts = [_read(cfg, dictionary, stem, required) for stem in stems[(epoch - 1) % len(stems)]]
    sources, targets = zip(*parts, strict=True)
    if any(target is None for target in targets) and any(target is not None for target in targets):
        raise UsageError(f"{cfg.data}: some parts of split {split!r} have targets, others have none")
    ratios = [cfg.upsample_primary if required else 1] + [1] * (len(parts) - 1)
    if len(parts) == 1 and ratios != [1]:
        raise UsageError(f"--upsample-primary is {ratios[0]}, but there is no {split}1; leave it out")
    source, target = (
        side[0] if len(parts) == 1 or side[0] is None else ConcatDataset(side, ratios) for side in (sources, targets)
    )
    return source, target


def _stems(cfg: Any, folder: str, split: str, combine: bool) -> list[str]:
    """Return the paths of a split's parts, less the side's suffix. As in fairseq, either language may come first."""
    source, target, impl = cfg.source_lang, cfg.target_lang, cfg.dataset_impl
    stems: list[str] = []
    for number in itertools.count() if combine else [0]:
        names = [f"{folder}/{split}{number or ''}.{pair}" for pair in (f"{source}-{target}", f"{target}-{source}")]
        paths = [f"{name}.{source}" for name in names]
        kinds = [impl or indexed_dataset.infer_dataset_impl(path) for path in paths]
        found = [indexed_dataset.dataset_exists(path, kind) for path, kind in zip(paths, kinds, strict=True)]
        if not any(found):
            break
        stems.append(names[found.index(True)])
    if not stems:
        raise UsageError(
            f"{folder}/{split}.{source}-{target}.{source}.idx: no such file; the data has no split {split!r}"
        )
    return stems


def _read(cfg: Any, dictionary: Dictionary, stem: str, targets_required: bool) -> tuple[Any, Any]:
    """Return the source and the target of one part; the latter is None where the data has none."""
    source, target = (
        _read_side(f"{stem}.{side}", dictionary, cfg.dataset_impl) for side in (cfg.source_lang, cfg.target_lang)
    )
    if source is None:
        raise UsageError(f"{stem}.{cfg.source_lang} is not in the format of --dataset-impl {cfg.dataset_impl}")
    if target is None and targets_required:
        raise UsageError(f"{stem}.{cfg.target_lang}.idx: no such file; a training requires targets")
    if target is not None and len(source) != len(target):
        raise UsageError(f"{stem}: {len(source)} sources but {len(target)} targets")
    logger.info("%s: %d examples", stem, len(source))
    return source, target


def _read_side(path: str, dictionary: Dictionary, impl: str | None):
    try:
        dataset = data_utils.load_indexed_dataset(path, dictionary, impl)
        # A truncated file fails at its end. A lazy dataset stays closed: processes would share its position.
        if dataset and not isinstance(dataset, indexed_dataset.IndexedDataset):
            dataset[len(dataset) - 1]
    except Exception as error:  # fairseq raises a dozen kinds
        raise UsageError(
            f"{path} cannot be read ({first_line(error)}); is it damaged, or is --dataset-impl wrong?"
        ) from None
    return dataset
