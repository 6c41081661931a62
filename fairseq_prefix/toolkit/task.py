"""Source text in, target text out: `conditional_generation` for BART, `conditional_lm` for GPT-2.

fairseq's translation task marks the beginning of a text nowhere; BART has seen `<s> text </s>` only, on both sides. A
frozen base cannot adapt to the difference, so this task adds `<s>` to source and target, and forces it when
generating:

    encoder   <s> source </s>
    decoder   </s> <s> target        (predicts <s> target </s>)

A decoder-only model reads both as one text, and is trained on what comes after the source:

    text      source </s> target        (predicts target </s> from the first </s> on)

`</s>` is GPT-2's `<|endoftext|>`, which the original code writes there as bos and eos. A batch holds sources and
targets apart, so that everything which counts or prints targets concerns them alone; the model joins them.

Lengths in tokens count what stands between `<s>` and `</s>`.

Both tasks encode and decode text as the workflow and the API do, whatever command of fairseq asks (subwords.py).
"""

import contextlib
import itertools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
import torch
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
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqLanguageModel
from fairseq.search import DiverseBeamSearch
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, OmegaConf, open_dict

from ..decoding.replacements import DiverseBeams, NGramBlock
from ..decoding.search import Searcher, check_options
from ..errors import UsageError, first_line
from ..files.dictionary import read_dictionary
from ..files.subwords import build_bpe

logger = logging.getLogger(__name__)

MAX_SOURCE_TOKENS = 512  # where neither the command nor a checkpoint says it


@dataclass
class ConditionalGenerationConfig(FairseqDataclass):
    """Options of both tasks."""

    # fairseq reads these annotations and does not know `X | None`
    data: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "folder that fairseq-preprocess wrote; of several (FOLDER:FOLDER) each epoch of a training reads "
            "the next one, and every other split comes from the first"
        },
    )
    source_lang: str = field(default="source", metadata={"help": "suffix of the source files", "argparse_alias": "-s"})
    target_lang: str = field(default="target", metadata={"help": "suffix of the target files", "argparse_alias": "-t"})
    max_source_tokens: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "longer sources are cut to this many tokens, in every split (0: not cut; default: what the "
            f"checkpoint was trained with, and {MAX_SOURCE_TOKENS} in a new training)"
        },
    )
    max_target_tokens: int = field(
        default=0, metadata={"help": "longer training targets are cut to this many tokens (0: not cut)"}
    )
    upsample_primary: int = field(
        default=1, metadata={"help": "how often an epoch reads train where train1, train2 ... are there too"}
    )
    train_subset: str = II("dataset.train_subset")
    dataset_impl: Optional[str] = II("dataset.dataset_impl")  # noqa: UP045
    required_seq_len_multiple: int = II("dataset.required_seq_len_multiple")
    post_process: Optional[str] = II("common_eval.post_process")  # noqa: UP045


class CompletePairDataset(LanguagePairDataset):
    """Pairs of which none is dropped.

    fairseq leaves the last batch of a pass out unless its size is a multiple of `--required-batch-size-multiple` (8):
    in training some examples would never be seen, and of a test set up to a batch would be missing.
    """

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """As fairseq's, with the remainder as a last, smaller batch.

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
        """None is filtered: fairseq would leave examples that are too long out of training, with a warning.

        Raises:
            UsageError: one does not fit.
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
    """Pairs that a model joins to one text each: what counts for a batch is the length of both together."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, left_pad_source=False, left_pad_target=False, **kwargs)
        self.sizes = self.src_sizes + (self.tgt_sizes if self.tgt_sizes is not None else 1)  # 1: </s>

    def num_tokens(self, index):
        return self.sizes[index]

    def num_tokens_vec(self, indices):
        return self.sizes[indices]

    def size(self, index):
        return self.sizes[index]

    def ordered_indices(self):
        """By length, equal ones in random order in training."""
        indices = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return indices[np.argsort(self.sizes[indices], kind="stable")]

    def filter_indices_by_size(self, indices, max_sizes):
        """None is filtered: fairseq would leave examples that are too long out of training.

        Raises:
            UsageError: one does not fit.
        """
        longest = indices[np.argmax(self.sizes[indices])] if len(indices) else 0
        if max_sizes is not None and len(indices) and self.sizes[longest] > max_sizes:
            raise UsageError(
                f"example {longest} has {self.sizes[longest]} tokens, source and target together, but there is room "
                f"for {max_sizes} (the model's positions, less virtual tokens, or --max-tokens); "
                "cut sources with --max-source-tokens N, and targets in training with --max-target-tokens N"
            )
        return indices, []


def _dictionary(path: Path) -> Dictionary:
    """A dictionary of binarised data.

    Raises:
        UsageError: there is none; says which languages the folder holds instead.
    """
    if path.exists():
        return read_dictionary(path)
    folder, sides = path.parent, sorted(other.name.split(".")[1] for other in path.parent.glob("dict.*.txt"))
    if sides:
        raise UsageError(f"{path}: no such file; {folder} holds {' and '.join(sides)}: pass -s and -t")
    raise UsageError(f"{path}: no such file; is {folder} a folder that fairseq-preprocess wrote?")


class PairTask(FairseqTask):
    """What both tasks have in common: reading source and target."""

    cfg: ConditionalGenerationConfig
    leading_space = False  # whether a text in byte BPE begins as it would within a line

    def __init__(self, cfg: ConditionalGenerationConfig, source_dictionary: Dictionary, target_dictionary: Dictionary):
        for option, least in (("max_source_tokens", 0), ("max_target_tokens", 0), ("upsample_primary", 1)):
            value = getattr(cfg, option)
            if value is not None and value < least:
                kind = "1 or more" if least else "0 (not cut) or more"
                raise UsageError(f"--{option.replace('_', '-')} is {value}; expected {kind}")
        super().__init__(cfg)
        self._source_dictionary = source_dictionary
        self._target_dictionary = target_dictionary
        self._max_positions: tuple[int, int] | int | None = None
        self._limit_given = cfg.max_source_tokens is not None

    @classmethod
    def setup_task(cls, cfg: ConditionalGenerationConfig, **kwargs):
        """Load the dictionaries of a folder that fairseq-preprocess wrote.

        Raises:
            UsageError: the folder or a dictionary is missing, or the dictionaries differ.
        """
        first, *shards = map(Path, utils.split_paths(cfg.data))
        dictionaries = [_dictionary(first / f"dict.{side}.txt") for side in (cfg.source_lang, cfg.target_lang)]
        if dictionaries[0] != dictionaries[1]:
            raise UsageError(
                f"{first}: source and target have different dictionaries, but the base has one for both; run "
                "fairseq-preprocess with --joined-dictionary and --srcdict, the dict.txt of the base"
            )
        for path in (shard / f"dict.{side}.txt" for shard in shards for side in (cfg.source_lang, cfg.target_lang)):
            if path.exists() and _dictionary(path) != dictionaries[0]:
                raise UsageError(
                    f"{path} differs from the dictionary in {first}; binarise all folders with one dict.txt"
                )
        return cls(cfg, *dictionaries)

    @property
    def source_dictionary(self) -> Dictionary:
        return self._source_dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self._target_dictionary

    def max_positions(self) -> tuple[int, int] | int | None:
        """The model's."""
        return self._max_positions

    @property
    def max_source_tokens(self) -> int:
        """What is left of a longer source; 0: all."""
        limit = self.cfg.max_source_tokens  # None until a model is built
        return MAX_SOURCE_TOKENS if limit is None else limit

    def build_model(self, cfg, from_checkpoint=False):
        """fairseq's hook. Where the command does not say how long a source may be, a checkpoint does.

        Raises:
            UsageError: two checkpoints say it differently, or a training has nothing to train.
        """
        if not self._limit_given:
            recorded = getattr(cfg, "max_source_tokens", None) if from_checkpoint else None
            limit = MAX_SOURCE_TOKENS if recorded is None else recorded
            if self.cfg.max_source_tokens not in (None, limit):
                raise UsageError(
                    f"the checkpoints were trained with --max-source-tokens {self.cfg.max_source_tokens} and {limit}; "
                    "pass the one to use"
                )
            self.cfg.max_source_tokens = limit
        with open_dict(cfg) if OmegaConf.is_config(cfg) else contextlib.nullcontext():
            cfg.max_source_tokens = self.cfg.max_source_tokens  # what a checkpoint of this model records
        model = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint and not getattr(model, "declared_parameters", True):
            raise UsageError(
                f"--arch {cfg.arch} has nothing to train: with a length, dimension or count of 0 it is the base alone"
            )
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs) -> None:
        """Load one split; sources are truncated always, targets in training.

        Args:
            epoch: which of several folders of training data is read.
            combine: whether train1, train2 ... belong to train.

        Raises:
            UsageError: the split is not there, or source and target differ in number.
        """
        training = split == self.cfg.train_subset
        folders = utils.split_paths(self.cfg.data)
        stems = [self._stems(folder, split, combine) for folder in (folders if training else folders[:1])]
        required = training and combine  # fairseq-train asks for all parts; fairseq-generate may read train, too
        parts = [self._read(stem, required) for stem in stems[(epoch - 1) % len(stems)]]
        sources, targets = zip(*parts, strict=True)
        if any(target is None for target in targets) and any(target is not None for target in targets):
            raise UsageError(f"{self.cfg.data}: some parts of split {split!r} have targets, others have none")
        ratios = [self.cfg.upsample_primary if required else 1] + [1] * (len(parts) - 1)
        if len(parts) == 1 and ratios != [1]:
            raise UsageError(f"--upsample-primary is {ratios[0]}, but there is no {split}1; leave it out")
        source, target = (
            side[0] if len(parts) == 1 or side[0] is None else ConcatDataset(side, ratios)
            for side in (sources, targets)
        )
        max_target = self.cfg.max_target_tokens if training else 0
        self.datasets[split] = self._pairs(source, target, max_target, shuffle=training)

    def _stems(self, folder: str, split: str, combine: bool) -> list[str]:
        """The paths of a split's parts, up to the side's suffix; either language may be named first, as in fairseq."""
        source, target, impl = self.cfg.source_lang, self.cfg.target_lang, self.cfg.dataset_impl
        stems = []
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

    def _read(self, stem: str, targets_required: bool) -> tuple:
        """Source and target of one part, the latter None where there is none."""
        source = self._read_side(f"{stem}.{self.cfg.source_lang}", self.source_dictionary)
        target = self._read_side(f"{stem}.{self.cfg.target_lang}", self.target_dictionary)
        if source is None:
            raise UsageError(f"{stem}.{self.cfg.source_lang} has not the form --dataset-impl {self.cfg.dataset_impl}")
        if target is None and targets_required:
            raise UsageError(f"{stem}.{self.cfg.target_lang}.idx: no such file; a training requires targets")
        if target is not None and len(source) != len(target):
            raise UsageError(f"{stem}: {len(source)} sources but {len(target)} targets")
        logger.info("%s: %d examples", stem, len(source))
        return source, target

    def _read_side(self, path: str, dictionary: Dictionary):
        try:
            dataset = data_utils.load_indexed_dataset(path, dictionary, self.cfg.dataset_impl)
            # A file that is cut off fails at its end. A lazy dataset stays closed: processes would share its position.
            if dataset and not isinstance(dataset, indexed_dataset.IndexedDataset):
                dataset[len(dataset) - 1]
        except Exception as error:  # fairseq raises a dozen kinds
            raise UsageError(
                f"{path} cannot be read ({first_line(error)}); is it damaged, or is --dataset-impl wrong?"
            ) from None
        return dataset

    def _pairs(self, source, target, max_target: int, shuffle: bool) -> CompletePairDataset:
        """The dataset of one split; `target` may be None."""
        raise NotImplementedError

    def build_bpe(self, args):
        """Return the encoder and decoder of text that `--bpe` names: for fairseq-interactive and fairseq-generate."""
        return build_bpe(args, self.source_dictionary, self.leading_space, self.cfg.post_process)

    def _bare(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens of a line, which ends with `</s>`, without what the task adds.

        fairseq's hub interface for BART has added `<s>` itself, and passes a batch that is padded already.
        """
        symbols = tokens.new_tensor([self.source_dictionary.bos(), self.source_dictionary.pad()])
        return tokens[~torch.isin(tokens, symbols)][:-1][: self.max_source_tokens or None]

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """A `Searcher`, or fairseq's generator if it is to align; `<s>` is kept out of the printed text."""
        special = {self.target_dictionary.bos(), self.target_dictionary.pad()}
        check_options(args)
        extra = {"symbols_to_strip_from_output": special, **(extra_gen_cls_kwargs or {})}
        if seq_gen_cls is None and not getattr(args, "print_alignment", None):
            seq_gen_cls = Searcher
        for option, least in (("beam", 1), ("nbest", 1), ("min_len", 0), ("no_repeat_ngram_size", 0)):
            if (value := getattr(args, option, least)) < least:
                raise UsageError(f"--{option.replace('_', '-')} is {value}; expected {least} or more")
        if getattr(args, "temperature", 1) <= 0:
            raise UsageError(f"--temperature is {args.temperature}; expected more than 0")
        generator = super().build_generator(models, args, seq_gen_cls, extra, **kwargs)
        if getattr(generator, "repeat_ngram_blocker", None) is not None:
            generator.repeat_ngram_blocker = NGramBlock(generator.repeat_ngram_blocker.no_repeat_ngram_size)
        if isinstance(getattr(generator, "search", None), DiverseBeamSearch):
            theirs = generator.search
            generator.search = DiverseBeams(self.target_dictionary, theirs.num_groups, -theirs.diversity_strength)
        return generator


@register_task("conditional_generation", dataclass=ConditionalGenerationConfig)
class ConditionalGenerationTask(PairTask):
    """For encoder-decoders; see the module's docstring."""

    def conventions(self) -> dict:
        """What a prefix gets used to, and must find again when it generates."""
        return {"bos": True, "max_source_tokens": self.max_source_tokens}

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if isinstance(model, FairseqLanguageModel):
            raise UsageError(f"--arch {cfg.arch} reads source and target as one text; pass --task conditional_lm")
        self._max_positions = model.max_positions()
        room = self._max_positions[0] - 2
        if self.max_source_tokens > room:
            raise UsageError(
                f"--max-source-tokens {self.max_source_tokens} exceeds the model's {room} "
                f"({room + 2} positions less <s> and </s>)"
            )
        return model

    def _pairs(self, source, target, max_target, shuffle):
        source = self._mark(source, self.source_dictionary, self.max_source_tokens)
        target = self._mark(target, self.target_dictionary, max_target) if target is not None else None
        return CompletePairDataset(
            source,
            source.sizes,
            self.source_dictionary,
            target,
            target.sizes if target is not None else None,
            self.target_dictionary,
            left_pad_source=False,
            left_pad_target=False,
            shuffle=shuffle,
            pad_to_multiple=self.cfg.required_seq_len_multiple,
        )

    @staticmethod
    def _mark(dataset, dictionary: Dictionary, max_tokens: int):
        """tokens </s>  ->  <s> tokens </s>, cut to `max_tokens` if that is not 0."""
        if max_tokens:
            bare = TruncateDataset(StripTokenDataset(dataset, dictionary.eos()), max_tokens)
            dataset = AppendTokenDataset(bare, dictionary.eos())
        return PrependTokenDataset(dataset, dictionary.bos())

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None, **kwargs):
        """For fairseq-interactive: token tensors that end with `</s>`."""
        if constraints is not None:
            raise UsageError("--constraints is not supported by --task conditional_generation")
        bos, eos = self.source_dictionary.bos(), self.source_dictionary.eos()
        marked = [torch.cat([t.new_tensor([bos]), self._bare(t), t.new_tensor([eos])]) for t in src_tokens]
        lengths = [len(tokens) for tokens in marked]
        return CompletePairDataset(
            marked,
            lengths,
            self.source_dictionary,
            tgt_dict=self.target_dictionary,
            left_pad_source=False,
        )

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Generate, with `<s>` as the first token of every hypothesis (it counts in `--prefix-size`, being the
        target's).
        """
        if prefix_tokens is None:
            rows = sample["net_input"]["src_tokens"].size(0)
            prefix_tokens = sample["net_input"]["src_tokens"].new_full((rows, 1), self.target_dictionary.bos())
        with torch.no_grad():
            return generator.generate(models, sample, prefix_tokens=prefix_tokens, constraints=constraints)


@register_task("conditional_lm", dataclass=ConditionalGenerationConfig)
class ConditionalLMTask(PairTask):
    """For decoder-only models; see the module's docstring."""

    leading_space = True

    def conventions(self) -> dict:
        """What a prefix gets used to, and must find again when it generates."""
        return {"bos": False, "separator": "</s>", "max_source_tokens": self.max_source_tokens}

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if not isinstance(model, FairseqLanguageModel):
            raise UsageError(f"--arch {cfg.arch} has an encoder; pass --task conditional_generation")
        self._max_positions = model.max_positions()
        room, positions = self._max_positions - 2, model.decoder.embed_positions.max_positions
        if room < 1 and model.decoder.prefix_length:
            raise UsageError(
                f"--{model.method.name}-length {model.decoder.prefix_length} leaves no room for a text in the model's "
                f"{positions} positions; expected {positions - 3} at most"
            )
        if self.max_source_tokens > room:
            raise UsageError(
                f"--max-source-tokens {self.max_source_tokens} exceeds the {room} that </s>, a target of one "
                "token and virtual tokens leave of the model's positions"
            )
        return model

    def _pairs(self, source, target, max_target, shuffle):
        if self.cfg.required_seq_len_multiple != 1:
            raise UsageError(
                f"--required-seq-len-multiple {self.cfg.required_seq_len_multiple} is not supported by --task "
                "conditional_lm, which joins source and target after they were padded; leave it out"
            )
        sources, source_sizes = StripTokenDataset(source, self.source_dictionary.eos()), source.sizes - 1
        if limit := self.max_source_tokens:
            sources, source_sizes = TruncateDataset(sources, limit), np.minimum(source_sizes, limit)
        target_sizes = target.sizes if target is not None else None
        if target is not None and max_target:
            bare = TruncateDataset(StripTokenDataset(target, self.target_dictionary.eos()), max_target)
            target = AppendTokenDataset(bare, self.target_dictionary.eos())
            target_sizes = np.minimum(target_sizes, max_target + 1)
        return JoinedPairDataset(
            sources,
            source_sizes,
            self.source_dictionary,
            target,
            target_sizes,
            self.target_dictionary,
            shuffle=shuffle,
        )

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None, **kwargs):
        """For fairseq-interactive: token tensors that end with `</s>`."""
        if constraints is not None:
            raise UsageError("--constraints is not supported by --task conditional_lm")
        bare = [self._bare(tokens) for tokens in src_tokens]
        lengths = [len(tokens) for tokens in bare]
        return JoinedPairDataset(bare, lengths, self.source_dictionary, tgt_dict=self.target_dictionary)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """The same, kept to the positions that the longest source allowed leaves."""
        room = min(model.max_positions() for model in models) - self.max_source_tokens
        if room < 2 and "max_len" not in (extra_gen_cls_kwargs or {}):  # of prefixes that a bank has selected
            raise UsageError(
                f"sources of --max-source-tokens {self.max_source_tokens} and virtual tokens leave no position "
                "for an output; lower --max-source-tokens, or pass max_len for the texts at hand"
            )
        extra = {"max_len": room, **(extra_gen_cls_kwargs or {})}
        return super().build_generator(models, args, seq_gen_cls, extra, **kwargs)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Generate; after sources that are not cut, in the positions that the batch's longest one leaves."""
        if not self.max_source_tokens:
            room = min(model.max_positions() for model in models)
            generator.max_len = room - sample["net_input"]["src_tokens"].size(1)
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)
