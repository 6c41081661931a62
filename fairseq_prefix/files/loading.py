"""Read untrusted checkpoints without running anything, and write files whole or not at all.

A checkpoint is tensors and plain containers (`torch.load` with `weights_only`), and those of its options that fairseq
would evaluate must be literals. In fairseq's commands the same holds for what fairseq loads itself (toolkit/hooks.py).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import os
import struct
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import UsageError, first_line

# Reading --------------------------------------------------------------------------------------------------------------


class _Discarded:
    """An inert stand-in for unused objects in old checkpoints."""


# The one class that fairseq's checkpoints hold besides tensors, and inert stand-ins for the meters of very old ones.
PLAIN_TYPES: list[Any] = [
    argparse.Namespace,
    *(
        (_Discarded, f"fairseq.{module}.{name}")
        for module in ("meters", "logging.meters")
        for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")
    ),
]


def load_tensors(path: Path) -> dict:
    """Return the plain containers of tensors that a `.pt` or `.bin` file holds.

    Raises:
        UsageError: the file is missing, truncated, not a checkpoint, or holds other objects.
    """
    with refusing(path):
        check_archive(path)
        with plain_types():
            state = torch.load(path, map_location="cpu", weights_only=True)
        check_contents(state)
    if not isinstance(state, dict):
        raise UsageError(f"{path} cannot be loaded: it holds a {type(state).__name__}, not a checkpoint")
    return state


class Refused(Exception):
    """Why a file is not loaded: the end of a sentence about the file."""


@contextlib.contextmanager
def refusing(path: str | os.PathLike) -> Iterator[None]:
    """Raise a `UsageError` of one sentence for any error of the block, which loads this file."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except Exception as error:  # torch raises a dozen kinds for damaged files
        reason = str(error)
        if not isinstance(error, Refused):
            if "Unsupported global" in reason or "weights_only" in reason.lower() and "global" in reason.lower():
                reason = "it holds objects other than tensors, which are never loaded"
            else:
                reason = "it is truncated or not a checkpoint"
        raise UsageError(f"{path} cannot be loaded: {reason}") from None


EXPORT_KEY = "fairseq_prefix"  # in the header of an export


def _mistaken(path: str | os.PathLike) -> str | None:
    """Return why the file cannot be a checkpoint and what to do; None if it may be one."""
    if os.path.isdir(path):
        return "it is a folder, expected a checkpoint in it, such as checkpoint_best.pt"
    with open(path, "rb") as file:
        start = file.read(4096)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path):  # safetensors
        if f'"{EXPORT_KEY}"'.encode() in start:
            return "it is an export; make a checkpoint of it with `python -m fairseq_prefix import`"
        return "it is in the format of safetensors, expected a .pt file (of a Hugging Face base, pass the folder)"
    if start and b"\0" not in start:
        with contextlib.suppress(UnicodeDecodeError):
            start[:-4].decode()  # less what may be part of a sign
            return "it is a text file, expected a checkpoint"
    return None


def check_archive(path: str | os.PathLike) -> None:
    """Refuse a file that is no checkpoint, and what torch would accept: compressed archives and wrong checksums.

    Raises:
        Refused: with the reason.
    """
    if mistaken := _mistaken(path):
        raise Refused(mistaken)
    if not zipfile.is_zipfile(path):  # cut off, which torch sees itself, or of an older format, without checksums
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > os.path.getsize(path):
            raise Refused("it holds compressed data, which torch never writes")
        try:
            damaged = archive.testzip() is not None
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error):
            damaged = True
        if damaged:
            raise Refused("it is damaged, its checksums do not fit")


# What fairseq hands to eval() while it builds a model, a task, a criterion or an optimizer, by the ends of the options'
# names. In a checkpoint they are untrusted.
EVALUATED = tuple(
    "adafactor_eps adaptive_input_cutoff adaptive_softmax_cutoff betas character_filters conv_aggregator_layers "
    "conv_feature_layers decoder_attention decoder_layers downsample encoder_attention encoder_layers "
    "feature_encoder_spec gated_attention left_pad_source left_pad_target pipeline_balance pipeline_decoder_balance "
    "pipeline_decoder_devices pipeline_devices pipeline_encoder_balance pipeline_encoder_devices pretrained "
    "project_input self_attention wer_args xformers_att_config".split()
)
TEXTS = str | bytes | bytearray


def check_contents(state: object) -> None:
    """Refuse tensors that claim more elements than they hold, and options that fairseq would evaluate as Python.

    Raises:
        Refused: with the reason.
    """
    waiting, seen = [("", state)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            _check_tensor(name, value)
        elif isinstance(value, TEXTS):
            _check_option(name, value)
        elif isinstance(value, dict | list | tuple | set | argparse.Namespace) and id(value) not in seen:
            seen.add(id(value))
            value = vars(value) if isinstance(value, argparse.Namespace) else value
            waiting += value.items() if isinstance(value, dict) else [(name, part) for part in value]


def _check_option(name: object, value: TEXTS) -> None:
    """Refuse code, and references, which OmegaConf resolves only after this check, even between a literal's quotes.

    Bytes are refused too: a comment in them may name any encoding.
    """
    text = value if isinstance(value, str) else bytes(value).decode(errors="replace")
    if "${" in text:
        raise Refused(f"its option {name} refers to another value ({text[:40]!r}), which fairseq never saves")
    if str(name).endswith(EVALUATED) and not (isinstance(value, str) and _is_literal(text)):
        raise Refused(f"its option {name} is code ({text[:40]!r}), which fairseq would run")


def _is_literal(text: str) -> bool:
    """Return whether the text is a Python literal that is not itself a text."""
    try:
        return not isinstance(ast.literal_eval(text), TEXTS)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False


def _check_tensor(name: object, tensor: Tensor) -> None:
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refused(f"its tensor {name} is not stored element by element")


_PROCESS = threading.RLock()  # what the two functions below change belongs to the whole process


@contextlib.contextmanager
def plain_types() -> Iterator[None]:
    """Let `torch.load` restore plain types besides tensors.

    Hold a process-wide lock, and add only types that are not trusted yet: at the end torch removes every listed type,
    even the application's.
    """
    with _PROCESS:
        trusted = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([plain for plain in PLAIN_TYPES if plain not in trusted]):
            yield


@contextlib.contextmanager
def only_tensors() -> Iterator[None]:
    """Let `torch.load` unpickle nothing but tensors and plain types, whatever the environment says.

    One thread at a time: if two blocks overlapped, the first to end would take the protection from the other.
    """
    variables = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    with plain_types():
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


# Writing --------------------------------------------------------------------------------------------------------------


def atomically(path: str | os.PathLike, write: Callable[[str], object]) -> None:
    """Call `write(temporary)`, and rename the temporary file to `path` only if that succeeds.

    Raises:
        UsageError: `path` is a folder, its folder is missing, the disk is full, or writing is not permitted.
    """
    if str(path).endswith(os.sep) or Path(path).is_dir():
        raise UsageError(f"{path} is a folder; expected the name of the file to write")
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        write(str(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError | SafetensorError | RuntimeError):  # the last one is torch's
            reason = getattr(error, "strerror", None) or first_line(error)
            full = getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT)
            raise UsageError(f"{path} cannot be written ({reason}){'; is there room on the disk?' * full}") from None
        raise
