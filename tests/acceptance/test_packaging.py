"""What a stranger gets: the archives, an installation away from the checkout, the make commands."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("CONDUCTOR_", "DATABASE_URL", "PG", "PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS", "UV")
NO_NETWORK = ("NameResolutionError", "Failed to establish a new connection", "dns error")

SAFE_TAR = hasattr(tarfile, "data_filter")


@dataclass(frozen=True)
class Archives:
    wheel: Path
    sdist: Path


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it, and a folder to work in; both far from here."""

    bin: Path
    folder: Path

    def conductor(self, *arguments: str) -> str:
        return run(str(self.bin / "conductor"), *arguments, cwd=self.folder)


def environment(**changes: str) -> dict[str, str]:
    """Give what a shell has, less what this test run or its user has set for other programs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OTHERS)}
    return {**kept, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "NO_COLOR": "1", **changes}


def run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run to the end and give what went to stdout; what went to stderr is in the failure."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def build(source: Path, target: str, folder: Path) -> Path:
    before = set(folder.iterdir())
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder), cwd=source)
    (built,) = set(folder.iterdir()) - before
    return built


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    folder = tmp_path_factory.mktemp("dist")
    return Archives(build(ROOT, "wheel", folder), build(ROOT, "sdist", folder))


@pytest.fixture(scope="module")
def installation(archives: Archives) -> Iterator[Installation]:
    # Not a tmp_path: as root, the embedded Postgres runs as an account that cannot enter those.
    home = Path(tempfile.mkdtemp(prefix="conductor-installed-"))
    home.chmod(0o755)
    try:
        install(archives.wheel, home / "venv")
        folder = home / "elsewhere"
        folder.mkdir()
        yield Installation(home / "venv" / "bin", folder)
        wait_for_postgres_to_leave(folder)
    finally:
        shutil.rmtree(home)


def install(wheel: Path, venv: Path) -> None:
    """Install as a user would, but the versions under test: a release elsewhere breaks nothing."""
    constraints = wheel.parent / "constraints.txt"
    constraints.write_text(
        "".join(
            f"{found.name}=={found.version}\n"
            for found in metadata.distributions()
            if found.name not in {"conductor-cli", "pip", "setuptools"}
        ),
        encoding="utf-8",
    )
    what = ("--quiet", "--constraint", str(constraints), f"{wheel}[embedded]")
    uv = shutil.which("uv")
    try:
        if importlib.util.find_spec("ensurepip"):
            run(sys.executable, "-m", "venv", str(venv), cwd=wheel.parent)
            run(str(venv / "bin/python"), "-m", "pip", "install", *what, cwd=wheel.parent)
        elif uv:
            run(uv, "venv", "--quiet", "--python", sys.executable, str(venv), cwd=wheel.parent)
            python = str(venv / "bin/python")
            run(uv, "pip", "install", "--python", python, *what, cwd=wheel.parent)
        else:
            pytest.skip("neither pip nor uv is here to install the wheel with")
    except AssertionError as error:
        if "CI" not in os.environ and any(sign in str(error) for sign in NO_NETWORK):
            pytest.skip("the package index cannot be reached to install the wheel's requirements")
        raise


def wait_for_postgres_to_leave(folder: Path, within: float = 30.0) -> None:
    """Wait for the private Postgres, which stops by itself once nobody uses it."""
    deadline = time.monotonic() + within
    while any(folder.rglob("postmaster.pid")):
        assert time.monotonic() < deadline, f"the embedded Postgres of {folder} still runs"
        time.sleep(0.05)


def test_the_wheel_holds_the_package_its_migrations_and_its_licence(archives: Archives) -> None:
    held = names(archives.wheel)
    package = {
        f"conductor_cli/{path.relative_to(ROOT / 'conductor_cli')}"
        for path in (ROOT / "conductor_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    migrations = {f"conductor_cli/migrations/{path.name}" for path in ROOT.glob("migrations/*.sql")}
    assert migrations
    assert package | migrations <= held
    assert any(name.endswith("/licenses/LICENSE") for name in held)


def test_the_wheel_holds_nothing_else(archives: Archives) -> None:
    tops = {name.partition("/")[0] for name in names(archives.wheel)}
    version = metadata.version("conductor-cli")
    assert tops == {"conductor_cli", f"conductor_cli-{version}.dist-info"}


def test_the_source_archive_builds_the_same_wheel(archives: Archives, tmp_path: Path) -> None:
    with tarfile.open(archives.sdist) as archive:
        # The filter came with 3.11.4 and will be the default; Debian 12 has 3.11.2.
        archive.extractall(tmp_path, **({"filter": "data"} if SAFE_TAR else {}))
    (source,) = tmp_path.iterdir()
    again = build(source, "wheel", tmp_path)
    assert names(again) == names(archives.wheel)


def test_the_source_archive_holds_what_a_contributor_needs(archives: Archives) -> None:
    with tarfile.open(archives.sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"}
    tests = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/*.py")}
    assert wanted | tests <= held


@pytest.mark.timeout(600)
def test_an_installed_conductor_tells_its_version(installation: Installation) -> None:
    assert metadata.version("conductor-cli") in installation.conductor("--version")


@pytest.mark.timeout(600)
def test_an_installed_conductor_finds_nothing_of_the_checkout(installation: Installation) -> None:
    place = "import conductor_cli; print(conductor_cli.__file__)"
    found = run(str(installation.bin / "python"), "-c", place, cwd=installation.folder)
    assert Path(found.strip()).is_relative_to(installation.bin.parent)


@pytest.mark.timeout(600)
def test_an_installed_conductor_makes_a_project_and_works_it_off(
    installation: Installation,
) -> None:
    installation.conductor("init")
    created = json.loads(installation.conductor("invoke", "greet", '{"name": "World"}', "--json"))
    report = json.loads(installation.conductor("drain", "--json"))
    assert (report["completed"], report["failed"]) == (1, 0)
    shown = json.loads(installation.conductor("executions", "show", created["id"], "--json"))
    assert shown["state"] == "completed"


# --- The make commands -------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with only what make looks at before it installs anything."""
    if not shutil.which("make"):
        pytest.skip("make is not installed here")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def program(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def make_refuses(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (checkout / ".venv").exists()
    return done.stderr


@pytest.mark.parametrize("command", ["run", "test"])
def test_make_says_that_python_is_too_old(checkout: Path, command: str) -> None:
    old = program(checkout, "python3", '[ "$1" != --version ] || exec echo "Python 3.9.2"; exit 3')
    said = make_refuses(checkout, command, "UV=", f"PYTHON={old}")
    assert "needs Python 3.11 or newer" in said
    assert f"{old} is Python 3.9.2" in said


def test_make_names_the_package_that_brings_venv(checkout: Path) -> None:
    bare = program(checkout, "python3", "exit 1  # as `import ensurepip` ends without it")
    assert "apt install python3-venv" in make_refuses(checkout, "test", "UV=", f"PYTHON={bare}")


def test_make_leaves_a_virtual_environment_alone_that_it_did_not_make(checkout: Path) -> None:
    mine = checkout / "mine"
    mine.mkdir()
    (mine / "pyvenv.cfg").touch()
    assert "not made by this Makefile" in make_refuses(checkout, "test", "VENV=mine")
    assert (mine / "pyvenv.cfg").exists()


def test_make_help_names_every_command(checkout: Path) -> None:
    said = run("make", "help", cwd=checkout)
    for command in ("run", "test", "check", "wheel", "bench", "clean"):
        assert f"make {command} " in said


# --- systemd -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service() -> Mapping[str, str]:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(ROOT / "deploy" / "conductor.service", encoding="utf-8")
    return unit["Service"]


def test_systemd_waits_longer_for_a_stop_than_conductor_takes(service: Mapping[str, str]) -> None:
    shutdown_timeout = 25  # the default of coordinator.shutdown_timeout
    assert int(service["TimeoutStopSec"]) >= shutdown_timeout + 10


def test_systemd_starts_again_but_for_what_a_start_cannot_mend(service: Mapping[str, str]) -> None:
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"].split() == ["2", "3", "5"]
