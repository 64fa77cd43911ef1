"""What a long-running command owes its surroundings: signals, systemd, stacks, being PID 1."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from conductor_cli import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.service import Deadline

STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Each asks for a graceful stop. SIGHUP comes when the terminal has gone."""

HEAR_AGAIN: Final = 5.0  # seconds
FORWARDED: Final = (*STOPS, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Notes:
    """What signal handlers and other threads want the main thread to do. Made by the main thread.

    It waits on a pipe and not on a lock: a signal that comes in the moment before a lock is waited
    for does not end that wait, so that its handler would run only after the next one.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()  # its put() is reentrant
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def put(self, call: Callable[[], object]) -> None:
        """From any thread, and from a signal handler."""
        self._calls.put(call)
        with suppress(BlockingIOError):  # it is full: the reader wakes anyway
            os.write(self._write_end, b"!")

    def get(self, deadline: Deadline) -> Callable[[], object] | None:
        """The next one; None when the deadline passed first."""
        while True:
            with suppress(Empty):
                return self._calls.get_nowait()
            left = deadline.remaining
            limit = HEAR_AGAIN if left is None else min(HEAR_AGAIN, left)
            if select.select([self._read_end], [], [], limit)[0]:
                os.read(self._read_end, 4096)
            elif deadline.has_passed:
                return None
            else:
                _hear_again()


def begin(on_stop: Callable[[], object]) -> None:
    """First thing in a command: from now on a request to stop is heard, and SIGUSR1 tells stacks.

    ``on_stop`` is called in the main thread, between any two steps of it.
    """
    if os.getpid() == 1:
        _leave_init_behind()
    hear(on_stop)
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_forget)
    signal.signal(signal.SIGUSR1, lambda *_: tell_stacks())


def tell_stacks() -> None:
    """Write the stacks of all threads, with their names, to where the log goes.

    Not by faulthandler: it reads them while threads run, and has been seen to crash on them.
    """
    frames = sys._current_frames()
    parts = [f"Stacks of process {os.getpid()}:\n"]
    for thread in threading.enumerate():
        if (frame := frames.get(thread.ident or 0)) is not None:
            parts.append(f"Thread {thread.name} (most recent call last):\n")
            parts += traceback.format_stack(frame)
    telemetry.write("".join(parts))


def hear(on_stop: Callable[[], object]) -> None:
    """Call ``on_stop`` at each signal of ``STOPS``."""
    for number in _heard():
        signal.signal(number, lambda *_: on_stop())


def _heard() -> list[signal.Signals]:
    """Those of ``STOPS`` that this process is to hear: ``nohup`` has SIGHUP ignored."""
    hangs_on = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [each for each in STOPS if not (hangs_on and each is signal.SIGHUP)]


def _hear_again() -> None:
    """What a library that a task has loaded may have done to the handlers, below Python."""
    for number in _heard():
        signal.signal(number, signal.getsignal(number))


def notify(state: str) -> None:
    """Tell systemd, if it listens: ``READY=1``, ``STOPPING=1``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.sendall(state.encode())


def _hold() -> None:
    """A signal that comes for a child before it is one waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _forget() -> None:
    """What a task forks is not this server: it can be ended as any process can."""
    signal.set_wakeup_fd(-1)
    for number in _heard():
        signal.signal(number, signal.SIG_DFL)
    _let_go()


def _leave_init_behind() -> None:
    """As the first process of a container: stay as its init, and go on in a child.

    Orphans of the container become children of PID 1, which must collect them when they end. A
    server cannot do that beside its tasks: to collect whatever ends would take from a task's
    subprocess.run() the exit code it waits for.
    """
    heard = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    child = os.fork()
    while child:
        number = signal.sigwait(heard)
        if number == signal.SIGCHLD:
            _collect(child)
        else:
            with suppress(ProcessLookupError):
                os.kill(child, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)


def _collect(server: int) -> None:
    """Collect what has ended; end with the server."""
    with suppress(ChildProcessError):  # there is none left
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == server:
                code = os.waitstatus_to_exitcode(ended[1])
                os._exit(code if code >= 0 else 128 - code)
