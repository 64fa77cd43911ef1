"""Configuration: where values come from, what is refused, and that no secret shows."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conductor_cli import config as rooms
from conductor_cli.config import (
    Config,
    Coordinator,
    Server,
    Worker,
    WorkerConfig,
    check_exposure,
    load,
    redacted,
    to_toml,
)
from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = Path(__file__).parents[2] / "conductor.toml.example"
URL = {"CONDUCTOR_DATABASE_URL": "postgresql://localhost/app"}
SECTIONS = [each.name for each in dataclasses.fields(Config) if each.name != "path"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "conductor.toml") -> Path:
    Path(name).write_text(text, "utf-8")
    return Path(name)


def from_file(text: str, environ: Mapping[str, str] = URL, **options: Any) -> Config:
    return load(written(text), environ=environ, **options)


def problems(
    text: str | None = None, environ: Mapping[str, str] = URL, **options: Any
) -> tuple[str, ...]:
    if text is not None:
        written(text)
    with pytest.raises(ConfigError) as caught:
        load(environ=environ, **options)
    return tuple(caught.value.problems)


def problem(text: str | None = None, environ: Mapping[str, str] = URL, **options: Any) -> str:
    found = problems(text, environ, **options)
    assert len(found) == 1, found
    assert "\n" not in found[0]
    return found[0]


# ---------------------------------------------------------------- defaults and precedence


def test_without_anything_but_a_database_the_documented_defaults_hold() -> None:
    config = load(environ=URL)
    assert config.database.url == "postgresql://localhost/app"
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8765)
    assert (config.server.token, config.server.dashboard) == (None, True)
    assert (config.tasks.modules, config.tasks.setup) == ((), None)
    assert config.tasks.max_payload == 1024 * 1024
    assert config.worker == Worker(10, 1.0, None, None, {})
    assert config.coordinator == Coordinator(5.0, 15.0, 25.0)
    assert config.scheduler.timezone == "UTC"
    assert (config.retention.completed, config.retention.failed) == (604800, 2592000)
    assert (config.log.level, config.log.format) == ("info", "auto")
    assert config.path is None
    assert config.folder == Path.cwd()


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults() -> None:
    text = "[server]\nport = 1\n[worker]\nconcurrency = 1\npoll_interval = 2\n[log]\nlevel='error'"
    environ = {**URL, "CONDUCTOR_SERVER_PORT": "2", "CONDUCTOR_WORKER_CONCURRENCY": "2"}
    config = from_file(text, environ, overrides={"server.port": 3, "worker.concurrency": None})
    assert config.server.port == 3
    assert config.worker.concurrency == 2  # a flag of None was not given
    assert config.worker.poll_interval == 2.0
    assert config.log.level == "error"
    assert config.server.host == "127.0.0.1"


def test_the_process_environment_is_read_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith(("CONDUCTOR_", "DATABASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONDUCTOR_DATABASE_URL", "postgres://elsewhere/db")
    assert load().database.url == "postgresql://elsewhere/db"


def test_every_key_can_be_set_in_the_environment() -> None:
    config = load(
        environ={
            "CONDUCTOR_DATABASE_URL": "embedded",
            "CONDUCTOR_SERVER_HOST": "localhost",
            "CONDUCTOR_SERVER_PORT": "1",
            "CONDUCTOR_SERVER_TOKEN": "t0ken",
            "CONDUCTOR_SERVER_DASHBOARD": "false",
            "CONDUCTOR_TASKS_MODULES": "a.tasks, b.* ,c",
            "CONDUCTOR_TASKS_SETUP": "a.b:setup",
            "CONDUCTOR_TASKS_MAX_PAYLOAD": "2048",
            "CONDUCTOR_WORKER_CONCURRENCY": "7",
            "CONDUCTOR_WORKER_POLL_INTERVAL": "0.5",
            "CONDUCTOR_WORKER_FLUSH_INTERVAL": "0",
            "CONDUCTOR_WORKER_FETCH_BATCH_SIZE": "50",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_INTERVAL": "1",
            "CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT": "4",
            "CONDUCTOR_COORDINATOR_SHUTDOWN_TIMEOUT": "9.5",
            "CONDUCTOR_SCHEDULER_TIMEZONE": "Europe/Berlin",
            "CONDUCTOR_RETENTION_COMPLETED": "false",
            "CONDUCTOR_RETENTION_FAILED": "forever",
            "CONDUCTOR_LOG_LEVEL": "DEBUG",
            "CONDUCTOR_LOG_FORMAT": "json",
        }
    )
    assert config.database == rooms.Database("embedded")
    assert config.server == Server("localhost", 1, "t0ken", False)
    assert config.tasks == rooms.Tasks(("a.tasks", "b.*", "c"), "a.b:setup", 2048)
    assert config.worker == Worker(7, 0.5, 0.0, 50)
    assert config.coordinator == Coordinator(1.0, 4.0, 9.5)
    assert config.scheduler.timezone == "Europe/Berlin"
    assert (config.retention.completed, config.retention.failed) == (0, math.inf)
    assert (config.log.level, config.log.format) == ("debug", "json")


def test_a_variable_that_is_set_to_nothing_counts_as_unset() -> None:
    environ = {**URL, "CONDUCTOR_SERVER_PORT": "", "CONDUCTOR_CONFIG": "", "DATABASE_URL": " "}
    assert load(environ=environ).server.port == 8765


# ---------------------------------------------------------------- which file


def test_an_explicit_file_beats_the_variable_which_beats_the_default_file() -> None:
    written("[server]\nport = 1")
    written("[server]\nport = 2", "two.toml")
    written("[server]\nport = 3", "three.toml")
    assert load(environ=URL).server.port == 1
    named = {**URL, "CONDUCTOR_CONFIG": "two.toml"}
    assert load(environ=named).server.port == 2
    assert load(Path("three.toml"), environ=named).server.port == 3
    assert load("three.toml", environ=named).server.port == 3


def test_the_folder_is_the_files_and_stays_when_the_process_moves(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "sub").mkdir()
    written("", "sub/c.toml")
    config = load(Path("sub/c.toml"), environ=URL)
    monkeypatch.chdir("/")
    assert config.path == here / "sub" / "c.toml"
    assert config.folder == here / "sub"


@pytest.mark.parametrize("named", ["nowhere.toml", "."])
def test_a_file_that_was_named_must_be_readable(named: str) -> None:
    assert f"{named}: cannot be read" in problem(path=Path(named))
    assert f"{named}: cannot be read" in problem(environ={**URL, "CONDUCTOR_CONFIG": named})
    assert len(problems(environ={}, path=Path(named))) == 1  # and nothing about a missing URL


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake() -> None:
    Path("conductor.toml").write_bytes(
        b"\xef\xbb\xbf[server]\r\nport = 5\r\n[log]\r\nlevel = 1\r\n"
    )
    assert problem().startswith("conductor.toml:4: log.level = 1:")


def test_a_file_that_is_no_text_is_reported() -> None:
    Path("conductor.toml").write_bytes(b"[server]\nhost = '\xff\xfe'")
    assert problem() == "conductor.toml: expected UTF-8 text"


# ---------------------------------------------------------------- the database


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h:1/db?sslmode=require", "postgresql://u:p@h:1/db?sslmode=require"),
        ("postgres://h/db", "postgresql://h/db"),
        ("postgresql+psycopg://h/db", "postgresql://h/db"),
        ("postgres+asyncpg://h/db", "postgresql://h/db"),
        ("Postgres://h/db", "postgresql://h/db"),
        ("postgresql://", "postgresql://"),
        ("postgresql:///db?host=/tmp", "postgresql:///db?host=/tmp"),
        (" postgresql://h/db ", "postgresql://h/db"),
        ("host=h dbname='my db' password=p", "host=h dbname='my db' password=p"),
        ("service=mine", "service=mine"),
        ("embedded", "embedded"),
    ],
)
def test_a_database_is_accepted_and_normalised(url: str, expected: str) -> None:
    assert load(environ={"CONDUCTOR_DATABASE_URL": url}).database.url == expected
    assert load(environ={"DATABASE_URL": url}).database.url == expected
    assert from_file(to_toml({"database": {"url": url}}), {}).database.url == expected
    assert load(environ={}, overrides={"database.url": url}).database.url == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://u:hunter2@h/db", "'mysql://u:***@h/db'"),
        ("sqlite:///x.db", "'sqlite:///x.db'"),
        ("postgresqll://u:hunter2@h/db", "'postgresqll://u:***@h/db'"),
        ("postgresql:/u:hunter2@h/db", "***"),
        ("hunter2", "***"),
        ("u:hunter2@h/db", "***"),
        ("host=h\x1b password=hunter2", "'host=h\\x1b password=***'"),
        ("postgresql://u:hunter2@h/db\nx", "'postgresql://u:***@h/db\\nx'"),
    ],
)
def test_any_other_database_is_refused_by_its_scheme_without_its_password(
    url: str, shown: str
) -> None:
    expected = f'= {shown}: expected postgresql://user@host/database, "host=... dbname=..." or'
    in_environment = problem(environ={"CONDUCTOR_DATABASE_URL": url})
    assert in_environment.startswith(f"environment CONDUCTOR_DATABASE_URL {expected}")
    in_file = problem(to_toml({"database": {"url": url}}), {})
    assert in_file.startswith(f"conductor.toml:2: database.url {expected}")
    assert "hunter2" not in in_environment + in_file


def test_database_url_only_fills_a_gap() -> None:
    other = {"DATABASE_URL": "postgres://other/db"}
    assert load(environ=other).database.url == "postgresql://other/db"
    assert load(environ={**other, **URL}).database.url == "postgresql://localhost/app"
    assert load(environ=other, overrides={"database.url": "embedded"}).database.url == "embedded"
    wrong = {"DATABASE_URL": "mysql://h/db"}
    assert problem(environ=wrong).startswith("environment DATABASE_URL = 'mysql://h/db'")
    assert load(environ={**wrong, **URL}).database.url == "postgresql://localhost/app"
    assert from_file("[database]\nurl='embedded'", wrong).database.url == "embedded"


def test_no_database_says_how_to_get_one() -> None:
    message = problem(environ={})
    for way in ("[database]", "CONDUCTOR_DATABASE_URL", "conductor init", "postgresql://"):
        assert way in message
    assert problem("[log]\nlevel='info'", {}).startswith("conductor.toml: database.url is missing")


def test_a_database_that_is_not_required_may_be_missing() -> None:
    assert load(environ={}, require_database=False).database.url == ""
    mysql = {"DATABASE_URL": "mysql://h/db"}  # another program's
    assert load(environ=mysql, require_database=False).database.url == ""
    ours = {"DATABASE_URL": "postgres://h/db"}
    assert load(environ=ours, require_database=False).database.url == "postgresql://h/db"


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:pw@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql://u:p@w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p/w#?@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p:w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@corp:pw@h/db", "postgresql://u@corp:***@h/db"),
        ("postgresql://:pw@h/db", "postgresql://:***@h/db"),
        ("postgresql://u:pw@[::1]:5432/db", "postgresql://u:***@[::1]:5432/db"),
        ("postgresql://u:pw\nx@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:secret/db", "postgresql://u:***"),  # the host was forgotten
        ("postgresql://u:s3cret", "postgresql://u:***"),
        ("postgresql://h/db?user=u&password=pw&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("postgresql://h/db?sslPassword=pw", "postgresql://h/db?sslPassword=***"),
        ("postgresql://u@h:5432/db?x=1", "postgresql://u@h:5432/db?x=1"),
        ("postgresql://h:1,i:2/db", "postgresql://h:1,i:2/db"),
        ("postgresql://h:5432", "postgresql://h:5432"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("host=h password=pw user=u", "host=h password=*** user=u"),
        ("host=h password = 'p w\\' x' user=u", "host=h password = *** user=u"),
        ("password='unclosed pw", "password=***"),
        ("password=two words host=h", "password=*** host=h"),
        ("PASSWORD=pw sslpassword=pw", "PASSWORD=*** sslpassword=***"),
        ("password=a://b:c@d host=h", "password=*** host=h"),
        ("embedded", "embedded"),
        ("", ""),
    ],
)
def test_a_password_is_taken_out(url: str, expected: str) -> None:
    assert redacted(url) == expected
    assert redacted(expected) == expected


def test_no_secret_shows_in_a_repr() -> None:
    config = load(
        environ={
            "CONDUCTOR_DATABASE_URL": "postgresql://u:hunter2@h/db",
            "CONDUCTOR_SERVER_TOKEN": "hunter2",
        }
    )
    assert config.database.url == "postgresql://u:hunter2@h/db"
    assert config.server.token == "hunter2"
    for text in (repr(config), str(config), f"{config.database}", f"{config.server!r}"):
        assert "hunter2" not in text
    assert "postgresql://u:***@h/db" in repr(config)


@pytest.mark.parametrize(
    "text",
    [
        'database = "postgresql://u:hunter2@h/db"',
        'url = "postgresql://u:hunter2@h/db"',
        'database_url = "hunter2"',
        '[database]\nurll = "postgresql://u:hunter2@h/db"',
        '[database]\nurl = ["postgresql://u:hunter2@h/db"]',
        '[database]\nurl = {a = "hunter2"}',
        '[database]\npassword = "hunter2"',
        '[databse]\nurl = "postgresql://u:hunter2@h/db"',
        '[server]\ntokn = "hunter2"',
        '[server]\ntoken = "hunter2 with spaces"',
        '[server]\ntoken = ["hunter2"]',
        '[server]\nsecret_token = "hunter2"',
        '[server]\nhost = "http://u:hunter2@h"\nport = "x"',
        '[server]\nxyz = "hunter2"',
        '[tasks]\nmodules = "postgresql://u:hunter2@h/db"',
    ],
)
def test_no_secret_shows_in_a_problem(text: str) -> None:
    assert "hunter2" not in "".join(problems(text))


@pytest.mark.parametrize(
    "name",
    ["CONDUCTOR_DATABASE_PASSWORD", "CONDUCTOR_DATABASE_UR", "CONDUCTOR_SERVER_TOKN",
     "CONDUCTOR_SERVER_SECRET", "CONDUCTOR_DATABASEURL"],
)  # fmt: skip
def test_no_secret_shows_in_a_problem_of_the_environment(name: str) -> None:
    found = problem(environ={**URL, name: "hunter2"})
    assert name in found
    assert "hunter2" not in found


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("server", 'port = "80"', "server.port = '80': expected an integer from 0 to 65535"),
        ("server", "port = 65536", "server.port = 65536: expected an integer from 0 to 65535"),
        ("server", "port = -1", "server.port = -1: expected"),
        ("server", "port = true", "server.port = true: expected an integer"),
        ("server", "port = 80.0", "server.port = 80.0: expected an integer"),
        ("server", 'host = ""', "server.host = '': expected a host name or address"),
        ("server", "token = ''", "server.token = ***: expected printable ASCII without spaces"),
        ("server", "dashboard = 1", "server.dashboard = 1: expected true or false"),
        ("tasks", "modules = 'myapp'", "tasks.modules = 'myapp': expected a list of modules"),
        ("tasks", "modules = ['a', 1]", "tasks.modules = ['a', 1]: expected a list of modules"),
        ("tasks", "modules = ['a-b']", "tasks.modules = ['a-b']: expected"),
        ("tasks", "modules = ['a.*.b']", "tasks.modules = ['a.*.b']: expected"),
        ("tasks", "setup = 'myapp'", "tasks.setup = 'myapp': expected \"module:function\""),
        ("tasks", "max_payload = 0", "tasks.max_payload = 0: expected an integer from 1"),
        ("worker", "concurrency = 0", "worker.concurrency = 0: expected an integer from 1 to 1000"),
        ("worker", "concurrency = 1001", "worker.concurrency = 1001: expected"),
        ("worker", "processes = 0", "worker.processes = 0: expected an integer from 1 to 64"),
        ("worker", "poll_interval = 0", "worker.poll_interval = 0: expected seconds, more than 0"),
        ("worker", "poll_interval = inf", "worker.poll_interval = inf: expected seconds"),
        ("worker", "poll_interval = nan", "worker.poll_interval = nan: expected seconds"),
        ("worker", "flush_interval = -1", "worker.flush_interval = -1: expected seconds, from 0"),
        ("worker", "flush_interval = 1.1", "worker.flush_interval = 1.1: expected seconds, from 0"),
        (
            "worker",
            "flush_interval = 6",
            "worker.flush_interval = 6: expected seconds, from 0 to 1",
        ),
        ("worker", "fetch_batch_size = 0", "worker.fetch_batch_size = 0: expected an integer"),
        ("worker", "queues = 1", "worker.queues = 1: expected tables [worker.queues.NAME]"),
        ("worker", "queues.a = 1", "worker.queues.a = 1: expected a table [worker.queues.a]"),
        ("worker", "queues.'a b' = {}", "worker.queues.'a b' = {...}: expected a name like"),
        ("coordinator", "shutdown_timeout = '5'", "coordinator.shutdown_timeout = '5': expected"),
        ("scheduler", "timezone = 1", "scheduler.timezone = 1: expected a time zone such as"),
        ("retention", "completed = -1", "retention.completed = -1: expected seconds, 0 or more"),
        ("retention", "completed = true", "retention.completed = true: expected seconds"),
        ("retention", "failed = -inf", "retention.failed = -inf: expected seconds"),
        ("retention", "failed = 'for ever'", "retention.failed = 'for ever': expected seconds"),
        ("retention", "failed = 2026-01-01", "retention.failed = 2026-01-01: expected seconds"),
        (
            "log",
            "level = 'verbose'",
            "log.level = 'verbose': expected one of debug, info, warning,",
        ),
        ("log", "format = {}", "log.format = {...}: expected one of auto, console, json"),
    ],
)
def test_a_bad_value_is_reported_with_place_value_and_expectation(
    section: str, line: str, expected: str
) -> None:
    assert problem(f"\n[{section}]\n{line}\n").startswith(f"conductor.toml:3: {expected}")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("CONDUCTOR_SERVER_PORT", "http", "an integer from 0 to 65535"),
        ("CONDUCTOR_SERVER_PORT", "80.5", "an integer from 0 to 65535"),
        ("CONDUCTOR_SERVER_DASHBOARD", "maybe", "true or false"),
        ("CONDUCTOR_WORKER_POLL_INTERVAL", "1s", "seconds, more than 0"),
        ("CONDUCTOR_WORKER_POLL_INTERVAL", "nan", "seconds, more than 0"),
        ("CONDUCTOR_RETENTION_FAILED", "never", "seconds, 0 or more"),
        ("CONDUCTOR_TASKS_MODULES", "my app", "a list of modules"),
    ],
)
def test_a_bad_variable_is_reported(name: str, text: str, expected: str) -> None:
    found = problem(environ={**URL, name: text})
    assert found.startswith(f"environment {name} = ")
    assert text in found
    assert f"expected {expected}" in found


def test_a_bad_flag_is_reported() -> None:
    found = problem(overrides={"server.port": 70000})
    assert found == "flag server.port = 70000: expected an integer from 0 to 65535"
    assert "did you mean 'server.port'" in problem(overrides={"server.prot": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nprot = 1", "conductor.toml:2: server.prot = 1: unknown; did you mean 'port'?"),
        ("[log]\nlevle = 'info'", "2: log.levle = 'info': unknown; did you mean 'level'?"),
        ("[servr]\nport = 1", "1: servr = {...}: unknown; did you mean 'server'?"),
        ("[worker]\nqueue.a = {}", "2: worker.queue = {...}: unknown; did you mean 'queues'?"),
        (
            "[worker.queues.a]\nconcurency = 2",
            "2: worker.queues.a.concurency = 2: unknown; did you",
        ),
        ("concurrency = 5", "1: concurrency = 5: unknown; did you mean 'worker.concurrency'?"),
        (
            "[server]\nconcurrency = 5",
            "2: server.concurrency = 5: unknown; did you mean 'worker.con",
        ),
        ("[log]\nzzz = 5", "2: log.zzz = 5: unknown; expected one of level, format"),
        ("server = 5", "1: server = 5: expected a table [server]"),
        ('"a\\nb\\u001b" = 1', r"1: 'a\nb\x1b' = 1: unknown; expected one of database, server"),
        ("[[server]]\nport = 5", "1: server = [{...}]: expected a table [server]"),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest(text: str, expected: str) -> None:
    assert expected in problem(text)


def test_an_unknown_time_zone_names_the_nearest() -> None:
    found = problem("[scheduler]\ntimezone = 'Europe/Berln'")
    assert "scheduler.timezone = 'Europe/Berln': expected a time zone" in found
    assert "did you mean Europe/Berlin" in found


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CONDUCTOR_WORKER_CONCURENCY", "CONDUCTOR_WORKER_CONCURRENCY"),
        ("CONDUCTOR_LOG_LEVLE", "CONDUCTOR_LOG_LEVEL"),
        ("CONDUCTOR_DATABSE_URL", "CONDUCTOR_DATABASE_URL"),
        ("CONDUCTOR_COORDINATOR_HEARTBEAT", "CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT"),
    ],
)
def test_an_unknown_variable_is_reported_with_the_nearest(name: str, near: str) -> None:
    found = problem(environ={**URL, name: "5"})
    assert found.startswith(f"environment {name} = ")
    assert near[:-8] in found  # HEARTBEAT is as near to one as to the other


def test_what_others_call_their_variables_is_left_alone() -> None:
    environ = {
        "CONDUCTOR_TEST_DATABASE_URL": "x",
        "CONDUCTOR_TEST_COORDINATOR_HEARTBEAT_INTERVAL": "x",
        "CONDUCTOR_HOME": "x",
        "CONDUCTOR_PORT": "tcp://10.0.0.1:80",
        "PATH": "/bin",
        # What Kubernetes sets for a service called conductor-server:
        "CONDUCTOR_SERVER_PORT": "tcp://10.0.0.1:8765",
        "CONDUCTOR_SERVER_PORT_8765_TCP": "tcp://10.0.0.1:8765",
        "CONDUCTOR_SERVER_PORT_8765_TCP_ADDR": "10.0.0.1",
        "CONDUCTOR_SERVER_SERVICE_HOST": "10.0.0.1",
        "CONDUCTOR_SERVER_SERVICE_PORT": "8765",
        "CONDUCTOR_SERVER_SERVICE_PORT_HTTP": "8765",
    }
    assert load(environ={**URL, **environ}).server.port == 8765


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems(
        "[server]\nport = 'x'\nnonsense = 1\n[worker]\nconcurrency = 0\n",
        {"CONDUCTOR_LOG_LEVEL": "loud", "CONDUCTOR_LOG_LEVLE": "info"},
        overrides={"server.host": ""},
    )
    starts = [
        "conductor.toml:2: server.port",
        "conductor.toml:3: server.nonsense",
        "conductor.toml:5: worker.concurrency",
        "environment CONDUCTOR_LOG_LEVEL ",
        "environment CONDUCTOR_LOG_LEVLE ",
        "flag server.host",
        "conductor.toml: database.url is missing",
    ]
    assert len(found) == len(starts)
    assert all(one.startswith(start) for one, start in zip(found, starts, strict=True)), found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[server]\nport = \n", 2),
        ("[server\nport = 1\n", 1),
        ("[server]\nport = 1\nport = 2\n", 3),
        ("[server]\nhost = 'x\n", 2),
        ("[server]\n\nurl = postgresql://u:hunter2@h\n", 3),
        ("[server]\nport = 1\n[server]\nhost = 'h'\n", 3),
        ("[tasks]\nmodules = ['a',", 2),
    ],
)
def test_broken_toml_is_reported_with_its_line_and_the_rest_too(text: str, line: int) -> None:
    found = problems(text, {"CONDUCTOR_LOG_LEVEL": "loud"})
    assert len(found) == 2
    assert found[0].startswith(f"conductor.toml:{line}: not valid TOML")
    assert "hunter2" not in found[0]
    assert found[1].startswith("environment CONDUCTOR_LOG_LEVEL")


@pytest.mark.parametrize(
    ("text", "line", "path"),
    [
        ("server.port = 'x'", 1, "server.port"),
        ("# [server]\n# port = 1\n\nserver . port = 'x'", 4, "server.port"),
        ("[ server ] # [log]\n'port' = 'x'", 2, "server.port"),
        ('["server"]\n"p\\u006Frt" = \'x\'', 2, "server.port"),
        ("[log]\nlevel='info'\n\n[server]\nhost = 'h' # port = 1\nport = 'x'", 6, "server.port"),
        ("\nserver = { host = 'h', port = 'x' }", 2, "server.port"),
        ("[tasks]\nmodules = [\n'setup',\n]\nsetup = 1", 5, "tasks.setup"),
        ("[tasks]\nmodules = [ # ]\n 'a',\n 'b', ]\nsetup = 1", 5, "tasks.setup"),
        ('[server]\nhost = """\\\n  port = 1\n"""\nport = "x"', 5, "server.port"),
        ("[server]\nhost = '''h'''\ntoken = 'a\"b'\nport = 'x'", 4, "server.port"),
        ('[server]\nhost = "h\\"#"\nport = "x"', 3, "server.port"),
        (
            "[worker.queues.a]\n\n[worker.queues.b]\nconcurrency = 0",
            4,
            "worker.queues.b.concurrency",
        ),
        ("[worker.queues]\na.concurrency = 0", 2, "worker.queues.a.concurrency"),
        ("[worker.queues]\nb = {}\na = { concurrency = 0 }", 3, "worker.queues.a.concurrency"),
        ("[worker.queues.'a.b']\nconcurrency = 0", 2, "worker.queues.'a.b'.concurrency"),
        ("[worker]\nqueues.a.concurrency = 0", 2, "worker.queues.a.concurrency"),
    ],
)
def test_a_problem_has_the_line_of_its_key(text: str, line: int, path: str) -> None:
    assert problems(text)[-1].startswith(f"conductor.toml:{line}: {path} = ")


def test_the_lines_found_are_those_of_tomllibs_keys() -> None:
    text = EXAMPLE.read_text("utf-8")
    for section, content in tomllib.loads(text).items():
        for key in content:
            line = rooms._lines(text)[section, key]
            assert text.splitlines()[line - 1].startswith(f"{key} ="), (section, key)


# ---------------------------------------------------------------- sections


@pytest.mark.parametrize(
    ("text", "completed"),
    [("0", 0), ("false", 0), ("1.5", 1.5), ("60", 60), ("inf", math.inf), ("'forever'", math.inf)],
)
def test_retention_is_seconds_or_nothing_or_for_ever(text: str, completed: float) -> None:
    found = from_file(f"[retention]\ncompleted = {text}").retention.completed
    assert found == completed
    assert type(found) is float
    variable = {**URL, "CONDUCTOR_RETENTION_COMPLETED": text.strip("'")}
    assert load(environ=variable).retention.completed == completed


def test_a_queue_inherits_what_it_does_not_override() -> None:
    config = from_file(
        "[worker]\nconcurrency = 4\n[worker.queues.'re.ports:x']\npoll_interval = 3\n"
        "[worker.queues.mail]\nconcurrency = 1\nflush_interval = 0.1\nfetch_batch_size = 9\n"
        "[worker.queues.plain]",
        {**URL, "CONDUCTOR_WORKER_CONCURRENCY": "6"},
    )
    assert config.worker.for_queue("re.ports:x") == WorkerConfig(6, 3.0)
    assert config.worker.for_queue("mail") == WorkerConfig(1, 1.0, 0.1, 9)
    assert config.worker.for_queue("plain") == WorkerConfig(6)
    assert config.worker.for_queue("anything") == WorkerConfig(6)
    assert set(config.worker.queues) == {"re.ports:x", "mail"}


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("heartbeat_interval = 5\nheartbeat_timeout = 9.9", "conductor.toml:3: coordinator.heart"),
        ("heartbeat_interval = 8", "conductor.toml:2: coordinator.heartbeat_interval: coordinator"),
        (
            "heartbeat_timeout = 9",
            "conductor.toml:2: coordinator.heartbeat_timeout = 9.0: expected",
        ),
    ],
)
def test_a_heartbeat_timeout_below_two_intervals_is_refused(text: str, start: str) -> None:
    found = problem(f"[coordinator]\n{text}")
    assert found.startswith(start)
    assert "expected at least twice coordinator.heartbeat_interval, which is" in found


def test_heartbeats_are_compared_after_all_sources_are_read() -> None:
    text = "[coordinator]\nheartbeat_interval = 8"
    environ = {**URL, "CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT": "16"}
    assert from_file(text, environ).coordinator.heartbeat_timeout == 16
    environ["CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT"] = "15"
    assert problem(text, environ).startswith(
        "environment CONDUCTOR_COORDINATOR_HEARTBEAT_TIMEOUT = 15.0: expected at least twice"
    )


def test_a_wrong_heartbeat_is_not_compared_as_well() -> None:
    assert "more than 0" in problem("[coordinator]\nheartbeat_interval = 0\nheartbeat_timeout = 1")


def test_a_section_made_in_code_is_checked_too() -> None:
    options: dict[str, Any] = {"poll_interval": timedelta(seconds=2)}
    assert WorkerConfig(**options).poll_interval == 2.0
    assert WorkerConfig().concurrency == 10
    with pytest.raises(ConfigError) as caught:
        WorkerConfig(concurrency=0, poll_interval=-1)
    assert list(caught.value.problems) == [
        "WorkerConfig.concurrency = 0: expected an integer from 1 to 1000",
        "WorkerConfig.poll_interval = -1: expected seconds, more than 0",
    ]


def test_settings_are_frozen_and_travel_to_other_processes() -> None:
    config = from_file("[worker.queues.a]\nconcurrency = 1")
    assert pickle.loads(pickle.dumps(config)) == config
    for name in ("worker", "path", "log"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)


# ---------------------------------------------------------------- exposure


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_token(host: str) -> None:
    check_exposure(Config(server=Server(host=host)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.evil.com"])
def test_another_address_needs_a_token_or_no_dashboard(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"server.host = '{host}': .*server.token") as caught:
        check_exposure(Config(server=Server(host=host)))
    assert len(caught.value.problems) == 1
    check_exposure(Config(server=Server(host=host, token="t")))
    check_exposure(Config(server=Server(host=host, dashboard=False)))


def test_exposure_is_not_checked_by_load() -> None:
    assert from_file("[server]\nhost = '0.0.0.0'").server.host == "0.0.0.0"


# ---------------------------------------------------------------- the example


def test_the_example_has_the_defaults() -> None:
    config = load(EXAMPLE, environ={})
    shown = Config(
        database=rooms.Database("embedded"),
        tasks=rooms.Tasks(("myapp.tasks",)),
        path=EXAMPLE.absolute(),
    )
    assert config == shown
    check_exposure(config)


def test_the_example_lists_every_key_with_a_comment() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    listed: dict[str, set[str]] = {}
    section = ""
    for before, line in zip(["", *lines], lines, strict=False):
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif re.fullmatch(r"# \[worker\.queues\.\w+\]", line):
            listed.setdefault("worker", set()).add("queues")
            section = "an override"
        elif key := re.match(r"(?:# )?(\w+) = ", line):
            listed.setdefault(section, set()).add(key[1])
            assert section == "an override" or re.match(r"# .{10,}", before), line
    listed.pop("an override")
    expected = {
        section: {each.name for each in dataclasses.fields(getattr(Config(), section))}
        for section in SECTIONS
    }
    assert listed == expected


def test_the_examples_commented_settings_are_valid() -> None:
    text = re.sub(r"(?m)^# (?=\w+ = |\[worker\.queues)", "", EXAMPLE.read_text("utf-8"))
    config = from_file(text, {})
    assert config.server.token
    assert config.tasks.setup == "myapp:setup"
    assert config.worker.for_queue("reports").concurrency == 2


def test_what_is_written_can_be_read() -> None:
    written(to_toml({"database": {"url": "embedded"}, "tasks": {"modules": ["a"]}}))
    config = load(environ={})
    assert (config.database.url, config.tasks.modules) == ("embedded", ("a",))
