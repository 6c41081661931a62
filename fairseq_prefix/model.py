"""What prefix-tuned models of all families have in common; bart.py and gpt2.py say how theirs differ.

`Prefixed` freezes its base, `--base-model`, when it is built, and saves the prefix alone. `Whole` trains every
parameter: full fine-tuning of a base, or pretraining from scratch where none is given. Both declare what they train
(`declared_parameters`); the criterion verifies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from fairseq.data import encoders
from fairseq.models import register_model_architecture
from fairseq.modules import FairseqDropout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import checkpoint as files
from .attention import PrefixAttention
from .errors import UsageError
from .prefix import REPARAMETRISATIONS, Prefix, SiteGeometry, parse_sites


class FromBase:
    """A model whose weights come from `--base-model`: the base's files, and a beam size that stays with the generator.

    A family's class derives from it and from fairseq's model, and says:
        family: names of the base's tensors, and how its files are read.
        sites: the attention sites that its prefixes feed.
        default_task: the task that a checkpoint written without training is for.
    """

    family: files.Family
    sites: tuple[str, ...]
    default_task: str
    base_fingerprint: str | None = None

    @staticmethod
    def source_room(args) -> int:
        """The longest source, in tokens, that `--max-source-tokens` may allow."""
        raise NotImplementedError

    def attentions(self) -> Iterator[tuple[str, int, nn.Module]]:
        """(site, layer, attention) of every attention of the model."""
        raise NotImplementedError

    def set_beam_size(self, beam):
        """Do nothing: fairseq leaves the beam size on the attention, where it corrupts later teacher-forced passes."""

    def load_base(self, args, task) -> None:
        """Fill the model from `args.base_model` and remember the fingerprints."""
        base = files.read_base(args.base_model, self.family)
        files.load_into(self, base, task.source_dictionary, getattr(args, "arch", "?"))
        self.base_fingerprint = files.fingerprint(self, task.source_dictionary)

    @property
    def base_parameters(self) -> int:
        """How many parameters the base has (tied ones counted once)."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("prefix."))


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

    @property
    def declared_parameters(self) -> set[str]:
        """Names of the parameters that this method trains."""
        return {name for name, _ in self.named_parameters()}

    @property
    def folded_parameters(self) -> int:
        """Parameters that a deployed task needs: all."""
        return self.base_parameters


class Prefixed:
    """A frozen base and a prefix for each attention site (paper, section 4; parametrisation as in the original code).

    With no prefix anywhere (all lengths 0) the outputs are the base's bit for bit.
    """

    @classmethod
    def build_model(cls, args, task):
        """fairseq's hook: build the base, load it, freeze it, add the prefix.

        The freeze has to happen here: fairseq makes the optimizer before the first forward pass.
        """
        _refuse_unsupported(args)
        if not args.base_model:
            raise UsageError(
                f"--arch {args.arch} needs --base-model PATH "
                "(when generating: --model-overrides \"{'base_model': 'PATH'}\")"
            )
        lengths = _site_lengths(args, cls.sites)
        args.prefix_site_lengths = lengths  # travels to where the layers are built
        model = super().build_model(args, task)
        model.load_base(args, task)
        model.requires_grad_(False)
        if args.base_dropout == "off":
            for module in model.modules():
                if isinstance(module, FairseqDropout):
                    module.p = 0.0

        model.prefix = Prefix(
            {site: model._site_geometry(site, length) for site, length in lengths.items()},
            args.prefix_reparam,
            args.prefix_mid_dim,
            args.prefix_dropout,
        )
        model._attach(model.prefix)
        model.dictionary_fingerprint = files.dictionary_fingerprint(task.source_dictionary.symbols)
        model.conventions = cls.conventions_of(args, task)
        if args.prefix_init == "words":
            model.prefix.set_output(model._activations_of(_encode_words(args, lengths, task.source_dictionary)))
            # The checkpoint's prefix has started already: whoever loads it needs neither the words nor their BPE.
            args.prefix_init, args.prefix_initialised_from = "random", args.prefix_init_text
        return model

    @staticmethod
    def conventions_of(args, task) -> dict:
        """What a prefix gets used to, and must find again when it generates."""
        return task.conventions() if hasattr(task, "conventions") else {"bos": False}

    def _site_geometry(self, site: str, length: int) -> SiteGeometry:
        attentions = [attention for own, _, attention in self.attentions() if own == site]
        return SiteGeometry(length, len(attentions), attentions[0].num_heads, attentions[0].head_dim)

    def _attach(self, prefix: Prefix) -> None:
        for site, layer, attention in self.attentions():
            if isinstance(attention, PrefixAttention):
                attention.attach(prefix, site, layer)

    def forward(self, *args, **kwargs):
        """The base's forward pass, with the prefix evaluated once for the whole batch."""
        self.prefix.refresh()
        return super().forward(*args, **kwargs)

    @property
    def declared_parameters(self) -> set[str]:
        """Names of the parameters that this method trains."""
        return {f"prefix.{name}" for name, _ in self.prefix.named_parameters()}

    @property
    def folded_parameters(self) -> int:
        """Parameters that a deployed task needs: the folded prefix."""
        return self.prefix.folded_size

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

    def state_dict(self, *args, **kwargs):
        """The prefix and what it was trained for; never the base."""
        state = super().state_dict(*args, **kwargs)
        kept = {name: value for name, value in state.items() if name.startswith("prefix.")}
        kept[files.METADATA_KEY] = files.pack_metadata(self.metadata())
        return kept

    def metadata(self) -> dict:
        """What a prefix file says of itself: base, dictionary, geometry, conventions."""
        return files.prefix_metadata(self)

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """Load a checkpoint's prefix after verifying that it was trained for this base, dictionary and geometry.

        Raises:
            UsageError: it was not; the sentence names what differs.
        """
        files.verify(state_dict, self)
        own = {name.removeprefix("prefix."): v for name, v in state_dict.items() if name != files.METADATA_KEY}
        self.prefix._forget()
        return self.prefix.load_state_dict(own, strict=True)

    def prepare_for_inference_(self, cfg):
        if getattr(cfg.generation, "print_alignment", None):
            raise UsageError("--print-alignment is not available: attention weights are not recorded")
        super().prepare_for_inference_(cfg)


def with_checkpointing(layer: nn.Module, cfg) -> nn.Module:
    """Recompute the layer's activations in the backward pass if `--checkpoint-activations` asks for it.

    fairseq's own wrapper is a re-entrant autograd function: with frozen embeddings its inputs need no gradient, and a
    prefix reaching it through a closure would get none.
    """
    if cfg.checkpoint_activations:
        plain = layer.forward

        def forward(*args, **kwargs):
            if not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)

        layer.forward = forward
    return layer


# Options --------------------------------------------------------------------------------------------------------------


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
    add(
        "--base-dropout",
        choices=("on", "off"),
        help="whether the frozen base's own dropout stays on in training "
        f"(default: {defaults['base_dropout']}, as originally for this family)",
    )


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


def _site_lengths(args, sites: tuple[str, ...]) -> dict[str, int]:
    """site -> prefix length, from the options."""
    try:
        chosen = parse_sites(args.prefix_sites)
    except ValueError as error:
        raise UsageError(f"--prefix-sites: {error}") from None
    lengths = {}
    for site in sites:
        own = getattr(args, f"prefix_{site}_length")
        if own is not None and site not in chosen:
            raise UsageError(
                f"--prefix-{site}-length is given, but --prefix-sites {args.prefix_sites} leaves {site} out"
            )
        lengths[site] = (args.prefix_length if own is None else own) if site in chosen else 0
        if lengths[site] < 0:
            raise UsageError(f"the prefix length of the {site} site is {lengths[site]}; it cannot be negative")
    return lengths


def _encode_words(args, lengths: dict[str, int], dictionary) -> list[int]:
    """Token ids of `--prefix-init-text`."""
    if not any(lengths.values()):
        raise UsageError("--prefix-init words makes no sense with a prefix of length 0")
    text = args.prefix_init_text
    if not text:
        raise UsageError("--prefix-init words needs --prefix-init-text TEXT")
    bpe = encoders.build_bpe(args)
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
