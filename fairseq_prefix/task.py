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
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from fairseq import utils
from fairseq.data import (
    AppendTokenDataset,
    Dictionary,
    LanguagePairDataset,
    PrependTokenDataset,
    StripTokenDataset,
    TruncateDataset,
    data_utils,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqLanguageModel
from fairseq.search import DiverseBeamSearch
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II

from .errors import UsageError
from .search import DiverseBeams, NGramBlock, Searcher, check_options

logger = logging.getLogger(__name__)


@dataclass
class ConditionalGenerationConfig(FairseqDataclass):
    """Options of both tasks."""

    # fairseq reads these annotations and does not know `X | None`
    data: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "folder that fairseq-preprocess wrote"}
    )
    source_lang: str = field(default="source", metadata={"help": "suffix of the source files", "argparse_alias": "-s"})
    target_lang: str = field(default="target", metadata={"help": "suffix of the target files", "argparse_alias": "-t"})
    max_source_tokens: int = field(
        default=512, metadata={"help": "longer sources are cut to this many tokens, in every split"}
    )
    max_target_tokens: int = field(
        default=0, metadata={"help": "longer training targets are cut to this many tokens (0: not cut)"}
    )
    train_subset: str = II("dataset.train_subset")
    dataset_impl: Optional[str] = II("dataset.dataset_impl")  # noqa: UP045
    required_seq_len_multiple: int = II("dataset.required_seq_len_multiple")


class CompletePairDataset(LanguagePairDataset):
    """Pairs of which none is dropped.

    fairseq leaves the last batch of a pass out unless its size is a multiple of `--required-batch-size-multiple` (8):
    in training some examples would never be seen, and of a test set up to a batch would be missing.
    """

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """As fairseq's, with the remainder as a last, smaller batch."""
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
                f"target tokens, where there is room for {max_sizes} (the model's positions, or --max-tokens); lower "
                "--max-source-tokens or --max-target-tokens"
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
                "lower --max-source-tokens or --max-target-tokens"
            )
        return indices, []


class PairTask(FairseqTask):
    """What both tasks have in common: reading source and target."""

    cfg: ConditionalGenerationConfig

    def __init__(self, cfg: ConditionalGenerationConfig, source_dictionary: Dictionary, target_dictionary: Dictionary):
        super().__init__(cfg)
        self._source_dictionary = source_dictionary
        self._target_dictionary = target_dictionary
        self._max_positions: tuple[int, int] | int | None = None

    @classmethod
    def setup_task(cls, cfg: ConditionalGenerationConfig, **kwargs):
        """Load the dictionaries of a folder that fairseq-preprocess wrote.

        Raises:
            UsageError: the folder or a dictionary is missing.
        """
        dictionaries = []
        for side in (cfg.source_lang, cfg.target_lang):
            path = Path(utils.split_paths(cfg.data)[0]) / f"dict.{side}.txt"
            if not path.exists():
                raise UsageError(f"{path}: no such file; is {cfg.data} a folder that fairseq-preprocess wrote?")
            dictionaries.append(Dictionary.load(str(path)))
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

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs) -> None:
        """Load one split; sources are truncated always, targets in training.

        Raises:
            UsageError: the split is not there, or source and target differ in number.
        """
        folder = Path(utils.split_paths(self.cfg.data)[0])
        stem = folder / f"{split}.{self.cfg.source_lang}-{self.cfg.target_lang}"
        sides = {}
        for side, dictionary in (
            (self.cfg.source_lang, self.source_dictionary),
            (self.cfg.target_lang, self.target_dictionary),
        ):
            sides[side] = data_utils.load_indexed_dataset(f"{stem}.{side}", dictionary, self.cfg.dataset_impl)
        source, target = sides.values()
        if source is None:
            raise UsageError(f"{stem}.{self.cfg.source_lang}.idx: no such file; the data has no split {split!r}")
        if target is not None and len(source) != len(target):
            raise UsageError(f"{stem}: {len(source)} sources but {len(target)} targets")

        training = split == self.cfg.train_subset
        max_target = self.cfg.max_target_tokens if training else 0
        self.datasets[split] = self._pairs(source, target, max_target, shuffle=training)
        logger.info("%s %s: %d examples", folder, split, len(source))

    def _pairs(self, source, target, max_target: int, shuffle: bool) -> CompletePairDataset:
        """The dataset of one split; `target` may be None."""
        raise NotImplementedError

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """A `Searcher`, or fairseq's generator if it is to align; `<s>` is kept out of the printed text."""
        special = {self.target_dictionary.bos(), self.target_dictionary.pad()}
        check_options(args)
        extra = {"symbols_to_strip_from_output": special, **(extra_gen_cls_kwargs or {})}
        if seq_gen_cls is None and not getattr(args, "print_alignment", None):
            seq_gen_cls = Searcher
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
        return {"bos": True, "max_source_tokens": self.cfg.max_source_tokens}

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if isinstance(model, FairseqLanguageModel):
            raise UsageError(f"--arch {cfg.arch} reads source and target as one text; pass --task conditional_lm")
        self._max_positions = model.max_positions()
        room = self._max_positions[0] - 2
        if self.cfg.max_source_tokens > room:
            raise UsageError(
                f"--max-source-tokens {self.cfg.max_source_tokens} exceeds the model's {room} "
                f"({room + 2} positions less <s> and </s>)"
            )
        return model

    def _pairs(self, source, target, max_target, shuffle):
        source = self._mark(source, self.source_dictionary, self.cfg.max_source_tokens)
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
        bos, limit = self.source_dictionary.bos(), self.cfg.max_source_tokens
        marked = [torch.cat([t.new_tensor([bos]), t[:-1][:limit], t[-1:]]) for t in src_tokens]
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

    def conventions(self) -> dict:
        """What a prefix gets used to, and must find again when it generates."""
        return {"bos": False, "separator": "</s>", "max_source_tokens": self.cfg.max_source_tokens}

    def build_model(self, cfg, from_checkpoint=False):
        if self.source_dictionary != self.target_dictionary:
            raise UsageError(
                f"{self.cfg.data}: source and target have dictionaries of their own, but are one text here; "
                "binarise them with --joined-dictionary"
            )
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
        if self.cfg.max_source_tokens > room:
            raise UsageError(
                f"--max-source-tokens {self.cfg.max_source_tokens} exceeds the {room} that </s>, a target of one "
                "token and virtual tokens leave of the model's positions"
            )
        return model

    def _pairs(self, source, target, max_target, shuffle):
        sources = TruncateDataset(StripTokenDataset(source, self.source_dictionary.eos()), self.cfg.max_source_tokens)
        source_sizes = np.minimum(source.sizes - 1, self.cfg.max_source_tokens)
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
        bare = [tokens[:-1][: self.cfg.max_source_tokens] for tokens in src_tokens]
        lengths = [len(tokens) for tokens in bare]
        return JoinedPairDataset(bare, lengths, self.source_dictionary, tgt_dict=self.target_dictionary)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """The same, kept to the positions that the longest source allowed leaves."""
        room = min(model.max_positions() for model in models) - self.cfg.max_source_tokens
        if room < 2 and "max_len" not in (extra_gen_cls_kwargs or {}):  # of prefixes that a bank has selected
            raise UsageError(
                f"sources of --max-source-tokens {self.cfg.max_source_tokens} and virtual tokens leave no position "
                "for an output; lower --max-source-tokens, or pass max_len for the texts at hand"
            )
        extra = {"max_len": room, **(extra_gen_cls_kwargs or {})}
        return super().build_generator(models, args, seq_gen_cls, extra, **kwargs)
