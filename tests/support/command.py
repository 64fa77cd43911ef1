"""The `conductor` command as a process, in a project of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATIENCE: Final = 30.0
FOREIGN: Final = ("CONDUCTOR_", "DATABASE_URL", "PG", "NOTIFY_SOCKET")

SETTINGS: Final = """
[tasks]
modules = ["work"]
[coordinator]
heartbeat_interval = 0.5
heartbeat_timeout = 2.0
shutdown_timeout = {shutdown_timeout}
[server]
port = 0
"""

WORK: Final = '''
"""The tasks of a test."""
import os, signal, subprocess, sys, time
from pathlib import Path
from conductor_cli import Cancel, Context, Fail, Retry, cron, task

HERE = Path(__file__).parent

def mark(name):
    (HERE / f"{name}.{os.getpid()}").touch()

@task
def greet(name: str) -> str:
    return f"Hello, {name}!"

@task(queue="reports", max_attempts=5, retry=[15, 30], timeout=300,
      triggers=[cron("0 6 * * *", name="daily", payload={"kind": "daily"},
                     timezone="Europe/Berlin")])
def build(ctx: Context, kind: str) -> dict:
    return {"kind": kind}

@task(max_attempts=1)
def fail() -> None:
    raise ValueError("broken\\x1b[31m on purpose")

@task(max_attempts=3, retry=[3600])
def fail_later() -> None:
    raise ValueError("not yet")

@task
def fail_once(ctx: Context) -> int:
    if ctx.runs == 1:
        raise ValueError("once")
    return ctx.runs

@task
def give_up() -> None:
    raise Cancel("no need")

@task
def echo(payload):
    return payload

@task
def stay(name: str) -> None:
    """Runs on, whatever it is asked."""
    mark(name)
    time.sleep(60)

@task
def short(name: str) -> str:
    """Half a second of work that does not look at the clock."""
    mark(name)
    time.sleep(0.5)
    return "done"

@task(invocable=False)
def hidden() -> None: ...

@task
def ask(ctx: Context) -> int:
    return len(ctx.conductor.list())

@task(timeout=0.2)
def too_slow() -> None:
    while True:
        time.sleep(0.01)

@task
def fork() -> int:
    """By which signal a child of its own ends that is told to end."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    os.kill(child, signal.SIGTERM)
    return os.WTERMSIG(os.waitpid(child, 0)[1])

@task
def leave_orphan() -> int:
    """Its child ends at once and leaves a child of its own, which ends a moment later."""
    subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
    return subprocess.run(["sh", "-c", "sleep 0.4; exit 7"]).returncode
'''


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


class Project:
    """A folder with a configuration and a module of tasks, `work`."""

    def __init__(self, folder: Path, url: str, *, shutdown_timeout: float = 6.0) -> None:
        self.folder = folder
        self.url = url
        (folder / "conductor.toml").write_text(SETTINGS.format(shutdown_timeout=shutdown_timeout))
        (folder / "work.py").write_text(WORK)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        url = {"CONDUCTOR_DATABASE_URL": self.url} if self.url else {}
        return {**kept, "COLUMNS": "200", **url, **(extra or {})}

    def run(
        self,
        *words: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        within: float = PATIENCE,
    ) -> Done:
        """Run a command to its end."""
        began = time.monotonic()
        done = subprocess.run(
            command(*words),
            cwd=self.folder,
            env=self.environment(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> Running:
        """Run a command in the background."""
        return Running([*prefix, *command(*words)], self.folder, self.environment(env))

    def marks(self, name: str) -> list[Path]:
        """The traces that runs of a task have left."""
        return list(self.folder.glob(f"{name}.*"))


class Running:
    """A command that runs; what it writes to stderr is at hand."""

    def __init__(self, words: list[str], folder: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def wait_for(self, text: str, within: float = PATIENCE) -> str:
        """The first line of stderr that contains it."""
        until = time.monotonic() + within
        with self._changed:
            while True:
                for line in self._lines:
                    if text in line:
                        return line
                left = until - time.monotonic()
                assert left > 0, f"{text!r} did not come:\n{self.err}"
                assert self._reader.is_alive(), f"it ended without {text!r}:\n{self.err}"
                self._changed.wait(left)

    def wait_until_ready(self) -> int:
        """The port on which it serves."""
        line = json.loads(self.wait_for("Serving http://"))
        return int(line["event"].rpartition(":")[2])

    def signal(self, number: int) -> float:
        """Send it a signal; returns the moment."""
        self.process.send_signal(number)
        return time.monotonic()

    def end(self, within: float = PATIENCE) -> int:
        """Its exit code, once it has ended by itself."""
        code = self.process.wait(within)
        self._reader.join()
        return code

    @property
    def err(self) -> str:
        return "".join(self._lines)

    @property
    def out(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


def command(*words: str) -> list[str]:
    """The command of this installation, or of this checkout."""
    script = Path(sys.executable).with_name("conductor")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "conductor_cli"]
    return [*start, *words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def eventually(check: Callable[[], Any], within: float = PATIENCE, what: str = "it") -> Any:
    """The first true answer of ``check``."""
    until = time.monotonic() + within
    while not (answer := check()):
        assert time.monotonic() < until, f"{what} did not happen within {within} s"
        time.sleep(0.02)
    return answer
