"""Files: nothing that one holds is ever run, and none is half there under its own name.

Checkpoints are tensors and plain containers (`torch.load` with `weights_only`), and their options, which fairseq would
evaluate, have to be literals. The same holds for what fairseq itself loads while the plugin is there.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import functools
import os
import re
import shutil
import struct
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor

from ..errors import UsageError, first_line

# Reading --------------------------------------------------------------------------------------------------------------


def trust_plain_types() -> None:
    """Let `torch.load` restore the one class that fairseq's checkpoints hold beside tensors, and inert stand-ins for
    the meters that very old ones carry.
    """
    stand_ins = [
        (_Discarded, f"fairseq.{module}.{name}")
        for module in ("meters", "logging.meters")
        for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")
    ]
    torch.serialization.add_safe_globals([argparse.Namespace, *stand_ins])


class _Discarded:
    """Takes the place of an object of an old checkpoint that nobody needs."""


def load_tensors(path: Path) -> dict:
    """A `.pt`/`.bin` file as plain containers of tensors; refuses anything else in one sentence.

    Raises:
        UsageError: missing, truncated, not a checkpoint, or holding objects other than tensors and plain types.
    """
    with refusing(path):
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        check_contents(state)
    if not isinstance(state, dict):
        raise UsageError(f"{path} cannot be loaded: it holds a {type(state).__name__}, not a checkpoint")
    return state


class _Refused(Exception):
    """Why a file is not loaded, as the end of a sentence about it."""


@contextlib.contextmanager
def refusing(path: str | os.PathLike) -> Iterator[None]:
    """Whatever goes wrong while a file is loaded is one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except Exception as error:  # torch raises a dozen kinds for damaged files
        reason = str(error)
        if not isinstance(error, _Refused):
            if "Unsupported global" in reason or "weights_only" in reason.lower() and "global" in reason.lower():
                reason = "it holds objects other than tensors, which are never loaded"
            else:
                reason = "it is truncated or not a checkpoint"
        raise UsageError(f"{path} cannot be loaded: {reason}") from None


EXPORT_KEY = "fairseq_prefix"  # in the header of an export


def _mistaken(path: str | os.PathLike) -> str | None:
    """What a file that is no checkpoint is instead, where it shows, and what to do, as the end of a sentence."""
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


def _check_archive(path: str | os.PathLike) -> None:
    """Refuse what torch would read all the same: archives that unpack to anything larger, wrong checksums, and exports
    of weights; and name what else is no checkpoint.
    """
    if mistaken := _mistaken(path):
        raise _Refused(mistaken)
    if not zipfile.is_zipfile(path):  # cut off, which torch sees itself, or of an older format, without checksums
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > os.path.getsize(path):
            raise _Refused("it holds compressed data, which torch never writes")
        try:
            damaged = archive.testzip() is not None
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error):
            damaged = True
        if damaged:
            raise _Refused("it is damaged, its checksums do not fit")


# What fairseq hands to eval() while it builds a model, a task, a criterion or an optimizer, by the ends of the options'
# names. Of a checkpoint these are a stranger's.
EVALUATED = tuple(
    "adafactor_eps adaptive_input_cutoff adaptive_softmax_cutoff betas character_filters conv_aggregator_layers "
    "conv_feature_layers decoder_attention decoder_layers downsample encoder_attention encoder_layers "
    "feature_encoder_spec gated_attention left_pad_source left_pad_target pipeline_balance pipeline_decoder_balance "
    "pipeline_decoder_devices pipeline_devices pipeline_encoder_balance pipeline_encoder_devices pretrained "
    "project_input self_attention wer_args xformers_att_config".split()
)
TEXTS = str | bytes | bytearray


def check_contents(state: object) -> None:
    """Refuse tensors that claim more elements than they hold, and options that fairseq would run.

    fairseq evaluates some options of a model as Python, be they from a command line or from a file.
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
    """OmegaConf puts a text together of others only after this check, also between the quotes of a literal: fairseq
    saves options when that is done. Bytes are of the encoding that they name in a comment.
    """
    text = value if isinstance(value, str) else bytes(value).decode(errors="replace")
    if "${" in text:
        raise _Refused(f"its option {name} refers to another value ({text[:40]!r}), which fairseq never saves")
    if str(name).endswith(EVALUATED) and not (isinstance(value, str) and _is_literal(text)):
        raise _Refused(f"its option {name} is code ({text[:40]!r}), which fairseq would run")


def _is_literal(text: str) -> bool:
    """Whether Python evaluates the text to what stands there, which is no text again."""
    try:
        return not isinstance(ast.literal_eval(text), TEXTS)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False


def _check_tensor(name: object, tensor: Tensor) -> None:
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _Refused(f"its tensor {name} is not stored element by element")


def guard_loading() -> None:
    """fairseq's own way to load a checkpoint, for a search or to resume, refuses what `load_tensors` refuses.

    fairseq leaves it to the installed torch, and to an environment variable, whether anything is unpickled.
    """
    load, upgrade = checkpoint_utils.load_checkpoint_to_cpu, checkpoint_utils._upgrade_state_dict
    load_models = checkpoint_utils.load_model_ensemble_and_task

    @functools.wraps(load)
    def load_checked(path: str, *args, **options) -> dict:
        with refusing(path), _tensors_alone():
            local = PathManager.get_local_path(path)  # another one than `path` if that is elsewhere
            if local != path and PathManager.path_requires_pathmanager(path):
                return _load_fetched(load, path, local, *args, **options)
            _check_archive(path)
            return load(path, *args, **options)

    def upgrade_checked(state: dict) -> dict:
        config = state.get("cfg")
        if config is None and state.get("args") is None:
            raise _Refused("it holds no options, as the checkpoint of a training does; is it a base?")
        check_contents({**state, "cfg": OmegaConf.to_container(config) if OmegaConf.is_config(config) else config})
        return upgrade(state)

    @functools.wraps(load_models)
    def load_models_checked(
        filenames, arg_overrides=None, task=None, strict=True, suffix="", num_shards=1, state=None
    ) -> tuple:
        if num_shards != 1 and (task is None or _is_own(task)):
            raise UsageError(
                f"--checkpoint-shard-count {num_shards} is not supported: a checkpoint here is one file; leave it out"
            )
        try:
            return load_models(filenames, arg_overrides, task, strict, suffix, num_shards, state)
        except OSError as error:  # fairseq has looked for the parts of one too, and wherever its PathManager does
            missing = re.fullmatch("Model file not found: (.+)", str(error), re.DOTALL)
            if missing is None or not (task is None or _is_own(task)):
                raise
            raise UsageError(f"{missing[1]}: no such file; expected a checkpoint") from None

    checkpoint_utils.load_checkpoint_to_cpu, checkpoint_utils._upgrade_state_dict = load_checked, upgrade_checked
    checkpoint_utils.load_model_ensemble_and_task = load_models_checked


def _load_fetched(load, path: str, local: str, arg_overrides=None, load_on_all_ranks=False) -> dict:
    """Load a checkpoint from elsewhere. As fairseq does it, the copy of an earlier time is fetched anew; here that is
    before it is checked, so that no other one is loaded.
    """
    with contextlib.suppress(FileNotFoundError):
        os.remove(local)
    if load_on_all_ranks:
        torch.distributed.barrier()
    local = PathManager.get_local_path(path)
    _check_archive(local)
    return load(local, arg_overrides, load_on_all_ranks)


def _is_own(task) -> bool:
    """Whether a task is the plugin's."""
    return any(one.__module__.startswith("fairseq_prefix.") for one in type(task).__mro__)


_ENVIRONMENT = threading.RLock()  # all threads have the same


@contextlib.contextmanager
def _tensors_alone() -> Iterator[None]:
    """`torch.load` unpickles nothing but tensors and plain types, whatever the environment says.

    One thread at a time: of two that overlap, the first to leave would take the protection from the other.
    """
    variables = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    with _ENVIRONMENT:
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


def atomically(path: str | os.PathLike, write: Callable[[str], None]) -> None:
    """Call `write(temporary)` and give the file its final name only if that succeeds.

    Raises:
        UsageError: the path is not one of a file in an existing folder, the disk is full, or writing is not permitted.
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


def make_copies_atomic() -> None:
    """fairseq writes the first of a round of checkpoints atomically and copies it, in place, to the others: a run
    killed during that copy would leave half a `checkpoint_last.pt` and could not be resumed.
    """

    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if not overwrite and PathManager.exists(dst_path):
            return False
        atomically(dst_path, lambda temporary: shutil.copyfile(src_path, temporary))
        return True

    if not PathManager.path_requires_pathmanager(""):
        PathManager.copy = staticmethod(copy)
