"""Signal handlers that respect the parent process: a signal that it has set to be ignored stays ignored.

`nohup`, `trap '' HUP` and the background jobs of a script rely on that: every program inherits the disposition from
the one that started it, until one of them installs a handler.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable


def handle(numbers: Iterable[int], handler: Callable) -> dict[int, object]:
    """Install a handler for those of the signals that are not ignored; returns their previous handlers."""
    heeded = [number for number in numbers if not is_ignored(number)]
    return {number: signal.signal(number, handler) for number in heeded}


def is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


def ignored() -> list[int]:
    """All signals that this process ignores, and hence every program that it starts."""
    return [number for number in signal.valid_signals() if is_ignored(number)]


def set_ignored(numbers: list[int]) -> None:
    """Ignore exactly these signals, and reset all others to what Python has after its start."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in numbers else default)
