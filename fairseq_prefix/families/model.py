"""What the tuned models of all families have in common; bart.py and gpt2.py say how theirs differ.

`Tuned` freezes its base, `--base-model`, when it is built, and saves what is trained alone: a prefix (`Prefixed`), a
prompt (`Prompted`), adapters (`Adapted`) or the base's own top layers (`TopTuned`). `Whole` trains every parameter:
full fine-tuning of a base, or pretraining from scratch where none is given. All declare what they train
(`declared_parameters`); the criterion verifies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fairseq.models import register_model_architecture
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..attention.layers import PrefixAttention
from ..attention.linear import speed_up
from ..errors import UsageError
from ..files import checkpoint as files
from ..methods.adapter import Adapter
from ..methods.bank import PrefixBank
from ..methods.prefix import REPARAMETRISATIONS, Evaluated, Prefix, SiteGeometry, parse_sites
from ..methods.prompt import Prompt, PromptGeometry


class FromBase:
    """A model whose weights come from `--base-model`: the base's files, and a beam size that stays with the generator.

    A family's class derives from it and from fairseq's model, and says:
        family: names of the base's tensors, and how its files are read.
        sites: the attention sites that its prefixes feed.
        prompt_sites: before whose input its prompts come.
        default_task: the task that a checkpoint written without training is for.
    """

    family: files.Family
    sites: tuple[str, ...]
    prompt_sites: tuple[str, ...]
    default_task: str
    base_fingerprint: str | None = None
    added_parameters: set[str] = frozenset()  # names of those that are not the base's

    @staticmethod
    def source_room(args) -> int:
        """The longest source, in tokens, that `--max-source-tokens` may allow."""
        raise NotImplementedError

    def attentions(self) -> Iterator[tuple[str, int, nn.Module]]:
        """(site, layer, attention) of every attention of the model."""
        raise NotImplementedError

    def blocks(self) -> dict[str, nn.ModuleList]:
        """site -> the layers of that side of the model, bottom first."""
        raise NotImplementedError

    @classmethod
    def conventions_of(cls, args, task) -> dict:
        """What a prefix (or whatever is trained) gets used to, and must find again when it generates."""
        return task.conventions() if hasattr(task, "conventions") else {"bos": False}

    def set_beam_size(self, beam):
        """Do nothing: fairseq leaves the beam size on the attention, where it corrupts later teacher-forced passes."""

    def prepare_for_inference_(self, cfg):
        """fairseq's hook, called before a search.

        Raises:
            UsageError: alignments are asked for.
        """
        recorded = not any(isinstance(attention, PrefixAttention) for _, _, attention in self.attentions())
        if getattr(cfg.generation, "print_alignment", None) and not recorded:
            raise UsageError(
                f"--print-alignment is not available for --arch {self.args.arch}: it records no attention weights"
            )
        super().prepare_for_inference_(cfg)
        speed_up(self, packing=True)

    def load_base(self, args, task) -> None:
        """Fill the model from `args.base_model` and remember the fingerprints.

        Who has read the base already passes it on as `task.base`.
        """
        base = getattr(task, "base", None)
        if base is None:
            if not Path(args.base_model).exists():
                raise UsageError(
                    f"--base-model {args.base_model}: no such file or folder (when generating, say where it is with "
                    f"--model-overrides \"{{'base_model': 'PATH'}}\")"
                )
            base = files.read_base(args.base_model, self.family)
        files.load_into(self, base, task.source_dictionary, getattr(args, "arch", "?"))
        self.base_fingerprint = files.fingerprint(self, task.source_dictionary)

    @property
    def base_parameters(self) -> int:
        """How many parameters the base has (tied ones counted once)."""
        added = self.added_parameters
        return sum(p.numel() for name, p in self.named_parameters() if name not in added)


class Whole:
    """Every parameter is trained; the checkpoint is whole and does not need the base any more."""

    @classmethod
    def build_model(cls, args, task):
        """fairseq's hook. A base that was loaded is noted in `args.finetuned_from`, and the checkpoint forgets its
        path.
        """
        _refuse_unsupported(args)
        model = super().build_model(args, task)
        if args.base_model:
            model.load_base(args, task)
            args.finetuned_from, args.base_fingerprint, args.base_model = args.base_model, model.base_fingerprint, None
        else:
            _initialise_from_scratch(model)
        model.base_fingerprint = args.base_fingerprint
        return model

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq's.

        Raises:
            UsageError: it is not a whole model's, or another architecture's.
        """
        if files.METADATA_KEY in state_dict:
            noun = files.method_of(files.unpack_metadata(state_dict)).noun
            raise UsageError(f"the checkpoint holds a {noun}, but --arch {self.args.arch} expects a whole model")
        try:
            return super().load_state_dict(state_dict, strict, model_cfg, args)
        except KeyError as error:
            detail = f"it lacks {error}"
        except RuntimeError as error:
            detail = str(error).split("\n")[:2][-1].strip()  # the first line names the class alone
        raise UsageError(f"the checkpoint does not fit --arch {self.args.arch}: {detail[:400]}")

    @property
    def declared_parameters(self) -> set[str]:
        """Names of the parameters that this method trains."""
        return {name for name, _ in self.named_parameters()}

    @property
    def folded_parameters(self) -> int:
        """Parameters that a deployed task needs: all."""
        return self.base_parameters


class Tuned:
    """A frozen base, and the little that is trained for a task. The checkpoint holds that alone.

    A method derives from it and says:
        method: how its files look.
        untouched: the options with which nothing is trained, and the model is the base bit for bit.
    """

    method: files.Method
    untouched: dict

    @classmethod
    def build_model(cls, args, task):
        """fairseq's hook: build the base, load it, freeze it, add what is trained.

        The freeze has to happen here: fairseq makes the optimizer before the first forward pass.
        """
        _refuse_unsupported(args)
        if not args.base_model:
            raise UsageError(
                f"--arch {args.arch} needs --base-model PATH "
                "(when generating: --model-overrides \"{'base_model': 'PATH'}\")"
            )
        cls._prepare(args)
        model = super().build_model(args, task)
        model.load_base(args, task)
        model.requires_grad_(False)
        if args.base_dropout == "off":
            for module in model.modules():
                if isinstance(module, FairseqDropout):
                    module.p = 0.0
        model.dictionary_fingerprint = files.dictionary_fingerprint(task.source_dictionary.symbols)
        model.conventions = cls.conventions_of(args, task)
        model._add(args, task)
        if model.declared_parameters:  # without any the model stays the base bit for bit
            speed_up(model, packing=False)
        return model

    @classmethod
    def _prepare(cls, args) -> None:
        """Check and complete the method's options before the base is built."""

    def _add(self, args, task) -> None:
        """Add what is trained to the frozen base."""
        raise NotImplementedError

    @property
    def declared_parameters(self) -> set[str]:
        """Names of the parameters that this method trains."""
        raise NotImplementedError

    @property
    def added_parameters(self) -> set[str]:
        return self.declared_parameters

    @property
    def folded_parameters(self) -> int:
        """Parameters that a deployed task needs."""
        declared = self.declared_parameters
        return sum(p.numel() for name, p in self.named_parameters() if name in declared)

    @property
    def geometry(self) -> dict[str, dict]:
        """site -> the shape of what is trained there, as plain numbers; empty where nothing is."""
        raise NotImplementedError

    def metadata(self) -> dict:
        """What a file of this model says of itself: base, dictionary, geometry, conventions."""
        return {
            "format": files.FORMAT,
            **({} if self.method is files.PREFIX else {"method": self.method.name}),
            "arch": self.args.arch,
            "base_fingerprint": self.base_fingerprint,
            "base_parameters": self.base_parameters,
            "dictionary_fingerprint": self.dictionary_fingerprint,
            "geometry": self.geometry,
            "conventions": self.conventions,
        }

    def state_dict(self, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """What is trained and what it was trained for; never the base.

        Args:
            destination: where to add that; torch passes it on to the parts of a module.
            prefix: comes before the names there.
            keep_vars: parameters themselves, and not detached tensors.
        """
        destination, declared = {} if destination is None else destination, self.declared_parameters
        for name, value in super().state_dict(keep_vars=keep_vars).items():
            if name in declared:
                destination[prefix + name] = value
        destination[prefix + files.METADATA_KEY] = files.pack_metadata(self.metadata())
        return destination

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """torch's hook where the model is a part of another module: load what is trained; the base stays as it is."""
        own = [name for name in state_dict if name.startswith(prefix)]
        self.load_state_dict({name.removeprefix(prefix): state_dict.pop(name) for name in own})
        for name, value in super().state_dict().items():
            state_dict[prefix + name] = value

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load a checkpoint after verifying that it was trained for this base, dictionary and geometry.

        Raises:
            UsageError: it was not; the sentence names what differs.
        """
        files.verify(state_dict, self)
        own = {name: tensor for name, tensor in state_dict.items() if name != files.METADATA_KEY}
        declared, parameters = self.declared_parameters, dict(self.named_parameters())
        for name in sorted(own.keys() ^ declared):
            what = f"lacks {name}" if name in declared else f"holds {name}, which is not trained here"
            raise UsageError(f"the {self.method.noun} in the checkpoint {what}")
        for name, tensor in own.items():
            if tensor.shape != parameters[name].shape:
                raise UsageError(f"the {self.method.noun} in the checkpoint has another shape of {name}")
        self.train(self.training)  # what was evaluated before is forgotten
        with torch.no_grad():
            for name, tensor in own.items():
                parameters[name].copy_(tensor)


class VirtualTokens(Tuned):
    """What prefixes and prompts have in common: virtual tokens, all in one module, that is evaluated once a pass."""

    @property
    def virtual_tokens(self) -> Evaluated:
        return getattr(self, self.method.name)

    def forward(self, *args, **kwargs):
        """The base's forward pass, with the virtual tokens evaluated once for the whole batch."""
        self.virtual_tokens.refresh()
        return super().forward(*args, **kwargs)

    @property
    def declared_parameters(self) -> set[str]:
        return {f"{self.method.name}.{name}" for name, _ in self.virtual_tokens.named_parameters()}

    @property
    def folded_parameters(self) -> int:
        """Parameters that a deployed task needs: the folded virtual tokens."""
        return self.virtual_tokens.folded_size

    @property
    def geometry(self) -> dict[str, dict]:
        return {site: vars(shape).copy() for site, shape in self.virtual_tokens.geometry.items()}

    def metadata(self) -> dict:
        tokens = self.virtual_tokens
        mid_dim = tokens.mid_dim if tokens.reparam == "mlp" else None
        return {**super().metadata(), "reparam": tokens.reparam, "mid_dim": mid_dim}

    def _attach(self, prefix) -> None:
        for site, layer, attention in self.attentions():
            if isinstance(attention, PrefixAttention):
                attention.attach(prefix, site, layer)


class Prefixed(VirtualTokens):
    """A prefix for each attention site (paper, section 4; parametrisation as in the original code).

    With no prefix anywhere (all lengths 0) the outputs are the base's bit for bit.
    """

    method = files.PREFIX
    untouched = {"prefix_length": 0, "prefix_reparam": "flat"}

    @classmethod
    def _prepare(cls, args) -> None:
        args.prefix_site_lengths = _site_lengths(args, cls.sites)  # travels to where the layers are built
        if args.prefix_reparam == "mlp":
            _require("--prefix-mid-dim", args.prefix_mid_dim, 1)
        if not 0 <= args.prefix_dropout < 1:
            raise UsageError(f"--prefix-dropout is {args.prefix_dropout}; expected 0 or more, and less than 1")

    def _add(self, args, task) -> None:
        lengths = args.prefix_site_lengths
        geometry = {site: self.site_geometry(site, length) for site, length in lengths.items()}
        self.prefix = Prefix(geometry, args.prefix_reparam, args.prefix_mid_dim, args.prefix_dropout)
        self._attach(self.prefix)
        if args.prefix_init == "words":
            self.prefix.set_output(self._activations_of(_encode_words(args, lengths, task)))
            # The checkpoint's prefix has started already: whoever loads it needs neither the words nor their BPE.
            args.prefix_init, args.prefix_initialised_from = "random", args.prefix_init_text

    def use(self, prefix: Prefix | PrefixBank) -> None:
        """Let every attention read from this prefix, or bank of prefixes, instead of the model's own.

        Raises:
            UsageError: the model was built for no prefix, of fairseq's own attention.
        """
        if not any(isinstance(attention, PrefixAttention) for _, _, attention in self.attentions()):
            raise UsageError("the model was built without a prefix; build it with --prefix-length 1 or more")
        self.prefix = prefix
        self._attach(prefix)

    def state_dict(self, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """As that of every tuned model.

        Raises:
            UsageError: it is a bank, whose prefixes are files of their own.
        """
        if isinstance(self.prefix, PrefixBank):
            raise UsageError("a bank is not saved as a whole; save each prefix of it after model.use(bank[name])")
        return super().state_dict(destination, prefix, keep_vars)

    def site_geometry(self, site: str, length: int) -> SiteGeometry:
        attentions = [attention for own, _, attention in self.attentions() if own == site]
        return SiteGeometry(length, len(attentions), attentions[0].num_heads, attentions[0].head_dim)

    def word_room(self) -> int:
        """How many words the base can read at once for an initialisation."""
        raise NotImplementedError

    def read_words(self, text: list[int]) -> dict[str, int]:
        """Let the bare base read `text`; returns, per site, the column of the keys where the words begin."""
        raise NotImplementedError

    @torch.no_grad()
    def _activations_of(self, words: list[int]) -> dict[str, Tensor]:
        """Keys and values that the frozen base computes for real words, per site P x (L*2*D).

        The words are repeated up to the prefix's length and read by the base as one text, so that every virtual token
        has an activation of its own.
        """
        longest = max(site_geometry.length for site_geometry in self.prefix.geometry.values())
        wanted = min(longest, self.word_room())
        text = (words * -(-wanted // len(words)))[:wanted]
        with self._recorded_projections() as recorded:
            first = self.read_words(text)
        columns: dict[str, list[Tensor]] = {site: [] for site in self.sites}
        for site, _, attention in self.attentions():
            for projection in (attention.k_proj, attention.v_proj):
                output = recorded[projection][:, 0]  # T x D
                columns[site].append(output[first[site] : first[site] + len(text)])
        activations = {}
        for site, site_geometry in self.prefix.geometry.items():
            table = torch.cat(columns[site], dim=1)  # len(text) x (L*2*D)
            repeats = -(-site_geometry.length // len(text))
            activations[site] = table.repeat(repeats, 1)[: site_geometry.length]
        return activations

    @contextmanager
    def _recorded_projections(self):
        """Meanwhile the model is the bare base in evaluation, and what its projections put out is kept."""
        was_training, recorded = self.training, {}
        hooks = [
            projection.register_forward_hook(lambda module, _, output: recorded.__setitem__(module, output))
            for _, _, attention in self.attentions()
            for projection in (attention.k_proj, attention.v_proj)
        ]
        self.eval()
        self._attach(Prefix({}))
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()
            self._attach(self.prefix)
            self.train(was_training)


class Prompted(VirtualTokens):
    """Virtual tokens at the embeddings alone; everything above them is computed by the frozen base.

    With no prompt anywhere the outputs are the base's bit for bit.
    """

    method = files.PROMPT
    untouched = {"prompt_length": 0, "prompt_reparam": "flat"}

    @classmethod
    def _prepare(cls, args) -> None:
        chosen = _parse_sites("--prompt-sites", args.prompt_sites, cls.prompt_sites)
        _require("--prompt-length", args.prompt_length, 0)
        if args.prompt_reparam == "mlp":
            _require("--prompt-mid-dim", args.prompt_mid_dim, 1)
        args.prompt_site_lengths = {site: args.prompt_length if site in chosen else 0 for site in cls.prompt_sites}

    def _add(self, args, task) -> None:
        lengths = args.prompt_site_lengths
        geometry = {site: PromptGeometry(length, self._width(site)) for site, length in lengths.items()}
        self.prompt = self._make_prompt(geometry, args.prompt_reparam, args.prompt_mid_dim)

    def _width(self, site: str) -> int:
        return getattr(self, site).embed_tokens.embedding_dim

    def _make_prompt(self, geometry: dict[str, PromptGeometry], reparam: str, mid_dim: int) -> Prompt:
        """The prompt, attached to where the family reads it."""
        raise NotImplementedError


class OwnTensors(Tuned):
    """What is trained is exported as it is, under its names in the model, which the file says."""

    def metadata(self) -> dict:
        declared = self.declared_parameters
        trained = {name: parameter for name, parameter in self.named_parameters() if name in declared}
        return {**super().metadata(), "tensors": files.tensor_shapes(trained)}


class Adapted(OwnTensors):
    """An adapter after every layer. Fresh adapters are the identity: training starts from the base bit for bit."""

    method = files.ADAPTER
    untouched = {"adapter_dim": 0}

    @classmethod
    def _prepare(cls, args) -> None:
        _require("--adapter-dim", args.adapter_dim, 0)

    def _add(self, args, task) -> None:
        self.adapter_dim = args.adapter_dim
        if self.adapter_dim:
            for site, layers in self.blocks().items():
                for layer in layers:
                    layer.adapter = Adapter(getattr(self, site).embed_tokens.embedding_dim, self.adapter_dim)

    @property
    def declared_parameters(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if ".adapter." in name}

    @property
    def geometry(self) -> dict[str, dict]:
        if not self.adapter_dim:
            return {}
        return {
            site: {
                "dim": self.adapter_dim,
                "layers": len(layers),
                "embed_dim": getattr(self, site).embed_tokens.embedding_dim,
            }
            for site, layers in self.blocks().items()
        }


class TopTuned(OwnTensors):
    """The last N layers of the decoder are trained, with the norm after them where there is one; all else is frozen.

    Nothing below the first of these layers is differentiated, unless the embeddings are trained too.
    """

    method = files.TOP
    untouched = {"top_layers": 0, "top_embedding": "frozen"}

    @classmethod
    def _prepare(cls, args) -> None:
        if not 0 <= args.top_layers <= args.decoder_layers:
            raise UsageError(f"--top-layers is {args.top_layers}, but the decoder has {args.decoder_layers} layers")

    def _add(self, args, task) -> None:
        count, names = args.top_layers, set()
        if count:
            first = len(self.decoder.layers) - count
            starts = [f"decoder.layers.{number}." for number in range(first, len(self.decoder.layers))]
            names = {n for n, _ in self.named_parameters() if n.startswith((*starts, "decoder.layer_norm."))}
        if args.top_embedding == "trained":
            names.add(self.family.embedding)
        self._trained = names
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in names)

    @property
    def declared_parameters(self) -> set[str]:
        return set(self._trained)

    @property
    def added_parameters(self) -> set[str]:
        return set()

    @property
    def geometry(self) -> dict[str, dict]:
        if not self._trained:
            return {}
        embedding = self.decoder.embed_tokens
        return {
            "decoder": {
                "layers": self.args.top_layers,
                "of": len(self.decoder.layers),
                "embed_dim": embedding.embedding_dim,
                "embeddings": embedding.num_embeddings if self.family.embedding in self._trained else 0,
            }
        }


# Options --------------------------------------------------------------------------------------------------------------


# The original trains these as one fine-tunes, with the base's dropout; for GPT-2 only a prefix's base has none.
ADAPTER_DEFAULTS = {"adapter_dim": 64, "base_dropout": "on"}
TOP_DEFAULTS = {"top_layers": 2, "top_embedding": "frozen", "base_dropout": "on"}


def add_base_argument(parser, what: str) -> None:
    """`--base-model`; `what` names the family's files."""
    parser.add_argument("--base-model", metavar="PATH", help=what)


def add_prefix_arguments(parser, defaults: dict, sites: tuple[str, ...]) -> None:
    """The prefix's options, those per site only where there is more than one."""
    add = parser.add_argument
    add("--prefix-length", type=int, metavar="P", help=f"virtual tokens (default: {defaults['prefix_length']})")
    if len(sites) > 1:
        add("--prefix-sites", metavar="SITES", help=f"which attentions get a prefix (default: {','.join(sites)})")
        for site in sites:
            help_text = f"virtual tokens at the {site} site, if different"
            add(f"--prefix-{site}-length", type=int, metavar="P", help=help_text)
    add(
        "--prefix-reparam",
        choices=REPARAMETRISATIONS,
        help="train the prefix through an MLP that is dropped afterwards, or directly (default: mlp)",
    )
    mid_dim = defaults["prefix_mid_dim"]
    add("--prefix-mid-dim", type=int, metavar="N", help=f"hidden width of the MLP (default: {mid_dim})")
    add("--prefix-dropout", type=float, metavar="D", help="dropout on the keys and values produced (default: 0)")
    add(
        "--prefix-init",
        choices=("random", "words"),
        help="start from random numbers or from the frozen base's activations of real words (default: random)",
    )
    add(
        "--prefix-init-text",
        metavar="TEXT",
        help="the words, encoded by --bpe or already subwords of the dictionary; repeated to the prefix's length",
    )
    add_dropout_argument(parser, defaults)


def add_dropout_argument(parser, defaults: dict) -> None:
    """`--base-dropout`."""
    parser.add_argument(
        "--base-dropout",
        choices=("on", "off"),
        help="whether the frozen base's own dropout stays on in training "
        f"(default: {defaults['base_dropout']}, as originally for this family)",
    )


def add_prompt_arguments(parser, defaults: dict, sites: tuple[str, ...]) -> None:
    """The prompt's options."""
    add = parser.add_argument
    add("--prompt-length", type=int, metavar="P", help=f"virtual tokens (default: {defaults['prompt_length']})")
    if len(sites) > 1:
        add("--prompt-sites", metavar="SITES", help=f"before whose input they come (default: {','.join(sites)})")
    add(
        "--prompt-reparam",
        choices=REPARAMETRISATIONS,
        help="train the embeddings through an MLP that is dropped afterwards, or directly (default: mlp)",
    )
    mid_dim = defaults["prompt_mid_dim"]
    add("--prompt-mid-dim", type=int, metavar="N", help=f"hidden width of the MLP (default: {mid_dim})")
    add_dropout_argument(parser, defaults)


def add_adapter_arguments(parser) -> None:
    """The adapters' options."""
    help_text = f"width of the bottleneck (default: {ADAPTER_DEFAULTS['adapter_dim']})"
    parser.add_argument("--adapter-dim", type=int, metavar="N", help=help_text)
    add_dropout_argument(parser, ADAPTER_DEFAULTS)


def add_top_arguments(parser) -> None:
    """The options of training the top layers."""
    help_text = f"how many of the decoder's last layers are trained (default: {TOP_DEFAULTS['top_layers']})"
    parser.add_argument("--top-layers", type=int, metavar="N", help=help_text)
    parser.add_argument(
        "--top-embedding",
        choices=("frozen", "trained"),
        help="whether the embeddings, which are the output layer too, are trained besides (default: frozen)",
    )
    add_dropout_argument(parser, TOP_DEFAULTS)


def prefix_defaults(args, defaults: dict, sites: tuple[str, ...]) -> None:
    """Complete the options of a `Prefixed` model; `defaults` are the family's own."""
    per_site = dict.fromkeys(f"prefix_{site}_length" for site in sites)
    common = {
        "base_model": None,
        "prefix_sites": ",".join(sites),
        "prefix_reparam": "mlp",
        "prefix_dropout": 0.0,
        "prefix_init": "random",
        "prefix_init_text": None,
    }
    set_defaults(args, **common, **per_site, **defaults)


def prompt_defaults(args, defaults: dict, sites: tuple[str, ...]) -> None:
    """Complete the options of a `Prompted` model; `defaults` are the family's own."""
    set_defaults(args, base_model=None, prompt_sites=",".join(sites), prompt_reparam="mlp", **defaults)


def adapter_defaults(args) -> None:
    """Complete the options of an `Adapted` model."""
    set_defaults(args, base_model=None, **ADAPTER_DEFAULTS)


def top_defaults(args) -> None:
    """Complete the options of a `TopTuned` model."""
    set_defaults(args, base_model=None, **TOP_DEFAULTS)


def set_defaults(args, **values) -> None:
    """What fairseq's architectures do: each option that was not given gets its value."""
    for name, value in values.items():
        setattr(args, name, getattr(args, name, value))


def register_architectures(model: str, sizes: dict[str, Callable], options: Callable) -> None:
    """`{model}_{size}` for every size; `options` completes the model's own options before the size's."""
    for size, architecture in sizes.items():

        def complete(args, architecture=architecture):
            options(args)
            architecture(args)

        register_model_architecture(model, f"{model}_{size}")(complete)


def whole_defaults(args) -> None:
    """Complete the options of a `Whole` model."""
    set_defaults(args, base_model=None, finetuned_from=None, base_fingerprint=None)


def _require(option: str, value: int, least: int) -> None:
    """Refuse a number below `least`, which is 0 or 1."""
    if value < least:
        raise UsageError(f"{option} is {value}; it {'has to be at least 1' if least else 'cannot be negative'}")


def _parse_sites(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    try:
        return parse_sites(text, allowed)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _site_lengths(args, sites: tuple[str, ...]) -> dict[str, int]:
    """site -> prefix length, from the options."""
    chosen = _parse_sites("--prefix-sites", args.prefix_sites, sites)
    lengths = {}
    for site in sites:
        own = getattr(args, f"prefix_{site}_length")
        if own is not None and site not in chosen:
            raise UsageError(
                f"--prefix-{site}-length is given, but --prefix-sites {args.prefix_sites} leaves {site} out"
            )
        lengths[site] = (args.prefix_length if own is None else own) if site in chosen else 0
        _require("--prefix-length" if own is None else f"--prefix-{site}-length", lengths[site], 0)
    return lengths


def _encode_words(args, lengths: dict[str, int], task) -> list[int]:
    """Token ids of `--prefix-init-text`."""
    if not any(lengths.values()):
        raise UsageError("--prefix-init words makes no sense with a prefix of length 0")
    text = args.prefix_init_text
    if not text:
        raise UsageError("--prefix-init words needs --prefix-init-text TEXT")
    bpe, dictionary = task.build_bpe(args), task.source_dictionary
    subwords = bpe.encode(text) if bpe is not None else text
    ids = dictionary.encode_line(subwords, add_if_not_exist=False, append_eos=False).tolist()
    if not ids or dictionary.unk() in ids:
        unknown = [word for word in subwords.split() if dictionary.index(word) == dictionary.unk()]
        raise UsageError(
            f"--prefix-init-text: {' '.join(unknown[:3])!r} is not in the dictionary; "
            "pass --bpe with the base's vocabulary"
        )
    return ids


def _refuse_unsupported(args) -> None:
    """Options of fairseq's transformer that would change the base or bypass the prefix."""
    unsupported = (
        *("encoder_layerdrop", "decoder_layerdrop", "encoder_layers_to_keep", "decoder_layers_to_keep"),
        *("quant_noise_pq", "quant_noise_scalar", "cross_self_attention", "no_cross_attention", "offload_activations"),
        *("encoder_xformers_att_config", "decoder_xformers_att_config"),
    )
    for name in unsupported:
        if getattr(args, name, None):
            raise UsageError(f"--{name.replace('_', '-')} is not supported by --arch {args.arch}; leave it out")


def _initialise_from_scratch(model: nn.Module) -> None:
    """Xavier for every linear layer: N(0, 0.02) does not learn to copy in a model of demo size."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.decoder.output_projection:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
