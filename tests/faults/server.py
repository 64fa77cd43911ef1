"""`conductor start-server` as a process that can be killed, stopped for a while, and looked at."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from tests.faults.cluster import eventually
from tests.faults.evidence import Notebook

VICTIMS: Final = Path(__file__).parent / "victims"
FOREIGN: Final = ("CONDUCTOR_", "DATABASE_URL", "PG", "NOTIFY_SOCKET")
EVIDENCE: Final = "FAULTS_EVIDENCE"
READY_WITHIN: Final = 40.0

TOML: Final = """
[server]
port = 0
[tasks]
modules = {modules}
[worker]
concurrency = {concurrency}
{prefetch}
[coordinator]
heartbeat_interval = {interval}
heartbeat_timeout = {timeout}
shutdown_timeout = {shutdown}
[log]
format = "json"
"""


@dataclass(frozen=True)
class Beat:
    """Seconds between two heartbeats, and of silence after which a server is dead."""

    interval: float
    timeout: float

    @property
    def rescue(self) -> float:
        """Within which what a killed server ran has to run again: 20 s with the defaults."""
        return self.timeout + self.interval


DEFAULT: Final = Beat(5.0, 15.0)
QUICK: Final = Beat(1.0, 3.0)


@dataclass(frozen=True)
class Setting:
    """How a server is configured."""

    modules: Sequence[str] = ("plain",)
    concurrency: int = 10
    prefetch: int | None = None
    beat: Beat = DEFAULT
    shutdown: float = 25.0
    env: Mapping[str, str] | None = None
    stderr: IO[bytes] | int | None = None


class Server:
    """One process, in a folder of its own."""

    def __init__(self, folder: Path, url: str, notebook: Notebook, setting: Setting) -> None:
        self.folder, self.setting, self._notebook = folder, setting, notebook
        folder.mkdir()
        prefetch = setting.prefetch
        (folder / "conductor.toml").write_text(
            TOML.format(
                modules=json.dumps(list(setting.modules)), concurrency=setting.concurrency,
                prefetch="" if prefetch is None else f"fetch_batch_size = {prefetch}",
                interval=setting.beat.interval, timeout=setting.beat.timeout,
                shutdown=setting.shutdown,
            )
        )  # fmt: skip
        self._log = folder / "log"
        self._lines: list[dict[str, Any]] = []
        self._read = 0
        self.began = time.monotonic()
        self.process = self._start(url)
        self.code: int | None = None
        self.ended: float | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    # What it says

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log so far: whole lines that are JSON."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")[0]
        if whole:
            self._read += len(whole) + 1
            self._lines += [json.loads(line) for line in whole.split(b"\n") if line[:1] == b"{"]
        return self._lines

    def told(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Its lines of this event with these fields."""
        return [
            line for line in self.lines
            if line["event"] == event and all(line.get(k) == v for k, v in fields.items())
        ]  # fmt: skip

    def total(self, event: str) -> int:
        """Of how many its lines of this event tell."""
        return sum(line.get("count", 1) for line in self.told(event))

    def wait_for(self, event: str, within: float = READY_WITHIN, *, times: int = 1) -> None:
        eventually(lambda: len(self.told(event)) >= times, within, f"{event} of {self.folder.name}")

    @property
    def port(self) -> int | None:
        for line in self.lines:
            if line["event"].startswith("Serving http://"):
                return int(line["event"].rpartition(":")[2])
        return None

    def wait_until_ready(self, within: float = READY_WITHIN) -> float:
        """Seconds since its start."""
        eventually(
            lambda: self._has_ended() or self.is_ready(), within, f"{self.folder.name} ready"
        )
        if self.code is not None:
            raise AssertionError(f"{self.folder.name} ended with {self.code}: {self.last_words}")
        return time.monotonic() - self.began

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        return self.get("/readyz") == 200

    def get(self, path: str) -> int | None:
        """The status that its web server answers, if it does within two seconds."""
        port = self.port
        if port is None:
            return None
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        return self.text[-2000:]

    # What is done to it

    def kill(self) -> float:
        """SIGKILL; returns the moment."""
        moment = time.monotonic()
        self._notebook.note("fault", what="kill", pid=self.pid, since=moment, until=moment + 1)
        self.process.kill()
        self.process.wait()
        self._note_exit()
        return moment

    def freeze(self) -> float:
        self.process.send_signal(signal.SIGSTOP)
        self._frozen = time.monotonic()
        return self._frozen

    def thaw(self) -> float:
        now = time.monotonic()
        self._notebook.note("fault", what="stall", pid=self.pid, since=self._frozen, until=now)
        self.process.send_signal(signal.SIGCONT)
        return now

    def terminate(self) -> float:
        """SIGTERM; returns the moment."""
        self.process.send_signal(signal.SIGTERM)
        return time.monotonic()

    def wait(self, within: float = 60.0) -> int:
        """Its exit code; when it ended is noted."""
        eventually(self._has_ended, within, f"the end of {self.folder.name}")
        assert self.code is not None
        return self.code

    def close(self) -> None:
        """By force, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._note_exit()

    def _has_ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self._note_exit()
        return True

    def _note_exit(self) -> None:
        if self.code is None:
            self.code, self.ended = self.process.returncode, time.monotonic()
            self._notebook.note("exit", pid=self.pid)
            if self.code < 0 or self.code not in (0, 4):
                self._notebook.note(
                    "fault", what="kill", pid=self.pid, since=self.ended - 1, until=self.ended
                )

    def _start(self, url: str) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        path = os.pathsep.join([str(VICTIMS), *filter(None, [kept.get("PYTHONPATH")])])
        own = {
            "CONDUCTOR_DATABASE_URL": url, EVIDENCE: str(self._notebook.path), "PYTHONPATH": path,
        }  # fmt: skip
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "conductor_cli", "start-server"],
                cwd=self.folder,
                env={**kept, **own, **(self.setting.env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log if self.setting.stderr is None else self.setting.stderr,
                start_new_session=True,
            )
