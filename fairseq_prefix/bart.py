"""BART with a prefix (`prefix_bart_*`) and BART trained whole (`full_bart_*`).

`prefix_bart` freezes its base, `--base-model`, when it is built, and saves the prefix alone. `full_bart` trains every
parameter: full fine-tuning of a base, or pretraining from scratch where none is given. Both declare what they train
(`declared_parameters`); the criterion verifies it.
"""

from __future__ import annotations

import logging

import torch
from fairseq.data import encoders
from fairseq.models import register_model, register_model_architecture
from fairseq.models.bart.model import BARTModel, bart_base_architecture, bart_large_architecture
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoder,
    TransformerDecoderBase,
    TransformerEncoder,
    TransformerEncoderBase,
)
from fairseq.modules import FairseqDropout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import checkpoint as files
from .attention import PrefixAttention, PrefixDecoderLayer, PrefixEncoderLayer
from .errors import UsageError
from .prefix import REPARAMETRISATIONS, SITES, Prefix, SiteGeometry, parse_sites

logger = logging.getLogger(__name__)


class BaseBART(BARTModel):
    """What both have in common: the base's files, and a beam size that stays with the generator."""

    base_fingerprint: str | None = None

    @staticmethod
    def add_args(parser):
        """BART's options, and where the base is."""
        BARTModel.add_args(parser)
        parser.add_argument(
            "--base-model",
            metavar="PATH",
            help="the pretrained BART: folder with model.pt and dict.txt, a model.pt, or a Hugging Face folder",
        )

    def forward(self, *args, return_all_hiddens: bool = False, **kwargs):
        """As BART's; hidden states are kept only on request."""
        return super().forward(*args, return_all_hiddens=return_all_hiddens, **kwargs)

    def set_beam_size(self, beam):
        """Do nothing: fairseq leaves the beam size on the attention, where it corrupts later teacher-forced passes."""

    def max_decoder_positions(self):
        return self.decoder.max_positions()

    def load_base(self, args, task) -> None:
        """Fill encoder and decoder from `args.base_model` and remember the fingerprints."""
        base = files.read_base(args.base_model)
        files.load_into(self, base, task.source_dictionary, getattr(args, "arch", "?"))
        self.base_fingerprint = files.fingerprint(self, task.source_dictionary)

    @property
    def base_parameters(self) -> int:
        """How many parameters the base has (tied ones counted once)."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("prefix."))


@register_model("full_bart")
class FullBARTModel(BaseBART):
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


@register_model("prefix_bart")
class PrefixBARTModel(BaseBART):
    """A frozen BART and a prefix for each attention site (paper, section 4; parametrisation as in the original code).

    With no prefix anywhere (all lengths 0) the layers are fairseq's own, and the outputs the base's bit for bit.
    """

    @staticmethod
    def add_args(parser):
        """BART's options and the prefix's."""
        BaseBART.add_args(parser)
        add = parser.add_argument
        add("--prefix-length", type=int, metavar="P", help="virtual tokens at each site (default: 200)")
        add("--prefix-sites", metavar="SITES", help="which attentions get a prefix (default: encoder,decoder,cross)")
        for site in SITES:
            add(
                f"--prefix-{site}-length",
                type=int,
                metavar="P",
                help=f"virtual tokens at the {site} site, if different",
            )
        add(
            "--prefix-reparam",
            choices=REPARAMETRISATIONS,
            help="train the prefix through an MLP that is dropped afterwards, or directly (default: mlp)",
        )
        add("--prefix-mid-dim", type=int, metavar="N", help="hidden width of the MLP (default: 800)")
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
            help="whether the frozen base's own dropout stays on in training (default: on, as originally for BART)",
        )

    @classmethod
    def build_model(cls, args, task):
        """fairseq's hook: build the base, load it, freeze it, and put the prefix on top.

        The freeze has to happen here: fairseq makes the optimizer before the first forward pass.
        """
        _refuse_unsupported(args)
        if not args.base_model:
            raise UsageError(
                f"--arch {args.arch} needs --base-model PATH "
                "(when generating: --model-overrides \"{'base_model': 'PATH'}\")"
            )
        lengths = _site_lengths(args)
        args.prefix_site_lengths = lengths  # travels to build_encoder and build_decoder
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
        model._attach_prefix()
        model.dictionary_fingerprint = files.dictionary_fingerprint(task.source_dictionary.symbols)
        model.conventions = task.conventions() if hasattr(task, "conventions") else {"bos": False}
        if args.prefix_init == "words":
            model.prefix.set_output(model._activations_of(_encode_words(args, task.source_dictionary)))
            # The checkpoint's prefix has started already: whoever loads it needs neither the words nor their BPE.
            args.prefix_init, args.prefix_initialised_from = "random", args.prefix_init_text
        return model

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        encoder = PrefixEncoder if any(cfg.prefix_site_lengths.values()) else TransformerEncoder
        return encoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        decoder = PrefixDecoder if any(cfg.prefix_site_lengths.values()) else TransformerDecoder
        return decoder(cfg, tgt_dict, embed_tokens)

    def _site_geometry(self, site: str, length: int) -> SiteGeometry:
        layers = (self.encoder if site == "encoder" else self.decoder).layers
        attention = layers[0].encoder_attn if site == "cross" else layers[0].self_attn
        return SiteGeometry(length, len(layers), attention.num_heads, attention.head_dim)

    def _attentions(self):
        """(site, layer, attention) of every attention of the model."""
        for layer, module in enumerate(self.encoder.layers):
            yield "encoder", layer, module.self_attn
        for layer, module in enumerate(self.decoder.layers):
            yield "decoder", layer, module.self_attn
            yield "cross", layer, module.encoder_attn

    def _attach_prefix(self) -> None:
        for site, layer, attention in self._attentions():
            if isinstance(attention, PrefixAttention):
                attention.attach(self.prefix, site, layer)

    def forward(self, *args, **kwargs):
        """BART's forward pass, with the prefix evaluated once for the whole batch."""
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

    @torch.no_grad()
    def _activations_of(self, words: list[int]) -> dict[str, Tensor]:
        """Keys and values that the frozen base computes for real words, per site P x (L*2*D).

        The words are repeated up to the prefix's length and read by the base as one text (so that every virtual token
        has an activation of its own), between `<s>` and `</s>` as in pretraining: encoder keys from the encoder,
        decoder keys from the decoder fed with the same words, cross keys from the encoder's output.
        """
        dictionary, was_training = self.encoder.dictionary, self.training
        longest = max(site_geometry.length for site_geometry in self.prefix.geometry.values())
        room = min(self.encoder.max_positions(), self.decoder.max_positions()) - 2  # <s> and </s>
        text = (words * -(-min(longest, room) // len(words)))[: min(longest, room)]
        source = torch.tensor([[dictionary.bos(), *text, dictionary.eos()]])
        previous = torch.tensor([[dictionary.eos(), dictionary.bos(), *text]])

        recorded: dict[nn.Module, Tensor] = {}
        hooks = [
            projection.register_forward_hook(lambda module, _, output: recorded.__setitem__(module, output))
            for _, _, attention in self._attentions()
            for projection in (attention.k_proj, attention.v_proj)
        ]
        self.eval()
        detached = [attention._attached for _, _, attention in self._attentions()]
        bare = Prefix({})  # the base reads the words without any prefix
        for site, layer, attention in self._attentions():
            attention.attach(bare, site, layer)
        try:
            BARTModel.forward(self, source, torch.tensor([source.size(1)]), previous, return_all_hiddens=False)
        finally:
            for hook in hooks:
                hook.remove()
            for (_, _, attention), attached in zip(self._attentions(), detached, strict=True):
                attention._attached = attached
            self.train(was_training)

        first = {"encoder": 1, "cross": 1, "decoder": 2}  # where the words begin: after <s>, or after </s> <s>
        columns: dict[str, list[Tensor]] = {site: [] for site in SITES}
        for site, _, attention in self._attentions():
            for projection in (attention.k_proj, attention.v_proj):
                output = recorded[projection][:, 0]  # T x D
                columns[site].append(output[first[site] : first[site] + len(text)])
        activations = {}
        for site, site_geometry in self.prefix.geometry.items():
            table = torch.cat(columns[site], dim=1)  # len(text) x (L*2*D)
            repeats = -(-site_geometry.length // len(text))
            activations[site] = table.repeat(repeats, 1)[: site_geometry.length]
        return activations

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


class PrefixEncoder(TransformerEncoderBase):
    """fairseq's encoder with prefix attention; its output stays at one row per sentence while beams are searched."""

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens)

    def build_encoder_layer(self, cfg):
        return _with_checkpointing(PrefixEncoderLayer(cfg), cfg)

    def reorder_encoder_out(self, encoder_out, new_order):
        """Keep one row per sentence: `PrefixAttention` projects it once and follows the search by itself."""
        return encoder_out


class PrefixDecoder(TransformerDecoderBase):
    """fairseq's decoder with prefix attention."""

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(TransformerConfig.from_namespace(args), dictionary, embed_tokens)

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return _with_checkpointing(PrefixDecoderLayer(cfg, no_encoder_attn), cfg)


def _with_checkpointing(layer: nn.Module, cfg) -> nn.Module:
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


def _site_lengths(args) -> dict[str, int]:
    """site -> prefix length, from the options."""
    try:
        sites = parse_sites(args.prefix_sites)
    except ValueError as error:
        raise UsageError(f"--prefix-sites: {error}") from None
    lengths = {}
    for site in SITES:
        own = getattr(args, f"prefix_{site}_length")
        if own is not None and site not in sites:
            raise UsageError(
                f"--prefix-{site}-length is given, but --prefix-sites {args.prefix_sites} leaves {site} out"
            )
        lengths[site] = (args.prefix_length if own is None else own) if site in sites else 0
        if lengths[site] < 0:
            raise UsageError(f"the prefix length of the {site} site is {lengths[site]}; it cannot be negative")
    return lengths


def _encode_words(args, dictionary) -> list[int]:
    """Token ids of `--prefix-init-text`."""
    if not any(_site_lengths(args).values()):
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
    """Xavier for every linear layer: BART's own N(0, 0.02) does not learn to copy in a model of demo size."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.decoder.output_projection:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def tiny_bart_architecture(args):
    """A BART that two CPU cores pretrain in minutes: 1-2 M parameters, no dropout (it would not learn in that time)."""
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 128)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 512)
    args.encoder_layers = getattr(args, "encoder_layers", 2)
    args.encoder_attention_heads = getattr(args, "encoder_attention_heads", 4)
    args.decoder_layers = getattr(args, "decoder_layers", 2)
    args.decoder_attention_heads = getattr(args, "decoder_attention_heads", 4)
    args.max_source_positions = getattr(args, "max_source_positions", 256)
    args.max_target_positions = getattr(args, "max_target_positions", 256)
    args.dropout = getattr(args, "dropout", 0.0)
    bart_large_architecture(args)


def _prefix_options(args):
    args.base_model = getattr(args, "base_model", None)
    args.prefix_length = getattr(args, "prefix_length", 200)
    args.prefix_sites = getattr(args, "prefix_sites", ",".join(SITES))
    for site in SITES:
        setattr(args, f"prefix_{site}_length", getattr(args, f"prefix_{site}_length", None))
    args.prefix_reparam = getattr(args, "prefix_reparam", "mlp")
    args.prefix_mid_dim = getattr(args, "prefix_mid_dim", 800)
    args.prefix_dropout = getattr(args, "prefix_dropout", 0.0)
    args.prefix_init = getattr(args, "prefix_init", "random")
    args.prefix_init_text = getattr(args, "prefix_init_text", None)
    args.base_dropout = getattr(args, "base_dropout", "on")


def _full_options(args):
    args.base_model = getattr(args, "base_model", None)
    args.finetuned_from = getattr(args, "finetuned_from", None)
    args.base_fingerprint = getattr(args, "base_fingerprint", None)


def _register_architectures() -> None:
    sizes = {"large": bart_large_architecture, "base": bart_base_architecture, "tiny": tiny_bart_architecture}
    for model, options in (("prefix_bart", _prefix_options), ("full_bart", _full_options)):
        for size, architecture in sizes.items():

            def complete(args, options=options, architecture=architecture):
                options(args)
                architecture(args)

            register_model_architecture(model, f"{model}_{size}")(complete)


_register_architectures()
