"""fairseq loaded once: while this runs a command, what the workflow starts of fairseq are forks of this process.

    python workflow/scripts/warm.py snakemake --cores 2 results/e2e/bleu.txt

Loading torch and fairseq takes every training, decoding and export some seconds, half the time of a small run. A fork
begins where a fresh process is after its imports, and does the same from there: results have the same bytes.

The address of this process is in PREFIX_WARM; who finds nobody there starts a process of its own (`start`).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from argparse import Namespace
from pathlib import Path
from typing import IO

from signal_handlers import handle as handle_signals
from signal_handlers import ignored, set_ignored

PLUGIN = Path(__file__).resolve().parents[2] / "fairseq_prefix"
ADDRESS = "PREFIX_WARM"
ENTRY_POINTS = dict.fromkeys(("fairseq_cli.train", "fairseq_cli.generate", "fairseq_prefix.__main__"), "cli_main")
STREAMS = 2  # file descriptors of a request: stdout, stderr, and any number that the process is to hold
LARGEST_REQUEST = 1 << 20
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


# For who starts processes ---------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """This process's, with the plugin importable from any working directory."""
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(PLUGIN.parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def start(module: str, arguments: list[str], stderr: IO, held: list[int] | None = None) -> subprocess.Popen | Fork:
    """`python -m {module}` in a session of its own, its output in a pipe; it holds the file descriptors `held` open."""
    if address := os.environ.get(ADDRESS):
        with contextlib.suppress(ConnectionError, FileNotFoundError):
            return Fork(address, module, arguments, stderr, held or [])
    return start_anew([sys.executable, "-m", module.removesuffix(".__main__"), *arguments], stderr, held)


def start_anew(command: list[str], stderr: IO, held: list[int] | None = None) -> subprocess.Popen:
    """Any command in the way of `start`, which is not asked of a warm process."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        env=environment(),
        start_new_session=True,
        pass_fds=held or [],
    )


class Fork:
    """A fork of a warm process, with as much of `subprocess.Popen` as the workflow uses."""

    def __init__(self, address: str, module: str, arguments: list[str], stderr: IO, held: list[int]):
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(address)
        reader, writer = os.pipe()
        request = {"module": module, "arguments": arguments, "folder": os.getcwd(), "environment": environment()}
        request |= {"ignored_signals": ignored()}
        try:
            socket.send_fds(self._connection, [json.dumps(request).encode()], [writer, stderr.fileno(), *held])
        finally:
            os.close(writer)
        self.stdout = os.fdopen(reader, encoding="utf-8", errors="replace")
        self._answers = self._connection.makefile(encoding="utf-8")
        self.pid = int(self._next_answer())
        self.returncode: int | None = None
        self.peak_kb = 0

    def _next_answer(self) -> str:
        if line := self._answers.readline():
            return line
        raise ConnectionError("the warm process is gone")

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's: the exit status, or minus the number of the signal that ended it."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                status, self.peak_kb = map(int, self._next_answer().split())
                self.returncode = status
            except TimeoutError:
                self._answers = self._connection.makefile(encoding="utf-8")  # one that timed out cannot be read again
                raise subprocess.TimeoutExpired(str(self.pid), timeout) from None
            except ConnectionError:
                self.returncode = -signal.SIGKILL  # with the warm process its forks were ended
        return self.returncode

    def poll(self) -> int | None:
        """As Popen's."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self.returncode


# The warm process -----------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Load, run the command to its end and serve it meanwhile; returns its exit status."""
    if not argv:
        print(f"usage: python {sys.argv[0]} COMMAND ARGUMENT ...", file=sys.stderr)
        return 2
    load()
    folder = tempfile.mkdtemp()  # not by a context manager: a fork that ends would remove it
    try:
        return serve_while_running(argv, os.path.join(folder, "warm"))
    finally:
        shutil.rmtree(folder)


def serve_while_running(argv: list[str], address: str) -> int:
    """Run the command, and fork for whoever asks at the address until it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(address)
        server.listen()
        server.settimeout(0.2)
        command = subprocess.Popen(argv, env={**os.environ, ADDRESS: address})
        handle_signals(ENDING, lambda number, _: command.send_signal(number))  # the command decides what it does
        handlers: set[int] = set()
        while command.poll() is None:
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                if not (handler := os.fork()):
                    server.close()
                    os._exit(handle(connection))
                handlers.add(handler)
                connection.close()
            handlers = {handler for handler in handlers if os.waitpid(handler, os.WNOHANG)[0] == 0}
    return command.returncode


def load() -> None:
    """Everything that the commands import; nothing is computed, so that there are no threads yet.

    fairseq's commands come first: importing them sets up their log. The plugin is imported by fairseq itself, which
    refuses one that is there already.
    """
    sys.path.insert(0, str(PLUGIN.parent))
    *commands, plugin = ENTRY_POINTS
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)  # it names a package that is not needed
    for module in commands:
        importlib.import_module(module)
    from fairseq.utils import import_user_module

    import_user_module(Namespace(user_dir=str(PLUGIN)))
    importlib.import_module(plugin)


def handle(connection: socket.socket) -> int:
    """In a process of its own: fork as asked, tell the fork's number, wait for it, tell its status and peak memory."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    connection.settimeout(None)
    message, descriptors, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 16)
    while True:
        try:
            request = json.loads(message)
            break
        except ValueError:  # not all of it has come yet
            message += connection.recv(LARGEST_REQUEST)
    if not (fork := os.fork()):
        connection.close()
        os._exit(serve(request, descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):  # who asked is gone; the fork goes on, as another process would
        connection.sendall(f"{fork}\n".encode())
    _, status, usage = os.wait4(fork, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}\n".encode())
    return 0


def serve(request: dict, descriptors: list[int]) -> int:
    """Become what was asked for; returns the exit status."""
    os.setsid()
    set_ignored(request["ignored_signals"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, descriptor in enumerate([nothing, *descriptors[:STREAMS]]):
        os.dup2(descriptor, target)
    sys.stdin = io.TextIOWrapper(io.FileIO(0))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = [request["module"], *request["arguments"]]
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    if not request["module"].startswith("fairseq_cli"):  # fairseq's commands alone have their log on stdout
        logging.root.handlers.clear()
        logging.root.setLevel(logging.WARNING)
    try:
        status = _status(getattr(sys.modules[request["module"]], ENTRY_POINTS[request["module"]])())
    except SystemExit as error:
        status = _status(error.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _status(code: object) -> int:
    """The exit status that Python gives for what `sys.exit` was told."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
