"""Who is compared: this plugin, stock fairseq, PEFT and adapters, over BARTs of one shape with random weights.

Each trains with the loss and the optimizer of its own library and decodes with the search of its own library. All get
the same tokens, and every search runs the decoder `forced` times: `<s>`, `forced - 2` free tokens, `</s>`.

Letters at line ends: B sentences, S source tokens, T target tokens.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import tiny
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models.bart.model import BARTModel
from fairseq.optim.adam import Adam
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from fairseq_prefix.files.export import write as write_export
from fairseq_prefix.files.metadata import METADATA_KEY, TunedFile, method_of
from fairseq_prefix.methods.bank import PrefixBank
from fairseq_prefix.methods.prefix import Prefix
from fairseq_prefix.toolkit.criterion import PrefixCrossEntropyCriterion

BOS, PAD, EOS = 0, 1, 2  # in fairseq's BART and in transformers'
BASE_SCALE = 0.02  # BERT's initialisation: activations stay in the range that a trained model has


@dataclass(frozen=True)
class Settings:
    """Shapes, and where to compute. Lengths count `<s>` and `</s>`."""

    size: str  # large, base, tiny
    vocabulary: int
    source: int
    target: int
    prefix_length: int
    mid_dim: int
    beam: int
    forced: int
    threads: int
    device: str
    base: str  # folder of the random base that stock fairseq and this plugin load

    def make_task(self):
        words = self.vocabulary - tiny.SPECIALS - 1  # <mask>
        return tiny.make_task(tiny.dictionary(words=words), max_source_tokens=self.source)

    def save_base(self) -> None:
        """Write a random base."""
        symbols = self.make_task().source_dictionary
        tiny.save_base(Path(self.base), symbols=symbols, arch=f"full_bart_{self.size}", scale=BASE_SCALE)

    def make_batch(self, rows: int) -> tuple[Tensor, Tensor]:
        """Random source and target, B x S and B x T, the same for everybody; no padding."""
        generator = torch.Generator().manual_seed(rows)
        batch = []
        for length in (self.source, self.target):
            tokens = torch.randint(tiny.SPECIALS, self.vocabulary - 1, (rows, length), generator=generator)
            tokens[:, 0], tokens[:, -1] = BOS, EOS
            batch.append(tokens.to(self.device))
        return tuple(batch)


class Contestant:
    """A model to train, to search with and to store.

    A subclass builds `model` on the device, and says:
        packages: modules that it needs beside fairseq, imported before anything is measured.
    """

    packages: tuple[str, ...] = ()
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, settings: Settings):
        self.import_packages()
        self.settings = settings

    @classmethod
    def import_packages(cls) -> None:
        """Raises ImportError if its library is not installed."""
        for package in cls.packages:
            importlib.import_module(package)

    def trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Over what is trained, with the library's own update."""
        raise NotImplementedError

    def prepare_training(self) -> None:
        """What a trainer does once before the first step."""
        self.optimizer = self.make_optimizer()

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, B x S and B x T."""
        raise NotImplementedError

    def prepare_search(self) -> None:
        """What an application does once before it decodes."""
        self.model.eval()

    def search(self, source: Tensor) -> Tensor:
        """The best hypotheses, B x forced."""
        raise NotImplementedError

    def store(self, folder: Path) -> None:
        """Write what a deployed task needs beside the base."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises RuntimeError if what is trained does not take part in what is measured."""


# fairseq --------------------------------------------------------------------------------------------------------------


class StockFairseq(Contestant):
    """fairseq's BART: trained whole, and searched with as it is, without any prefix."""

    def __init__(self, settings):
        super().__init__(settings)
        self.task = settings.make_task()
        self.model = self.build().to(settings.device)
        self.criterion = self.make_criterion()

    def build(self):
        model = BARTModel.build_model(tiny.make_args(f"full_bart_{self.settings.size}"), self.task)
        state = torch.load(Path(self.settings.base) / "model.pt", mmap=True)["model"]
        missing, _ = model.load_state_dict(state, strict=False)
        if missing:
            raise RuntimeError(f"the base lacks {missing[0]}")
        return model

    def make_criterion(self):
        return LabelSmoothedCrossEntropyCriterion(self.task, sentence_avg=False, label_smoothing=0.0)

    def make_optimizer(self):
        return Adam(self.trained(), lr=1e-5)

    def loss(self, source, target):
        previous = target.roll(1, dims=1)  # </s> <s> ...
        loss, tokens, _ = self.criterion(
            self.model,
            {
                "net_input": {**self._net_input(source), "prev_output_tokens": previous},
                "target": target,
                "ntokens": target.numel(),
            },
        )
        return loss / tokens

    def prepare_search(self):
        length = self.settings.forced - 1  # fairseq's lengths leave </s> out
        options = GenerationConfig(beam=self.settings.beam, max_len_a=0, max_len_b=length, min_len=length)
        self.model.eval().prepare_for_inference_(Namespace(generation=options))
        self.generator = self.make_generator(options)

    def make_generator(self, options: GenerationConfig):
        return SequenceGenerator(
            [self.model],
            self.task.target_dictionary,
            beam_size=options.beam,
            max_len_a=options.max_len_a,
            max_len_b=options.max_len_b,
            min_len=options.min_len,
        )

    def search(self, source):
        sample = {"net_input": self._net_input(source)}
        hypotheses = self.task.inference_step(self.generator, [self.model], sample)
        return torch.stack([best["tokens"] for best, *_ in hypotheses])

    def _net_input(self, source):
        return {"src_tokens": source, "src_lengths": source.new_full((len(source),), source.size(1))}

    def store(self, folder):
        torch.save({"model": self.model.state_dict()}, folder / "model.pt")


class OursStockSearch(StockFairseq):
    """This plugin's model, prefixes at all three sites, with stock fairseq's search."""

    sites = "encoder,decoder,cross"
    recomputing = False

    def build(self):
        return tiny.build(
            f"prefix_bart_{self.settings.size}",
            self.task,
            checkpoint_activations=self.recomputing,
            base_model=self.settings.base,
            prefix_sites=self.sites,
            prefix_length=self.settings.prefix_length,
            prefix_mid_dim=self.settings.mid_dim,
        )

    def make_criterion(self):
        return PrefixCrossEntropyCriterion(self.task, sentence_avg=False, label_smoothing=0.0)

    def store(self, folder):
        metadata, state = self.model.metadata(), self.model.state_dict()
        del state[METADATA_KEY]
        folded = method_of(metadata).fold(metadata, state)
        file = TunedFile(metadata, vars(self.model.args), {}, state, folded)
        write_export(file, str(folder / "prefix.safetensors"))


class Ours(OursStockSearch):
    """This plugin as its task decodes."""

    def make_generator(self, options):
        return self.task.build_generator([self.model], options)


class OursRecomputing(Ours):
    """With `--checkpoint-activations`."""

    recomputing = True


class OursManyTasks(Ours):
    """A bank of prefixes; the rows of a batch take turns with them."""

    tasks = 8

    def prepare_search(self):
        prefix = self.model.prefix
        tables = prefix.eval().folded()
        bank = PrefixBank()
        for number in range(self.tasks):
            one = Prefix(prefix.geometry, "flat")
            one.set_output({site: table * (1 + number / self.tasks) for site, table in tables.items()})
            bank.add(str(number), one.requires_grad_(False).eval())
        self.model.use(bank.to(self.settings.device))
        super().prepare_search()

    def search(self, source):
        self.model.prefix.select([str(row % self.tasks) for row in range(len(source))])
        return super().search(source)


class OursDecoder(Ours):
    """A prefix for the decoder's self-attention alone, which is all that PEFT has for BART."""

    sites = "decoder"


# transformers ---------------------------------------------------------------------------------------------------------


class HuggingFace(Contestant):
    """transformers' BART with a prefix of another library."""

    packages = ("transformers.models.bart.modeling_bart",)

    def __init__(self, settings):
        super().__init__(settings)
        import transformers

        transformers.logging.set_verbosity_error()
        shape = tiny.make_args(f"full_bart_{settings.size}")
        config = transformers.BartConfig(
            vocab_size=settings.vocabulary,
            max_position_embeddings=shape.max_source_positions,
            d_model=shape.encoder_embed_dim,
            encoder_layers=shape.encoder_layers,
            decoder_layers=shape.decoder_layers,
            encoder_attention_heads=shape.encoder_attention_heads,
            decoder_attention_heads=shape.decoder_attention_heads,
            encoder_ffn_dim=shape.encoder_ffn_embed_dim,
            decoder_ffn_dim=shape.decoder_ffn_embed_dim,
            dropout=shape.dropout,
            attention_dropout=shape.attention_dropout,
            activation_dropout=shape.relu_dropout,
            forced_bos_token_id=BOS,
        )
        torch.manual_seed(0)
        base = transformers.BartForConditionalGeneration(config)
        self.model = self.with_prefix(base).to(settings.device)

    def with_prefix(self, base):
        """The model with the library's prefix, ready to be trained."""
        raise NotImplementedError

    def make_optimizer(self):
        return torch.optim.AdamW(self.trained(), lr=1e-5)

    def loss(self, source, target):
        return self.model(input_ids=source, attention_mask=torch.ones_like(source), labels=target).loss

    def search(self, source):
        return self._generate(source, self.settings.forced)

    @torch.no_grad()
    def _generate(self, source: Tensor, tokens: int) -> Tensor:
        written = self.model.generate(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            num_beams=self.settings.beam,
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )
        return written[:, 1:]  # without the token that starts the decoder

    @torch.no_grad()
    def check(self):
        """Other values of what is trained have to give other scores: in a forward pass, and at every step of a search.
        (What this plugin's models compute is the matter of its tests.)
        """
        self.model.eval()
        source, target = (tokens[:, :8] for tokens in self.settings.make_batch(1))
        before = self._scores(source, target)
        kept = [parameter.clone() for parameter in self.trained()]
        for parameter in self.trained():
            parameter.add_(torch.randn_like(parameter))
        after = self._scores(source, target)
        for parameter, value in zip(self.trained(), kept, strict=True):
            parameter.copy_(value)
        for place in before:
            pairs = zip(before[place], after[place], strict=True)
            if not before[place] or any(torch.equal(one, other) for one, other in pairs):
                raise RuntimeError(f"the prefix does not take part in {place}")

    def _scores(self, source, target) -> dict[str, list[Tensor]]:
        """place -> what the output layer gives there, call by call."""
        runs = {"the forward pass": lambda: self.loss(source, target), "the search": lambda: self._generate(source, 4)}
        (output,) = (module for name, module in self.model.named_modules() if name.endswith("lm_head"))
        scores = {}
        for place, run in runs.items():
            recorded = scores[place] = []
            hook = output.register_forward_hook(lambda module, inputs, logits, to=recorded: to.append(logits.clone()))
            run()
            hook.remove()
        return scores


class PEFT(HuggingFace):
    """PEFT's prefix-tuning with its MLP. For BART it has a prefix in the decoder's self-attention only."""

    packages = ("peft", *HuggingFace.packages)

    def with_prefix(self, base):
        import peft

        config = peft.PrefixTuningConfig(
            task_type=peft.TaskType.SEQ_2_SEQ_LM,
            num_virtual_tokens=self.settings.prefix_length,
            prefix_projection=True,
            encoder_hidden_size=self.settings.mid_dim,
        )
        return peft.get_peft_model(base, config)

    def store(self, folder):
        self.model.save_pretrained(folder, save_embedding_layers=False)


class Adapters(HuggingFace):
    """adapters' prefix-tuning with its MLP, in encoder, decoder and cross-attention."""

    packages = ("adapters", *HuggingFace.packages)
    name = "prefix"

    def with_prefix(self, base):
        import adapters

        adapters.init(base)
        config = adapters.PrefixTuningConfig(
            encoder_prefix=True,
            cross_prefix=True,
            flat=False,
            prefix_length=self.settings.prefix_length,
            bottleneck_size=self.settings.mid_dim,
        )
        base.add_adapter(self.name, config=config)
        base.train_adapter(self.name)
        return base

    def store(self, folder):
        self.model.save_adapter(str(folder), self.name, with_head=False)  # the head is the base's


class AdaptersEjected(Adapters):
    """The same with the MLP taken off, which its users have to ask for."""

    def with_prefix(self, base):
        model = super().with_prefix(base)
        model.eject_prefix_tuning(self.name)
        return model


CONTESTANTS = {
    "stock fairseq": StockFairseq,
    "ours": Ours,
    "ours, decoder only": OursDecoder,
    "ours, stock search": OursStockSearch,
    "ours, recomputing": OursRecomputing,
    "ours, 8 tasks": OursManyTasks,
    "PEFT": PEFT,
    "adapters": Adapters,
    "adapters, ejected": AdaptersEjected,
}
