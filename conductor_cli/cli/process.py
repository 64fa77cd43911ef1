"""What a long-running command owes its surroundings: signals, systemd, stacks, being PID 1."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

STOPS: Final = (signal.SIGTERM, signal.SIGINT)
FORWARDED: Final = (*STOPS, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def begin(on_stop: Callable[[], object]) -> None:
    """First thing in a command: from now on a request to stop is heard, and SIGUSR1 tells stacks.

    ``on_stop`` is called in the main thread, between any two steps of it.
    """
    if os.getpid() == 1:
        _leave_init_behind()
    hear(on_stop)
    with suppress(Exception):  # stderr is closed
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or sys.stderr, all_threads=True)


def hear(on_stop: Callable[[], object]) -> None:
    """Call ``on_stop`` at each SIGTERM and SIGINT."""
    for number in STOPS:
        signal.signal(number, lambda *_: on_stop())


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


def _leave_init_behind() -> None:
    """As the first process of a container: stay as its init, and go on in a child.

    Orphans of the container become children of PID 1, which must collect them when they end. A
    server cannot do that beside its tasks: to collect whatever ends would take from a task's
    subprocess.run() the exit code it waits for.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child:
        _be_init(child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _be_init(child: int) -> NoReturn:
    for number in FORWARDED:
        signal.signal(number, lambda number, _: _forward(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _forward(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)
