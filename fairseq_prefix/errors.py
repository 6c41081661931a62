"""The error of a user's mistake, and how a command reports it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class UsageError(ValueError):
    """A wrong option, argument or file, in one or two sentences that say what to do.

    Applications catch it like any other error. Commands print its sentence and no traceback (`ending_with_a_sentence`).
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


@contextlib.contextmanager
def ending_with_a_sentence() -> Iterator[None]:
    """Exit with status 1 and one sentence on stderr if the block fails because of a `UsageError`."""
    try:
        yield
    except Exception as error:
        if (sentence := _usage_error_behind(error)) is None:
            raise
        raise SystemExit(f"error: {sentence}") from None


def _usage_error_behind(error: BaseException | None) -> str | None:
    """Return the sentence of the `UsageError` that is this error or caused it, or None.

    fairseq wraps errors of loading a checkpoint, and torch reports the error of another process as the text of a
    traceback.
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
    """Return the text with control characters escaped: messages quote untrusted files."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def first_line(error: Exception) -> str:
    """Return the first line of another error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
