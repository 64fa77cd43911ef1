"""One run of the Postgres server: its process, its log, its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from conductor_cli.embedded import cluster, place, programs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.embedded.place import Area

LOG_BYTES = 2 * 1024 * 1024  # of postgres.log, and of postgres.log.1 behind it
FAST: Final = signal.SIGINT  # SIGTERM would wait for every pool to leave
IMMEDIATE: Final = signal.SIGQUIT
FAST_WITHIN = 10.0
IMMEDIATE_WITHIN = 5.0


class Log:
    """What Postgres says, in two files of bounded size. A full disk loses lines, no more."""

    def __init__(self, area: Area) -> None:
        self._area = area
        self._fd = self._open()

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size + len(data) > LOG_BYTES:
                self._turn()
            os.write(self._fd, data)

    def _turn(self) -> None:
        old = self._area.log.with_suffix(".log.1")
        self._area.log.replace(old)
        fd = self._open()
        os.close(self._fd)
        self._fd = fd

    def _open(self) -> int:
        return self._area.open(self._area.log, os.O_WRONLY | os.O_APPEND)


class Postmaster:
    """A started server. The one thread that made it must live: the kernel ends it with that."""

    def __init__(self, area: Area, command: Sequence[str], server_lock: int, log: Log) -> None:
        """Start ``command``; all its processes inherit ``server_lock`` and with it the lock."""
        self._area = area
        self._log = log
        self._heard: deque[bytes] = deque(maxlen=64)
        self.was_ready = False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=programs.environment(),
            pass_fds=[server_lock],
            bufsize=0,
            preexec_fn=cluster.dying_with_its_parent(FAST),  # noqa: PLW1509 - the keeper has one thread
            **place.identity(area.account),
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)

    @property
    def output(self) -> str:
        """The last of what this run said."""
        return b"".join(self._heard).decode("utf-8", "replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def pump(self, seconds: float) -> None:
        """Move what Postgres says into the log; waits for it up to ``seconds``."""
        readable, _, _ = select.select([self._output], [], [], seconds)
        if not readable:
            return
        while data := self._output.read(65536):
            self._heard.append(data)
            self._log.write(data)
        if data is not None:  # closed: the process is all but gone
            time.sleep(min(seconds, 0.02))

    def ended(self) -> int | None:
        """Give the exit code once the server has ended."""
        return self._process.poll()

    def is_ready(self) -> bool:
        """Say whether it accepts connections now."""
        pid, status = cluster.status(self._area.data)
        if pid == self.pid and status == "stopping":
            self._send(FAST)  # somebody sent SIGTERM, which would wait for every pool to leave
        ready = pid == self.pid and status == "ready"
        self.was_ready |= ready
        return ready

    def stop(self, how: signal.Signals = FAST) -> None:
        """Stop the server, with more force if it takes too long; returns when it has ended."""
        for signum, seconds in ((how, FAST_WITHIN), (IMMEDIATE, IMMEDIATE_WITHIN)):
            self._send(signum)
            deadline = time.monotonic() + seconds
            while self.ended() is None and time.monotonic() < deadline:
                self.pump(0.01)
        self._send(signal.SIGKILL)
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Read the rest of what an ended server said, and let go of its pipe."""
        if not self._output.closed:
            self.pump(0)
            self._output.close()

    def _send(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)
