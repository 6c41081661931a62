"""Source text in, target text out: `conditional_generation` for encoder-decoders, `conditional_lm` for GPT-2.

A frozen base cannot adapt to texts without the symbols that framed them in pretraining, and fairseq's translation task
omits some. A task here adds the symbols of its `Framing`, which the model may set, and forces those of the target in a
search. The defaults are BART's and GPT-2's:

    encoder   <s> source </s>
    decoder   </s> <s> target        (predicts <s> target </s>)

    text      source </s> target     (predicts target </s> from the first </s> on)

GPT-2's `</s>` is `<|endoftext|>`, which the original code uses as bos and eos. A batch keeps sources and
targets apart, so that fairseq counts and prints targets alone; the model joins them.

Lengths in tokens do not count framing symbols. Both tasks encode and decode text as the workflow and the API do, in all
of fairseq's commands (files/subwords.py).
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqLanguageModel
from fairseq.search import DiverseBeamSearch
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, OmegaConf, open_dict

from ..decoding.replacements import DiverseBeams, NGramBlock
from ..decoding.search import Searcher, check_options
from ..errors import UsageError
from ..families import bart, gpt2
from ..files.subwords import build_bpe
from ..interfaces.family import Framing
from .datasets import CompletePairDataset, JoinedPairDataset, framed, read_dictionaries, read_split

MAX_SOURCE_TOKENS = 512  # if neither the command nor a checkpoint sets it


@dataclass
class ConditionalGenerationConfig(FairseqDataclass):
    """The options of both tasks."""

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


class PairTask(FairseqTask):
    """The common part of both tasks."""

    cfg: ConditionalGenerationConfig
    name: str
    framing: Framing  # of the model that was built, or the class's default
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
        self._max_positions: Any = None  # None: no model was built
        self._limit_given = cfg.max_source_tokens is not None

    @classmethod
    def setup_task(cls, cfg: ConditionalGenerationConfig, **kwargs):
        """Return the task with the dictionaries of a folder that fairseq-preprocess wrote.

        Raises:
            UsageError: the folder or a dictionary is missing, or the dictionaries differ.
        """
        return cls(cfg, *read_dictionaries(cfg))

    @property
    def source_dictionary(self) -> Dictionary:
        return self._source_dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self._target_dictionary

    def max_positions(self) -> tuple[int, int] | int | None:
        """Return the model's positions."""
        return self._max_positions

    @property
    def max_source_tokens(self) -> int:
        """The length to which sources are cut; 0: not cut."""
        limit = self.cfg.max_source_tokens  # None until a model is built
        return MAX_SOURCE_TOKENS if limit is None else limit

    def ids(self, *symbols: str) -> list[int]:
        """Return the ids of framing symbols.

        Raises:
            UsageError: the dictionary lacks one.
        """
        for symbol in symbols:
            if symbol not in self.source_dictionary:
                raise UsageError(
                    f"dict.txt has no {symbol!r}, which the model expects around a text; use the base's dict.txt"
                )
        return [self.source_dictionary.index(symbol) for symbol in symbols]

    @property
    def _special_ids(self) -> set[int]:
        """The ids of symbols that no text contains, besides `</s>`."""
        symbols = self.source_dictionary
        return {symbols.bos(), symbols.pad(), *self.ids(*self.framing.symbols)}

    def build_model(self, cfg, from_checkpoint=False):
        """Build a model, and take over its framing, and its checkpoint's `--max-source-tokens` unless that is given.

        Raises:
            UsageError: two checkpoints differ in these, a symbol is missing, or a training has nothing to train.
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
            cfg.max_source_tokens = self.cfg.max_source_tokens  # recorded in checkpoints of this model
        model = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint and not getattr(model, "declared_parameters", True):
            raise UsageError(
                f"--arch {cfg.arch} has nothing to train: with a length, dimension or count of 0 it is the base alone"
            )
        framing = getattr(model, "framing", self.framing)
        if self._max_positions is not None and framing != self.framing:
            raise UsageError("the checkpoints frame texts by different symbols; search with one of them at a time")
        self.framing = framing
        self.ids(*sorted(framing.symbols))
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs) -> None:
        """Load one split; sources are always cut, targets in training (see `read_split`)."""
        training = split == self.cfg.train_subset
        source, target = read_split(self.cfg, self.source_dictionary, split, epoch, combine)
        max_target = self.cfg.max_target_tokens if training else 0
        self.datasets[split] = self._pairs(source, target, max_target, shuffle=training)

    def _pairs(self, source, target, max_target: int, shuffle: bool) -> CompletePairDataset:
        """Return the dataset of one split; `target` may be None."""
        raise NotImplementedError

    def _frame(self, source, target, max_target: int) -> tuple:
        """Return source and target cut and framed; `target` may be None."""
        eos, framing = self.source_dictionary.eos(), self.framing
        before, after = self.ids(*framing.before_source), self.ids(*framing.after_source)
        source = framed(source, eos, before, after, self.max_source_tokens)
        if target is not None:
            target = framed(target, eos, self.ids(*framing.before_target), [eos], max_target)
        return source, target

    def _dataset(self, source, source_sizes, target=None, target_sizes=None, **options) -> CompletePairDataset:
        kind = JoinedPairDataset if self.framing.joined else CompletePairDataset
        sides = (source, source_sizes, self.source_dictionary, target, target_sizes, self.target_dictionary)
        return kind(*sides, eos=self.ids(self.framing.start)[0], **options)

    def build_bpe(self, args):
        """Return the encoder and decoder of text that `--bpe` names: for fairseq-interactive and fairseq-generate."""
        return build_bpe(args, self.source_dictionary, self.leading_space, self.cfg.post_process)

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None, **kwargs) -> CompletePairDataset:
        """Return the dataset of token tensors that end with `</s>`: for fairseq-interactive and the API."""
        if constraints is not None:
            raise UsageError(f"--constraints is not supported by --task {self.name}")
        before, after = self.ids(*self.framing.before_source), self.ids(*self.framing.after_source)
        sources = [torch.cat([t.new_tensor(before), self._bare(t), t.new_tensor(after)]) for t in src_tokens]
        return self._dataset(sources, [len(source) for source in sources])

    def _bare(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens of a line, which ends with `</s>`, without special symbols, cut as in the data.

        fairseq's hub interface for BART has added `<s>` itself, and passes a batch that is padded already.
        """
        special = tokens.new_tensor(sorted(self._special_ids))
        return tokens[~torch.isin(tokens, special)][:-1][: self.max_source_tokens or None]

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """Return a `Searcher`, or fairseq's generator for `--print-alignment`; framing symbols are not printed.

        Raises:
            UsageError: an option is unsupported or out of range.
        """
        check_options(args)
        extra = {"symbols_to_strip_from_output": self._special_ids, **(extra_gen_cls_kwargs or {})}
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
            stock = generator.search
            generator.search = DiverseBeams(self.target_dictionary, stock.num_groups, -stock.diversity_strength)
        return generator

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Generate hypotheses, forcing `before_target` at their start; `--prefix-size` includes these symbols."""
        tokens = sample["net_input"]["src_tokens"]  # B x S
        if prefix_tokens is None and self.framing.before_target:
            prefix_tokens = tokens.new_tensor(self.ids(*self.framing.before_target)).repeat(len(tokens), 1)
        options = {} if self.framing.start == "</s>" else {"bos_token": self.ids(self.framing.start)[0]}
        with torch.no_grad():
            return generator.generate(models, sample, prefix_tokens=prefix_tokens, constraints=constraints, **options)


@register_task("conditional_generation", dataclass=ConditionalGenerationConfig)
class ConditionalGenerationTask(PairTask):
    """The task of encoder-decoders; see the module's docstring."""

    name = "conditional_generation"
    framing = bart.FRAMING

    def conventions(self) -> dict:
        """Return the input conventions that the trained parameters depend on."""
        return {"bos": True, "max_source_tokens": self.max_source_tokens}

    def build_model(self, cfg, from_checkpoint=False):
        """Build a model as above.

        Raises:
            UsageError: the model has no encoder, or `--max-source-tokens` exceeds its positions.
        """
        model = super().build_model(cfg, from_checkpoint)
        if isinstance(model, FairseqLanguageModel):
            raise UsageError(f"--arch {cfg.arch} reads source and target as one text; pass --task conditional_lm")
        self._max_positions = model.max_positions()
        symbols = [*self.framing.before_source, *self.framing.after_source]
        room = self._max_positions[0] - len(symbols)
        if self.max_source_tokens > room:
            raise UsageError(
                f"--max-source-tokens {self.max_source_tokens} exceeds the model's {room} "
                f"({self._max_positions[0]} positions less {' and '.join(symbols)})"
            )
        return model

    def _pairs(self, source, target, max_target, shuffle):
        source, target = self._frame(source, target, max_target)
        sizes = target.sizes if target is not None else None
        multiple = self.cfg.required_seq_len_multiple
        return self._dataset(source, source.sizes, target, sizes, shuffle=shuffle, pad_to_multiple=multiple)


@register_task("conditional_lm", dataclass=ConditionalGenerationConfig)
class ConditionalLMTask(PairTask):
    """The task of decoder-only models; see the module's docstring."""

    name = "conditional_lm"
    framing = gpt2.FRAMING
    leading_space = True

    def conventions(self) -> dict:
        """Return the input conventions that the trained parameters depend on."""
        return {"bos": False, "separator": "</s>", "max_source_tokens": self.max_source_tokens}

    def build_model(self, cfg, from_checkpoint=False):
        """Build a model as above.

        Raises:
            UsageError: the model has an encoder, or its positions leave no room for source and target.
        """
        model = super().build_model(cfg, from_checkpoint)
        if not isinstance(model, FairseqLanguageModel):
            raise UsageError(f"--arch {cfg.arch} has an encoder; pass --task conditional_generation")
        self._max_positions = model.max_positions()
        symbols = [*self.framing.before_source, *self.framing.after_source, self.framing.start]
        symbols += self.framing.before_target
        taken, positions = len(symbols) + 1, model.decoder.room
        room = self._max_positions - taken
        if room < 1 and model.decoder.prefix_length:
            raise UsageError(
                f"--{model.method.name}-length {model.decoder.prefix_length} leaves no room for a text in the model's "
                f"{positions} positions; expected {positions - taken - 1} at most"
            )
        if self.max_source_tokens > room:
            raise UsageError(
                f"--max-source-tokens {self.max_source_tokens} exceeds the {room} that {', '.join(symbols)}, a target "
                "of one token and virtual tokens leave of the model's positions"
            )
        return model

    def _pairs(self, source, target, max_target, shuffle):
        if self.cfg.required_seq_len_multiple != 1:
            raise UsageError(
                f"--required-seq-len-multiple {self.cfg.required_seq_len_multiple} is not supported by --task "
                "conditional_lm, which joins source and target after they were padded; leave it out"
            )
        source_sizes, limit, target_sizes = source.sizes - 1, self.max_source_tokens, None
        source_sizes = np.minimum(source_sizes, limit) if limit else source_sizes
        source_sizes = source_sizes + len(self.framing.before_source) + len(self.framing.after_source)
        if target is not None:
            target_sizes = np.minimum(target.sizes, max_target + 1) if max_target else target.sizes
            target_sizes = target_sizes + len(self.framing.before_target)
        source, target = self._frame(source, target, max_target)
        return self._dataset(source, source_sizes, target, target_sizes, shuffle=shuffle)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """Return the generator, limited to the positions that the longest allowed source leaves.

        Raises:
            UsageError: that source leaves none.
        """
        framing = len(self.framing.before_source) + len(self.framing.after_source)
        room = min(model.max_positions() for model in models) - self.max_source_tokens - framing
        if room < 2 and "max_len" not in (extra_gen_cls_kwargs or {}):  # with prefixes that a bank has selected
            raise UsageError(
                f"sources of --max-source-tokens {self.max_source_tokens} and virtual tokens leave no position "
                "for an output; lower --max-source-tokens, or pass max_len for the texts at hand"
            )
        extra = {"max_len": room, **(extra_gen_cls_kwargs or {})}
        return super().build_generator(models, args, seq_gen_cls, extra, **kwargs)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Generate as above; after sources that are not cut, in the positions that the batch's longest one leaves."""
        if not self.max_source_tokens:
            room = min(model.max_positions() for model in models)
            generator.max_len = room - sample["net_input"]["src_tokens"].size(1)
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)
