"""One adapter as a subprocess: JSON lines in and out, every wait with a deadline."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from bench import environments

if TYPE_CHECKING:
    from types import TracebackType
    from typing import IO

    from bench.peer import Peer

HELLO_TIMEOUT: Final = 30.0  # seconds
STOP_TIMEOUT: Final = 20.0  # seconds

Message = dict[str, Any]


class PeerFailed(Exception):
    """An adapter reported an error, died, or did not answer in time."""


class PeerProcess:
    """A running adapter. Leaving the `with` block ends it, by force if it does not go by itself."""

    def __init__(self, peer: Peer, url: str, role: Literal["producer", "worker"]) -> None:
        self._peer = peer
        self._log = environments.WORK / "logs" / f"{peer.name}-{role}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._early: list[Message] = []
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*environments.command(peer), url],
                env=environments.variables(),
                cwd=environments.WORK,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is the harness's to handle
            )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, stdout = self._process.stdin, self._process.stdout
        threading.Thread(target=self._read, args=(stdout,), daemon=True).start()
        try:
            self.versions: str = self.expect("hello", HELLO_TIMEOUT)["versions"]
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, do: str, timeout: float, **arguments: object) -> Message:
        """Send one command and return its answer; `timeout` in seconds."""
        self.post(do, **arguments)
        return self.expect("done", timeout)

    def post(self, do: str, **arguments: object) -> None:
        """Send one command; its answer, and events before it, are for `expect`."""
        line = json.dumps({"do": do, **arguments})
        try:
            self._stdin.write(line + "\n")
            self._stdin.flush()
        except OSError as error:
            raise PeerFailed(f"{self._peer.name} is gone: {self._last_words()}") from error

    def expect(self, event: str, timeout: float) -> Message:
        """The next message of this event, whatever came before it; `timeout` in seconds."""
        deadline = time.monotonic() + timeout
        while True:
            for message in self._early:
                if message["event"] == event:
                    self._early.remove(message)
                    return message
            self._early.append(self._receive(event, deadline))

    def first(self) -> int | None:
        """When its first task body started, if one has: only once it is known to have worked."""
        self._drain_messages()
        return next((m["at"] for m in self._early if m["event"] == "first"), None)

    def close(self) -> None:
        """End of input asks it to go; then by force: only the process started here."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)

    def _receive(self, event: str, deadline: float) -> Message:
        try:
            message = self._messages.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            raise PeerFailed(
                f"{self._peer.name}: no {event!r} in time: {self._last_words()}"
            ) from None
        if message is None:
            raise PeerFailed(f"{self._peer.name} ended: {self._last_words()}")
        if message["event"] == "failed":
            raise PeerFailed(f"{self._peer.name}: {message['message']}")
        return message

    def _drain_messages(self) -> None:
        with contextlib.suppress(queue.Empty):
            while (message := self._messages.get_nowait()) is not None:
                self._early.append(message)

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-1500:].strip() or "it said nothing"
