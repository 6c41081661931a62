"""The flags of fairseq's commands in presets, overlays and names of variants: which there are, and what each may say.

Names, kinds and choices are those of fairseq's own parsers, kept in workflow/schemas/flags.yaml (a test compares the
two), because asking fairseq takes seconds. Ranges are below: fairseq's parsers accept a batch of -5 examples.
"""

from __future__ import annotations

import ast
import functools
import math
import os
import re
from pathlib import Path

import yaml
from common import UserError, suggestion

COMMANDS = ("train", "generate")
SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"

# Why a preset cannot set a flag -> the flags.
_ITSELF = "is set by the workflow itself; leave it out"
_RESUMING = "would make a resumed training differ from one that was not interrupted; leave it out"
_PROCESSES = "is set from the GPUs of a training: set gpus and nodes under resources instead"
_RESERVED = {
    _ITSELF: "arch base-model bpe bpe-add-prefix-space bpe-cased bpe-codes bpe-merges bpe-separator bpe-vocab "
    "bpe-vocab-file dataset-impl gen-subset gpt2-encoder-json gpt2-vocab-bpe log-file log-format model-overrides path "
    "results-path save-dir sentencepiece-alpha sentencepiece-enable-sampling sentencepiece-model "
    "sentencepiece-model-path source-lang target-lang tensorboard-logdir train-subset user-dir valid-subset",
    _PROCESSES: "device-id distributed-backend distributed-init-method distributed-no-spawn distributed-num-procs "
    "distributed-port distributed-rank distributed-world-size nprocs-per-node num-shards shard-id",
    _RESUMING: "no-save-optimizer-state reset-dataloader reset-lr-scheduler reset-meters reset-optimizer",
    "is set for each run: list the seeds under seeds": "no-seed-provided seed",
    "would start from a checkpoint that the workflow does not track: describe it as the base of a model of its own, in "
    "configs/models": "continue-once finetune-from-model restore-file",
    "would hide the checkpoints from the workflow, which resumes from the last one and keeps the best one; leave it "
    "out": "checkpoint-shard-count checkpoint-suffix no-last-checkpoints no-save",
}
# The same for fairseq-generate alone.
_RESERVED_IN_GENERATE = {
    "is not supported: the workflow scores one hypothesis of each example; leave it out": "nbest",
    "would score the references instead of generating; leave it out": "score-reference",
    "would drop examples, and the workflow scores all of them; leave it out": "skip-invalid-size-inputs-valid-test",
    "would change or hide the subwords that the workflow decodes; leave it out": "post-process quiet replace-unk",
    "would print what the workflow does not read; leave it out": "print-alignment print-step retain-iter-history",
    "has no effect here: the scores come from the task's metrics; leave it out": "eval-bleu eval-bleu-args "
    "eval-bleu-detok eval-bleu-detok-args eval-bleu-print-samples eval-bleu-remove-bpe eval-tokenized-bleu sacrebleu "
    "scoring",
    "has no effect here: fairseq-generate reads no constraints from binarised data; leave it out": "constraints",
    "is for models that the plugin does not have; leave it out": "beam-mt decoding-format iter-decode-eos-penalty "
    "iter-decode-force-max-iter iter-decode-max-iter iter-decode-with-beam iter-decode-with-external-reranker "
    "lenpen-mt max-len-a-mt max-len-b-mt",
}
RESERVED = {flag: reason for reason, flags in _RESERVED.items() for flag in flags.split()}
RESERVED_IN_GENERATE = {flag: reason for reason, flags in _RESERVED_IN_GENERATE.items() for flag in flags.split()}

# What fairseq-generate uses of the flags that both commands have, besides those of the task.
_IN_BOTH = {"batch-size", "max-tokens", "required-batch-size-multiple", "num-workers", "data-buffer-size"}
_IN_BOTH |= {"cpu", "fp16", "memory-efficient-fp16"}

# Ends of the flags whose value fairseq hands to Python's eval().
EVALUATED = (
    *("adafactor-eps", "adaptive-input-cutoff", "adaptive-softmax-cutoff", "betas", "left-pad-source"),
    *("left-pad-target", "xformers-att-config"),
)

# Numbers that can be meant: (flags, lowest, highest), the first that matches. Any other number is 0 or above; with a
# default below 0, which for most flags means `off`, it may be anything.
_ABOVE_0 = math.ulp(0.0)
RANGES = (
    (r".*dropout|.*layerdrop|label-smoothing|momentum|slowmo-momentum|ema-decay|adadelta-rho", 0, 1),
    (r"fp16-scale-tolerance|quant-noise-pq|quant-noise-scalar|final-lr-scale|init-lr-scale|phase-ratio|beta1", 0, 1),
    (r"sampling-topp", -math.inf, 1),
    (r"(lenpen|iter-decode-eos-penalty|unkpen|lm-weight)(-mt)?", -math.inf, math.inf),
    (r"(batch-size|max-tokens)(-valid)?|tokens-per-sample|beam|update-freq|total-num-update", _ABOVE_0, math.inf),
    (r"(log|save|validate)-interval|ema-update-freq|localsgd-frequency|required-.*-multiple", _ABOVE_0, math.inf),
    (r"prefix-length|prompt-length|.*-dim|.*-attention-heads|(en|de)coder-layers", _ABOVE_0, math.inf),
    (r"max-(source|target)-positions|quant-noise-pq-block-size|bucket-cap-mb|temperature|power", _ABOVE_0, math.inf),
    (r"(amp|fp16)-(init-scale|scale-window)|min-loss-scale|model-parallel-size", _ABOVE_0, math.inf),
)
_SITE = "(encoder|decoder|cross)"
_FORMS = {  # flags of kind `text`: (what a value looks like, in words)
    r"(prefix|prompt)-sites": (rf" *{_SITE} *(, *{_SITE} *)*", "encoder, decoder, cross, or several of them"),
    r".*-betas": (r"[(\[] *(0|0?\.\d+) *, *(0|0?\.\d+) *[)\]]", "two numbers from 0 to below 1, such as (0.9, 0.999)"),
}
# What others call a flag.
_ELSEWHERE = {
    **dict.fromkeys(("learning-rate", "lrate"), "lr"),
    **dict.fromkeys(("batch", "bsz", "per-device-train-batch-size", "train-batch-size"), "batch-size"),
    **dict.fromkeys(("epochs", "num-epochs", "num-train-epochs"), "max-epoch"),
    **dict.fromkeys(("max-steps", "num-train-steps", "steps", "updates"), "max-update"),
    **dict.fromkeys(("gradient-accumulation-steps", "accumulate-grad-batches"), "update-freq"),
    **dict.fromkeys(("gradient-clip-val", "max-grad-norm"), "clip-norm"),
    **dict.fromkeys(("beam-size", "beams", "num-beams"), "beam"),
    **dict.fromkeys(("length-penalty", "len-penalty"), "lenpen"),
    **dict.fromkeys(("max-length", "max-len", "max-new-tokens"), "max-len-b"),
    **{"min-length": "min-len", "prefix-len": "prefix-length", "scheduler": "lr-scheduler"},
}
_WORDS = {"true": True, "false": False, "null": None}  # what YAML reads in a word without quotes


def check_flag(command: str, flag: str, value, where: str):
    """Check one flag of a preset; returns the value as it is meant: the text "4" of a batch size is 4.

    Args:
        command: train, generate, or data for both.
        where: how an error calls the place.

    Raises:
        UserError: the flag is unknown or not for presets, or its value cannot be meant.
    """
    _check_name(command, flag, where)
    if "${" in str(value):  # fairseq resolves it between the quotes of a literal, too
        raise UserError(f"{where}: {flag}: {value!r} refers to another value of fairseq's; write the value itself")
    if flag.endswith(EVALUATED) and not _is_literal(value):
        raise UserError(
            f"{where}: {flag}: fairseq would run {value!r} as Python; write a literal, such as (0.9, 0.999)"
        )
    try:
        return _meant(flag, value)
    except ValueError as error:
        raise UserError(f"{where}: {flag}{error}") from None


def check_accepted(command: str, flags: dict, run: str, architecture: str | None = None) -> None:
    """Check that fairseq accepts all flags of one command line, many of which go with one optimizer or the like only.

    Raises:
        UserError: a flag goes with another choice than the command line makes.
    """
    lists = _lists()[command]
    given = {flag: value for flag, value in flags.items() if value is not None and value is not False}
    chosen = {"criterion": "cross_entropy", "lr-scheduler": "fixed", **given, "arch": architecture}
    groups = {choice: values for choice, values in lists.items() if choice != "always"}
    for flag in sorted(given.keys() - lists["always"]):
        homes = {choice: [each for each in values if flag in values[each]] for choice, values in groups.items()}
        homes = {choice: values for choice, values in homes.items() if values}
        # Of a choice that is not listed (it requires an option of its own) the flags are not known.
        if any(choice in chosen and flag in groups[choice].get(chosen[choice], {flag}) for choice in homes):
            continue
        choice, values = next(iter(homes.items()))
        raise UserError(
            f"{run}: fairseq-{command} accepts {flag} with {choice} {_listed(values)} only, not with "
            f"{chosen.get(choice) or 'none'}; set {flag} for the runs that can use it, or to null"
        )


@functools.cache
def reading_flags() -> set[str]:
    """The flags that say which task of fairseq reads the examples, and how: training and generation have to agree."""
    return {"task"}.union(*_lists()["train"]["task"].values())


@functools.cache
def known_flags() -> dict[str, dict[str, str]]:
    """Flags of fairseq-train and fairseq-generate with this plugin: command -> flag -> its kind."""
    lists = _lists()
    kinds = {flag: kind for kind, flags in lists["kinds"].items() for flag in flags}
    kinds |= dict.fromkeys(lists["choices"], "choice")
    known = {}
    for command in COMMANDS:
        groups = [part.values() if isinstance(part, dict) else [part] for part in lists[command].values()]
        known[command] = {flag: kinds[flag] for group in groups for flags in group for flag in flags}
    return known


@functools.cache
def _lists() -> dict:
    """flags.yaml, with a set for each line of names."""

    def split(value):
        return {key: split(part) for key, part in value.items()} if isinstance(value, dict) else set(value.split())

    return split(yaml.safe_load((SCHEMAS / "flags.yaml").read_text(encoding="utf-8")))


def _check_name(command: str, flag: str, where: str) -> None:
    """Check that the command has the flag, and that a preset may set it."""
    generates = command != "train"
    if reason := RESERVED.get(flag) or (generates and RESERVED_IN_GENERATE.get(flag)):
        raise UserError(f"{where}: {flag} {reason}")
    if flag in _lists()["aliases"]:
        (name,) = _lists()["aliases"][flag]
        raise UserError(f"{where}: {flag} is another name of {name}; write {name}")
    if command == "generate" and flag in known_flags()["train"].keys() - _IN_BOTH - reading_flags():
        effect = "has no effect on generation" if flag in known_flags()["generate"] else "is a flag of fairseq-train"
        raise UserError(f"{where}: {flag} {effect}; write it under train")
    for name in COMMANDS if command == "data" else (command,):
        known = known_flags()[name]
        if flag not in known:
            raise UserError(f"{where}: fairseq-{name} has no flag --{flag}{_hint(name, flag)}")


def _hint(command: str, flag: str) -> str:
    """What may have been meant by a flag that the command does not have."""
    known = known_flags()
    spelt = str(flag).lower().replace("_", "-").strip("-")
    if flag in known["generate"]:
        return "; fairseq-generate has it: write it under generate"
    name = _ELSEWHERE.get(spelt, spelt)
    return suggestion(name, known[command].keys() - RESERVED.keys())


def _meant(flag: str, value):
    """The value of a flag as it is meant.

    Raises:
        ValueError: it cannot be meant; the text goes on from the flag's name.
    """
    kind = known_flags()["train"].get(flag) or known_flags()["generate"][flag]
    if isinstance(value, str) and kind not in ("text", "choice"):
        value = _WORDS.get(value, value)
    if value is None:
        return None
    if kind == "switch":
        if not isinstance(value, bool):
            raise ValueError(f" is a switch: write true or false, not {value!r}")
        return value
    if isinstance(value, bool):
        raise ValueError(
            f" needs a value, not {str(value).lower()} (YAML reads on, off, yes and no as true and false: write "
            '"on" or "off" in quotes; null leaves a flag out)'
        )
    if kind == "choice":
        choices = sorted(_lists()["choices"][flag])
        if str(value) not in choices:
            raise ValueError(f": expected {_listed(choices)}, got {value!r}{suggestion(value, choices, 0)}")
        return value
    if kind == "text":
        for flags, (pattern, words) in _FORMS.items():
            if re.fullmatch(flags, flag) and not re.fullmatch(pattern, str(value)):
                raise ValueError(f": expected {words}, got {value!r}")
        return os.path.expanduser(value) if flag.endswith("-path") and isinstance(value, str) else value
    return _number(flag, value, whole=kind.startswith("integer"), several=kind.endswith("s"))


def _listed(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _number(flag: str, value, whole: bool, several: bool):
    """The number, or the text of a list of numbers; a text like 1e-4 stays, as fairseq reads it too."""
    lowest, highest = _range(flag)
    what = "a whole number" if whole else "a number"
    if lowest == _ABOVE_0:
        what += " above 0"
    elif lowest == 0:
        what += f" from 0 to {highest}" if highest < math.inf else ", 0 or above"
    elif highest < math.inf:
        what += f" up to {highest}"
    error = ValueError(f": expected {what}{', or a list of them in quotes' if several else ''}, got {value!r}")
    try:
        read = ast.literal_eval(value) if several and isinstance(value, str) else value  # as fairseq does
        parts = read if isinstance(read, list | tuple) else [read]
        numbers = [int(part) if whole else float(part) for part in parts]
    except (ValueError, TypeError, OverflowError, SyntaxError, MemoryError, RecursionError):
        raise error from None
    fractions = whole and any(isinstance(part, float) for part in parts)
    if fractions or not numbers or not all(abs(number) < 2**63 and lowest <= number <= highest for number in numbers):
        raise error
    return numbers[0] if whole and len(numbers) == 1 else value


@functools.cache
def _range(flag: str) -> tuple[float, float]:
    """(lowest, highest) that a number may be."""
    for flags, lowest, highest in RANGES:
        if re.fullmatch(flags, flag):
            return lowest, highest
    return (-math.inf if flag in _lists()["negative"] else 0), math.inf


def _is_literal(value) -> bool:
    """Whether Python evaluates the text to what stands there, calls nothing for it, and has no text again."""
    try:
        return not isinstance(ast.literal_eval(str(value)), str | bytes)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False


def arguments(flags: dict) -> list[str]:
    """{"lr": 5e-05, "fp16": True, "patience": None} -> ["--fp16", "--lr", "5e-05"], sorted by flag.

    A value that begins with a dash is joined by "=", or argparse would take it for a flag.
    """
    result: list[str] = []
    for flag, value in sorted(flags.items()):
        if value is True:
            result.append(f"--{flag}")
        elif value is not None and value is not False:
            text = str(value)
            result += [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]
    return result
