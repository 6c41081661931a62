"""The error of a user's mistake, how a command ends with its sentence, and parts of such sentences."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class UsageError(ValueError):
    """A wrong option, argument or file, in one or two sentences that say what to do.

    Applications catch it as any other error. Commands end with its sentence alone (`ending_with_a_sentence`).
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


@contextlib.contextmanager
def ending_with_a_sentence() -> Iterator[None]:
    """End the program with status 1 and one sentence on stderr where the block fails because of a `UsageError`."""
    try:
        yield
    except Exception as error:
        if (sentence := _usage_error_behind(error)) is None:
            raise
        raise SystemExit(f"error: {sentence}") from None


def _usage_error_behind(error: BaseException | None) -> str | None:
    """The sentence of the `UsageError` that is, or led to, this error.

    fairseq wraps what goes wrong while it loads a checkpoint, and torch reports the error of another process as the
    text of its traceback.
    """
    while error is not None:
        if isinstance(error, UsageError):
            return str(error)
        name = re.escape(f"{UsageError.__module__}.{UsageError.__qualname__}")
        if found := re.search(rf"^{name}: (.+)$", str(error), re.MULTILINE):
            return found[1]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def printable(text: str) -> str:
    """The text with what would steer a terminal spelt out: what a file says may stand in a message."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def first_line(error: Exception) -> str:
    """What another error says, as a part of a sentence; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
