"""Where a project's private Postgres lives, and as which account it runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from conductor_cli.errors import ConfigError

VAR = Path("/var/lib/conductor")
SHORT = Path("/tmp")  # not TMPDIR: every user of the server must come to the same folder
LONGEST_SOCKET_FOLDER = 85  # bytes; sun_path holds 103 on macOS, "/.s.PGSQL.5432.lock" takes 19
PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./-]+")  # commas, spaces and quotes mean something to libpq
PORT = 5432  # only the name of the socket: nothing listens on TCP
SERVER_ACCOUNTS = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """The account Postgres runs as when root starts it."""

    name: str
    uid: int
    gid: int


class Identity(TypedDict):
    """The arguments of ``subprocess`` that say as whom a program runs; None: as ourselves."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


@dataclass(frozen=True)
class Area:
    """The folder of one private Postgres; ``account`` is None when it runs as ourselves."""

    folder: Path
    account: Account | None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def new_data(self) -> Path:
        """What ``initdb`` fills; renamed when it is complete, so ``data`` is never half made."""
        return self.folder / "data.new"

    @property
    def users_lock(self) -> Path:
        """Held shared by every user; whoever gets it exclusively knows that nobody is left."""
        return self.folder / "users.lock"

    @property
    def start_lock(self) -> Path:
        """Held exclusively while one process starts the keeper and the others wait for it."""
        return self.folder / "start.lock"

    @property
    def keeper_lock(self) -> Path:
        """Held exclusively by the living keeper."""
        return self.folder / "keeper.lock"

    @property
    def server_lock(self) -> Path:
        """Inherited by every process of Postgres: free means that none of them is left."""
        return self.folder / "server.lock"

    @property
    def state(self) -> Path:
        """What the keeper tells of a server that is ready; true only while the keeper lives."""
        return self.folder / "server.json"

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def sockets(self) -> Path:
        """The folder of the socket: inside the area, or a short one when the path is unfit.

        It depends on the area alone, so that the URL outlives a restart of the keeper.
        """
        inside = self.folder / "socket"
        text = os.fsencode(inside)
        if len(text) <= LONGEST_SOCKET_FOLDER and PLAIN_PATH.fullmatch(os.fsdecode(text)):
            return inside
        uid = self.account.uid if self.account else os.geteuid()
        return SHORT / f"conductor-{uid}-{_hash_of(self.folder)}"

    @property
    def socket(self) -> Path:
        """Where the server listens."""
        return self.sockets / f".s.PGSQL.{PORT}"

    def open(self, path: Path, flags: int) -> int:
        """Open a file of the area, made if missing: 0600, and by root for the area's owner.

        The owner may come without root later. What is there already is neither followed nor
        given away: the owner could have root do it to any file.
        """
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.open(path, flags)
        if os.geteuid() == 0:
            owner = self.folder.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)
        return fd


def of(project: Path) -> Area:
    """Say where the Postgres of ``project`` lives. Makes nothing; ConfigError without a project."""
    try:
        project = project.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"The project folder {project} cannot be found: {error}.") from error
    if not project.is_dir():
        raise ConfigError(f"The project folder {project} is not a folder.")
    if os.geteuid() != 0:
        return Area(project / ".conductor", None)
    return _of_root(project)


def prepare(area: Area) -> None:
    """Make the area and its lock files; ConfigError naming the folder when that cannot be."""
    try:
        _make_folders(area)
        for lock in (area.users_lock, area.start_lock, area.keeper_lock, area.server_lock):
            os.close(area.open(lock, os.O_RDWR))
    except OSError as error:
        raise ConfigError(_cannot_keep(area, error)) from error


def can_reach(account: Account, path: Path) -> bool:
    """Say whether ``account`` may enter the folder, or run the program, ``path``.

    Asked of the kernel, as that account: mode bits alone miss access lists and mounts.
    """
    command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
    return subprocess.run(command, check=False, cwd="/", **identity(account)).returncode == 0


def identity(account: Account | None) -> Identity:
    """Give the arguments with which ``subprocess`` becomes ``account``."""
    if account is None:
        return {"user": None, "group": None, "extra_groups": None}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def make_private_folder(path: Path, account: Account | None) -> None:
    """Make ``path`` a 0700 folder of the server's account; ConfigError if it is another's."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    owner = account.uid if account else os.geteuid()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(_unsafe(path, "is not a folder of its own")) from error
    try:
        found = os.fstat(fd).st_uid
        if found not in {owner, os.geteuid()}:
            raise ConfigError(_unsafe(path, f"belongs to {_name_of(found)}"))
        os.fchmod(fd, 0o700)
        if account is not None:
            os.fchown(fd, account.uid, account.gid)
    finally:
        os.close(fd)


def _of_root(project: Path) -> Area:
    inside, outside = project / ".conductor", VAR / _hash_of(project)
    for folder in (inside, outside):
        if owner := _owner_of(folder / "data"):  # data stay where, and whose, they are
            return Area(folder, owner)
    account = _server_account()
    return Area(inside if can_reach(account, project) else outside, account)


def _owner_of(data: Path) -> Account | None:
    """Say who owns the data, if that is not root. Postgres runs as nobody else on them."""
    try:
        found = data.lstat()
    except OSError:
        return None
    if found.st_uid == 0 or not stat.S_ISDIR(found.st_mode):
        return None
    return Account(_name_of(found.st_uid), found.st_uid, found.st_gid)


def _server_account() -> Account:
    for name in SERVER_ACCOUNTS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return Account(name, found.pw_uid, found.pw_gid)
    raise ConfigError(
        f"Postgres refuses to run as root, and there is no account named "
        f"{' or '.join(SERVER_ACCOUNTS)} to run it as. Make one (useradd --system postgres), or "
        f"run Conductor as an ordinary user."
    )


def _make_folders(area: Area) -> None:
    # As root the server's account must be able to pass through, and nobody needs to look in.
    mode = 0o700 if area.account is None else 0o711
    if not area.folder.parent.exists():
        area.folder.parent.mkdir(mode=0o755)
        area.folder.parent.chmod(0o755)
    if not area.folder.exists():
        area.folder.mkdir(mode=mode, exist_ok=True)
    found = area.folder.stat()
    if found.st_uid == os.geteuid() and found.st_mode & mode != mode:
        area.folder.chmod(mode)  # the umask, or a folder made by hand
    ignore = area.open(area.folder / ".gitignore", os.O_RDWR)
    try:
        if not os.fstat(ignore).st_size:
            os.write(ignore, b"*\n")
    finally:
        os.close(ignore)


def _cannot_keep(area: Area, error: OSError) -> str:
    try:
        nearest = next(path for path in (area.folder, *area.folder.parents) if path.exists())
        owner = f" {nearest} belongs to {_name_of(nearest.stat().st_uid)}."
    except OSError:
        owner = ""
    return (
        f"The embedded Postgres cannot keep its data in {area.folder}: "
        f"{error.strerror or error}.{owner} Make it writable for {_name_of(os.geteuid())}, or set "
        f"database.url to a Postgres of your own."
    )


def _unsafe(path: Path, why: str) -> str:
    return f"{path} {why}, so the embedded Postgres is not safe there. Remove it, and start again."


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _hash_of(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
