"""Makes each peer's own environment under bench/.work/env, once, and says how to start it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from bench.peer import Here, NodeModules, Peer, Venv

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
WORK: Final = ROOT / "bench" / ".work"
INSTALL_TIMEOUT: Final = 300.0  # seconds


class EnvironmentFailed(Exception):
    """A peer's packages could not be installed; the message carries the installer's last words."""


def command(peer: Peer) -> list[str]:
    """The command line that starts the peer's adapter, after making its environment if needed."""
    match peer.environment:
        case Here():
            return [sys.executable, "-P", "-m", peer.program]
        case Venv() as venv:
            return [str(_venv(peer.name, venv) / "bin" / "python"), "-P", "-m", peer.program]
        case NodeModules() as modules:
            return _node(peer, modules)
        case _:
            assert_never(peer.environment)


def variables() -> dict[str, str]:
    """The environment variables of an adapter: this process's, less what would steer a client.

    Compiled modules are cached, as an installation has them, but not in the checkout.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "CONDUCTOR_", "PYTHON"))}
    kept.pop("DATABASE_URL", None)
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(WORK / "pycache")}


def _venv(name: str, venv: Venv) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folder = _folder(name, (version, *venv.requirements))
    if not (folder / "complete").exists():
        _start_over(folder)
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        _run([*pip, "--disable-pip-version-check", *venv.requirements])
        (folder / "complete").touch()
    return folder


def _node(peer: Peer, modules: NodeModules) -> list[str]:
    packages = modules.packages
    if (own := _machine_has_node(modules.node_major)) is None:
        packages = (*packages, modules.node_package)
    folder = _folder(peer.name, packages)
    if not (folder / "complete").exists():
        _start_over(folder)
        (folder / "package.json").write_text('{"private": true}\n')
        _run(["npm", "install", "--no-audit", "--no-fund", "--save-exact", *packages], cwd=folder)
        (folder / "complete").touch()
    # Node resolves a module's imports from where its file lies: so the adapter lies there too.
    for source in (ROOT / "bench" / "peers").glob("*.mjs"):
        shutil.copy2(source, folder / source.name)
    package = modules.node_package.rsplit("@", 1)[0]
    node = own or str(folder / "node_modules" / package / "bin" / "node")
    return [node, str(folder / peer.program)]


def _machine_has_node(major: int) -> str | None:
    node = shutil.which("node")
    if node is None:
        return None
    version = subprocess.check_output([node, "--version"], text=True, timeout=20)
    found = version.strip().removeprefix("v").split(".")[0]
    return node if found.isdigit() and int(found) >= major else None


def _folder(name: str, pins: Sequence[str]) -> Path:
    digest = hashlib.sha256("\n".join(pins).encode()).hexdigest()[:8]
    return WORK / "env" / f"{name}-{digest}"


def _start_over(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _run(command_line: Sequence[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(
            command_line,
            cwd=cwd,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        raise EnvironmentFailed(f"{' '.join(command_line)}: {error.stdout[-800:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(f"{' '.join(command_line)}: {error}") from error
