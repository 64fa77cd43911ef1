"""The data folder of the private Postgres: making it, checking it, unsticking it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from conductor_cli.embedded import place, programs
from conductor_cli.errors import ConfigError, DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conductor_cli.embedded.place import Area

USER = "conductor"
DATABASE = "postgres"
INITDB_TIMEOUT = 120.0
TOLD_LINES = 12  # of a failed program's output, in the error
NO_PID = 2**31 - 1  # above every system's largest pid, so kill() says that nobody has it
PR_SET_PDEATHSIG = 1


def prepare(area: Area, folder: Path, version: str, server_lock: int) -> None:
    """Make the data if there are none; ConfigError if they are another version's."""
    if area.data.is_dir():
        _check_version(area.data, folder, version)
    else:
        _initdb(area, folder, version, server_lock)


def url(area: Area) -> str:
    """Give the address of the server: all of it, so that no PG* variable fills a gap.

    The folder of the sockets has no character that would need quoting.
    """
    return f"postgresql://{USER}@/{DATABASE}?host={area.sockets}&port={place.PORT}"


def command(area: Area, folder: Path, version: str) -> list[str]:
    """Give the command line of the server. Settings are there so that old data get them too."""
    settings = [f"--{name}={value}" for name, value in _settings(area, version).items()]
    return [str(folder / "postgres"), "-D", str(area.data), *settings]


def make_pid_impossible(area: Area) -> None:
    """Make a left ``postmaster.pid`` name a pid that nobody has. Only when no server lives.

    After a crash the pid in it may be anybody's, and Postgres would refuse to start. The file
    is not deleted: its shared-memory line lets Postgres notice processes we know nothing of.
    The socket's lock file has no such line, and goes.
    """
    for path in (area.socket, area.socket.with_name(area.socket.name + ".lock")):
        path.unlink(missing_ok=True)
    pid_file = area.data / "postmaster.pid"
    try:
        # The folder is the server account's: root must not be led elsewhere by a link in it.
        fd = os.open(pid_file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "r+", encoding="utf-8", errors="surrogateescape") as file:
        if os.fstat(fd).st_nlink > 1:
            raise DatabaseUnavailable(f"{pid_file} has a second name; remove it, and start again.")
        lines = file.read().splitlines(keepends=True)
        if len(lines) > 1:
            file.seek(0)
            file.writelines([f"{NO_PID}\n", *lines[1:]])
            file.truncate()
            return
    pid_file.unlink()  # cut short by a power failure; nothing in it to keep


def status(data: Path) -> tuple[int, str]:
    """Read the postmaster's pid and what it says of itself: "ready", "starting", "stopping"."""
    try:
        lines = (data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (OSError, ValueError, IndexError):
        return 0, ""


def signal_left(data: Path, signum: signal.Signals) -> None:
    """Send ``signum`` to the processes of a Postgres that nobody keeps any more."""
    for pid in _left(data):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def dying_with_its_parent(signum: int) -> Callable[[], None]:
    """Give what a child calls before exec, so that the kernel ends it when this process dies.

    Linux only. Called in the child after it has changed its account, which would undo it.
    Elsewhere the next starter stops what a killed keeper has left.
    """
    libc = ctypes.CDLL(None)  # looked up before the fork
    keeper = os.getpid()

    def ask() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
            if os.getppid() != keeper:  # it died before the call
                os._exit(1)

    return ask


def _left(data: Path) -> list[int]:
    """Find the server processes that work in ``data``; elsewhere than on Linux the first only."""
    if Path("/proc/self/cwd").exists():
        found = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        return [pid for pid in found if _works_in(pid, data)]
    pid, _ = status(data)
    told = subprocess.run(
        ["ps", "-o", "command=", "-p", f"{pid}"], check=False, capture_output=True
    )
    return [pid] if pid and os.fsencode(data) in told.stdout else []


def _works_in(pid: int, data: Path) -> bool:
    """Say whether ``pid`` is a postgres in ``data``; a pid in a file may by now be anybody's."""
    process = Path("/proc", f"{pid}")
    try:
        named = (process / "comm").read_text("utf-8", "replace").startswith("postgres")
        return named and (process / "cwd").samefile(data)
    except OSError:
        return False


def _check_version(data: Path, folder: Path, version: str) -> None:
    try:
        written = (data / "PG_VERSION").read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{data} holds no Postgres data that can be read ({error}). Move the folder away to "
            f"begin with an empty database."
        ) from error
    if programs.major(written) != programs.major(version):
        raise ConfigError(
            f"The data in {data} were written by Postgres {written}, and the programs in {folder} "
            f"are Postgres {version}, which cannot read them. Install Postgres {written}; or, if "
            f"the data may go, begin with an empty database: mv '{data}' '{data}.{written}'"
        )


def _initdb(area: Area, folder: Path, version: str, server_lock: int) -> None:
    shutil.rmtree(area.new_data, ignore_errors=True)  # from a start that was cut short
    place.make_private_folder(area.new_data, area.account)
    output, code = _run(_initdb_command(area, folder, version), area, server_lock)
    if code != 0:
        shutil.rmtree(area.new_data, ignore_errors=True)
        raise DatabaseUnavailable(
            f"Postgres could not make its data folder {area.data} ({folder}/initdb ended with "
            f"{code}):\n{last_lines(output)}"
        )
    area.new_data.rename(area.data)
    _sync(area.folder)


def _initdb_command(area: Area, folder: Path, version: str) -> list[str]:
    locale = ["--locale=C"]
    if programs.major(version) >= 17:  # knows letters beyond ASCII, without the system's locales
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return [
        str(folder / "initdb"),
        f"--pgdata={area.new_data}",
        f"--username={USER}",
        "--auth-local=trust",  # the folder of the socket is the check
        "--auth-host=reject",
        "--encoding=UTF8",
        "--no-instructions",
        *locale,
    ]


def _run(command: list[str], area: Area, server_lock: int) -> tuple[str, int]:
    try:
        ran = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=programs.environment(),
            pass_fds=[server_lock],
            preexec_fn=dying_with_its_parent(signal.SIGKILL),
            timeout=INITDB_TIMEOUT,
            **place.identity(area.account),
        )
    except subprocess.TimeoutExpired as error:
        return f"{error}", -signal.SIGKILL
    except (OSError, subprocess.SubprocessError) as error:
        return f"{error}", 127
    return ran.stdout.decode("utf-8", "replace"), ran.returncode


def last_lines(output: str) -> str:
    """Cut a program's output to what fits in an error."""
    return "\n".join(output.strip().splitlines()[-TOLD_LINES:]) or "(it said nothing)"


def _settings(area: Area, version: str) -> Mapping[str, str]:
    settings = {
        "listen_addresses": "",
        "port": f"{place.PORT}",
        "unix_socket_directories": str(area.sockets),
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "shared_buffers": "64MB",
        "max_wal_size": "512MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_line_prefix": "%m [%p] ",
        "log_checkpoints": "off",
        "lc_messages": "C",
        "cluster_name": "conductor",
    }
    if programs.major(version) >= 18:
        settings["io_method"] = "sync"  # three processes fewer
    return settings


def _sync(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
