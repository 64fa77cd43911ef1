"""`conductor start-server` of this checkout, as a user would start it, in a folder of its own."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import environments
from bench.process import STOP_TIMEOUT, PeerFailed

if TYPE_CHECKING:
    from types import TracebackType

_LOOK: Final = 0.005  # seconds between requests until it is ready
_TOML: Final = """
[database]
url = "{url}"
[server]
host = "127.0.0.1"
port = {port}
[tasks]
modules = ["bench_tasks"]
"""
_TASKS: Final = """
from conductor_cli import task


@task
def noop(n: int, to: str) -> None:
    pass
"""


class Daemon:
    """A running daemon. Leaving the `with` block ends it, by force if it does not go by itself.

    `tasks` is its module of tasks.
    """

    def __init__(self, url: str, *, tasks: str = _TASKS, processes: int = 1) -> None:
        self._port = _free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="daemon-", dir=environments.WORK))
        (self._folder / "conductor.toml").write_text(_TOML.format(url=url, port=self._port))
        (self._folder / "bench_tasks.py").write_text(tasks)
        self._log = environments.WORK / "logs" / "daemon.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "conductor_cli", "start-server", f"--processes={processes}"],
                env=environments.variables(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the harness's to handle
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait_until_ready(self, timeout: float) -> float:
        """Seconds from the start of the process until /readyz answered 200."""
        while not self._is_ready():
            if self._process.poll() is not None:
                raise PeerFailed(f"the daemon ended: {self._last_words()}")
            if time.monotonic() - self._began > timeout:
                raise PeerFailed(f"the daemon is not ready in time: {self._last_words()}")
            time.sleep(_LOOK)
        return time.monotonic() - self._began

    def close(self) -> None:
        """SIGTERM, then by force: only the process started here."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace")[-1500:].strip() or "it said nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
