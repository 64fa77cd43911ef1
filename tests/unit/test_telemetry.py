"""The log, the counters and the subscribers, with real pipes and files for an output."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conductor_cli import telemetry
from conductor_cli.telemetry import summary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

PACKAGE = Path(telemetry.__file__).parents[1]
# In the catalogue, and nobody emits them yet. Who begins to takes them from here.
HOSTILE = "a\nb\x1b[31m\x7f\u202e\u2028\ud800 \x9b31m"


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    telemetry.flush(5)
    yield
    telemetry.reset()


@pytest.fixture
def out() -> StringIO:
    return StringIO()


def lines(out: StringIO) -> list[dict[str, Any]]:
    assert telemetry.flush(5)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def counted(sample: str, **labels: str) -> float:
    for family in text_string_to_metric_families(telemetry.metrics().decode()):
        for one in family.samples:
            if one.name == sample and one.labels == labels:
                return one.value
    return 0.0


def pipe() -> tuple[int, TextIO]:
    reading, writing = os.pipe()
    return reading, os.fdopen(writing, "w")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


# ── One event, three readers ─────────────────────────────────────────────────────────────


def test_an_event_becomes_a_line_a_count_and_a_call(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    before = counted("conductor_executions_rescued_total")
    seen: list[tuple[str, int, dict[str, object]]] = []
    stop = telemetry.subscribe(lambda event, count, fields: seen.append((event, count, {**fields})))
    telemetry.emit("executions.rescued", count=3, server="s1")
    stop()
    telemetry.emit("server.ready")
    assert seen == [("executions.rescued", 3, {"server": "s1"})]
    assert counted("conductor_executions_rescued_total") == before + 3
    first, second = lines(out)
    stamp = first.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
    assert first == {"level": "warning", "event": "executions.rescued", "count": 3, "server": "s1"}
    assert "count" not in second


def test_an_event_below_the_level_is_counted_and_told_but_not_logged(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    seen: list[str] = []
    stop = telemetry.subscribe(lambda event, _count, _fields: seen.append(event))
    before = counted("conductor_executions_claimed_total", queue="q")
    telemetry.emit("executions.claimed", count=7, queue="q")
    stop()
    assert lines(out) == []
    assert seen == ["executions.claimed"]
    assert counted("conductor_executions_claimed_total", queue="q") == before + 7


def test_a_subscriber_that_raises_harms_nobody(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    seen: list[str] = []
    stops = [
        telemetry.subscribe(lambda *_: 1 / 0),
        telemetry.subscribe(lambda event, *_: seen.append(event)),
    ]
    telemetry.emit("server.ready")
    for stop in stops:
        stop()
        stop()
    assert seen == ["server.ready"]
    assert [line["event"] for line in lines(out)] == ["server.ready"]


def test_emit_raises_nothing_whatever_it_is_given(out: StringIO) -> None:
    telemetry.configure("debug", "json", out)
    telemetry.emit("no.such.event", x=1)
    telemetry.emit("executions.claimed")  # without its label
    telemetry.emit("executions.claimed", queue=Unprintable())
    telemetry.emit("server.ready", value=Unprintable())
    assert [line["event"] for line in lines(out)][:2] == ["no.such.event", "executions.claimed"]


def test_an_outage_logs_a_line_a_second_and_component_and_counts_all(
    out: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.configure("info", "json", out)
    clock = [time.monotonic() + 1000]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    before = counted("conductor_database_lost_total", component="beat")
    for _ in range(50):
        telemetry.emit("database.lost", component="beat")
        telemetry.emit("database.lost", component="claim")
    clock[0] += 1.0
    telemetry.emit("database.lost", component="beat")
    monkeypatch.undo()
    assert [line["component"] for line in lines(out)] == ["beat", "claim", "beat"]
    assert counted("conductor_database_lost_total", component="beat") == before + 51


# ── The catalogue and the code agree ─────────────────────────────────────────────────────


def calls_of(function: str) -> list[tuple[str, ast.Call]]:
    found = []
    for file in PACKAGE.rglob("*.py"):
        names = {f"telemetry.{function}"}
        if file.parent.name == "telemetry":
            names = {function, f"events.{function}", f"self._{function}"}
        calls = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
        ]
        place = file.relative_to(PACKAGE)
        found += [(f"{place}:{c.lineno}", c) for c in calls if ast.unparse(c.func) in names]
    assert found, "the search itself is broken"
    return found


def test_every_event_emitted_is_in_the_catalogue_with_all_its_labels() -> None:
    for place, call in calls_of("emit"):
        assert isinstance(call.args[0], ast.Constant), f"{place}: the name must be a literal"
        known = telemetry.CATALOGUE.get(call.args[0].value)
        assert known, f"{place}: {call.args[0].value!r} is not in the catalogue"
        given = {keyword.arg for keyword in call.keywords}
        missing = set(known.labels) - given
        assert not missing or None in given, f"{place}: lacks the labels {missing}"


def test_every_event_of_the_catalogue_is_emitted_somewhere() -> None:
    emitted = {call.args[0].value for _, call in calls_of("emit")}
    emitted.add("log.lines_dropped")  # the writer's own
    assert set(telemetry.CATALOGUE) == emitted


def test_names_in_the_catalogue_are_fit_for_prometheus() -> None:
    for name, event in telemetry.CATALOGUE.items():
        assert re.fullmatch(r"[a-z_]+\.[a-z_]+", name)
        assert event.counted or not event.labels


# ── Lines ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("style", ["json", "console"])
def test_control_characters_cannot_leave_a_line(style: str, out: StringIO) -> None:
    telemetry.configure("info", style, out)
    telemetry.emit("server.ready", **{HOSTILE: HOSTILE, "deep": {HOSTILE: [HOSTILE]}})
    telemetry.logger().info(HOSTILE, x=HOSTILE)
    logging.getLogger("somebody").warning("%s", HOSTILE)
    assert telemetry.flush(5)
    text = out.getvalue()
    assert text.count("\n") == len(text.split("\n")) - 1 == 3
    assert all(line.isprintable() for line in text.split("\n"))


def test_values_survive_json_unharmed(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    telemetry.emit("server.ready", text=HOSTILE, n=1, none=None, deep={"a": [1.5, "ä"]})
    (line,) = lines(out)
    assert (line["text"], line["n"], line["none"]) == (HOSTILE, 1, None)
    assert line["deep"] == {"a": [1.5, "ä"]}


def test_a_traceback_on_the_console_is_indented_so_that_no_line_of_it_passes_for_a_log_line(
    out: StringIO,
) -> None:
    telemetry.configure("info", "console", out)
    try:
        raise ValueError("boom\n2026-01-01T00:00:00Z error forged \x1b[2J")
    except ValueError:
        telemetry.logger().exception("it failed", x=1)
    telemetry.flush(5)
    head, *block = out.getvalue().rstrip("\n").split("\n")
    assert " error    it failed x=1" in head
    assert "    Traceback (most recent call last):" in block
    assert all(line.startswith("    ") and line.isprintable() for line in block)


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize(
    "secret",
    [
        "postgresql://bob:s3cret@db/app",
        "postgresql+psycopg://bob:s3cret@db/app",
        "redis://:s3cret@cache",
        "postgresql://bob:s3c/ret@s3cret@db/app",
        "postgresql://bob:s3cret\"'@db/app",
        "host=db password=s3cret user=bob",
        "host=db password = 's3cret s3cret' user=bob",
        "PGPASSWORD=s3cret",
        "x" * 4075 + "postgresql://bob:s3cret@db/app" + "y" * 9000,
    ],
)
def test_passwords_appear_in_no_line(style: str, secret: str, out: StringIO) -> None:
    telemetry.configure("info", style, out)
    telemetry.emit("database.back", url=secret, deep=[{"url": secret}], error=ValueError(secret))
    logging.getLogger("psycopg.pool").warning("error connecting: %s", secret)
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        telemetry.logger(url=secret).exception(f"cannot reach {secret}")
    assert telemetry.flush(5)
    text = out.getvalue()
    assert len(text.splitlines()) >= 3
    assert "***" in text
    assert "s3cret" not in text
    assert "s3c" not in text


def test_a_url_without_a_password_stays_as_it_is() -> None:
    for text in ["http://localhost:8765/x", "postgresql://bob@db/app", "mail bob@example.com"]:
        assert telemetry.redact(text) == text


def test_what_json_has_no_word_for_is_still_logged(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    cycle: list[object] = []
    cycle.append(cycle)
    telemetry.emit("server.ready", value=float("nan"))
    telemetry.emit("server.ready", value=cycle)
    telemetry.emit("server.ready", value={(1, 2): "tuple key"})
    telemetry.emit("server.ready", value=Unprintable())
    telemetry.emit("server.ready", event="mine", level="mine", timestamp="mine")
    values = lines(out)
    assert values[0]["value"] == "nan"
    assert values[2]["value"] == {"(1, 2)": "tuple key"}
    assert values[3]["value"] == "<unprintable Unprintable>"
    assert (values[4]["event"], values[4]["event_"]) == ("server.ready", "mine")


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_line_has_a_limit(style: str, out: StringIO) -> None:
    telemetry.configure("info", style, out)
    telemetry.emit("server.ready", text="x" * 10_000_000)
    telemetry.emit("server.ready", many=list(range(1_000_000)))
    telemetry.emit("server.ready", deep=[["y" * 5000] * 100] * 100)
    assert telemetry.flush(20)
    written = out.getvalue().splitlines()
    assert len(written) == 3
    assert max(map(len, written)) < 40_000
    assert "characters cut" in written[0]


def test_auto_means_json_when_the_output_is_not_a_terminal(out: StringIO) -> None:
    telemetry.configure(stream=out)
    telemetry.emit("server.ready")
    assert lines(out)[0]["event"] == "server.ready"


def test_auto_means_console_on_a_terminal() -> None:
    try:
        ours, theirs = os.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal can be had here: {error}")
    with os.fdopen(theirs, "w") as terminal:
        telemetry.configure(stream=terminal)
        telemetry.emit("server.ready", queue="a b")
        assert telemetry.flush(5)
        assert os.read(ours, 1000).endswith(b" info     server.ready queue='a b'\r\n")
    os.close(ours)


def test_a_level_that_does_not_exist_is_refused(out: StringIO) -> None:
    with pytest.raises(ValueError, match="loud"):
        telemetry.configure("loud", "json", out)
    with pytest.raises(ValueError, match="xml"):
        telemetry.configure("info", "xml", out)


# ── Other ways in ────────────────────────────────────────────────────────────────────────


def test_stdlib_logging_goes_the_same_way(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    log = logging.getLogger("uvicorn.error")
    log.debug("too quiet")
    log.warning("lost %d", 3, extra={"pool": "p1"})
    try:
        raise KeyError("x")
    except KeyError:
        log.exception("broken")
    first, second = lines(out)
    assert (first["logger"], first["event"], first["pool"]) == ("uvicorn.error", "lost 3", "p1")
    assert "KeyError: 'x'" in second["exception"]


def test_the_driver_is_heard_once_a_second_and_others_always(out: StringIO) -> None:
    telemetry.configure(format="json", stream=out)
    for n in range(50):
        logging.getLogger("psycopg.pool").warning("error connecting %d", n)
        logging.getLogger("psycopg").warning("error ignored %d", n)
        logging.getLogger("shop").warning("sold %d", n)
    by_logger = Counter(line["logger"] for line in lines(out))
    assert by_logger["shop"] == 50
    assert 1 <= by_logger["psycopg"] <= 5
    assert 1 <= by_logger["psycopg.pool"] <= 5


def test_a_stdlib_record_that_cannot_be_formatted_is_logged_as_it_is() -> None:
    ran = run(
        "import logging\n"
        "from conductor_cli import telemetry as t\n"
        "t.configure('info', 'json')\n"
        "logging.warning('%d', 'not a number')\n"
    )
    assert json.loads(ran.stderr)["event"] == "%d ('not a number',)"


def test_the_logger_of_tasks_is_a_structlog_logger_with_bound_values(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    log = telemetry.logger(execution="e1")
    log.debug("too quiet")
    log.bind(step="s").info("hello %s", "you", n=1)
    (line,) = lines(out)
    del line["timestamp"]
    assert line == {"level": "info", "event": "hello you", "execution": "e1", "step": "s", "n": 1}


def test_before_configure_the_application_decides(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="conductor"):
        telemetry.emit("executions.claimed", queue="q")
        telemetry.emit("executions.rescued", count=2, url="postgresql://u:s3cret@h")
        telemetry.logger(execution="e1").warning("careful")
        assert telemetry.flush(5)
    rescued, careful = caplog.records
    assert (rescued.name, rescued.levelno) == ("conductor", logging.WARNING)
    assert rescued.getMessage() == "executions.rescued count=2 url=postgresql://u:***@h"
    assert vars(rescued)["conductor"]["count"] == 2
    assert careful.getMessage() == "careful execution=e1"


def test_a_logging_handler_that_blocks_delays_nobody() -> None:
    release, entered = threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            release.wait(30)

    handler = Blocking()
    logging.getLogger("conductor").addHandler(handler)
    try:
        started = time.monotonic()
        for _ in range(20_000):
            telemetry.emit("executions.rescued")
        assert entered.wait(5)
        assert not telemetry.flush(0.1)
        assert time.monotonic() - started < 10
    finally:
        logging.getLogger("conductor").removeHandler(handler)
        release.set()


# ── Outputs that misbehave ───────────────────────────────────────────────────────────────


def read_lines(fd: int, until: threading.Event) -> list[dict[str, Any]]:
    """Everything from the pipe until it is empty and ``until`` is set."""
    os.set_blocking(fd, False)
    data = bytearray()
    while True:
        is_last = until.is_set()  # asked before the look: what comes between belongs to it
        with contextlib.suppress(BlockingIOError):
            data += os.read(fd, 1 << 20)
            continue
        if is_last:
            return [json.loads(line) for line in data.splitlines()]
        time.sleep(0.001)


def test_a_million_lines_at_a_blocked_output_delay_nobody_and_every_loss_is_told() -> None:
    reading, stream = pipe()
    telemetry.configure("info", "json", stream)
    before = counted("conductor_log_lines_dropped_total")
    started = time.monotonic()
    for number in range(1_000_000):
        telemetry.emit("server.ready", number=number)
    assert time.monotonic() - started < 60
    started = time.monotonic()
    assert not telemetry.flush(0.2)
    assert 0.2 <= time.monotonic() - started < 2
    # Now somebody reads: what was kept comes out, and the log says how much did not.
    done = threading.Event()
    threading.Thread(target=lambda: (telemetry.flush(30), done.set())).start()
    got = read_lines(reading, done)
    kept = [line["number"] for line in got if line["event"] == "server.ready"]
    lost = sum(line["count"] for line in got if line["event"] == "log.lines_dropped")
    assert len(kept) < 100_000
    assert kept == sorted(kept)
    assert len(kept) + lost == 1_000_000
    assert counted("conductor_log_lines_dropped_total") - before == lost
    stream.close()
    os.close(reading)


def test_a_full_queue_still_has_room_for_warnings() -> None:
    reading, stream = pipe()
    telemetry.configure("info", "json", stream)
    for _ in range(50_000):
        telemetry.emit("server.ready")
    telemetry.emit("executions.rescued")
    done = threading.Event()
    threading.Thread(target=lambda: (telemetry.flush(30), done.set())).start()
    assert "executions.rescued" in {line["event"] for line in read_lines(reading, done)}
    stream.close()
    os.close(reading)


def test_a_new_output_works_while_the_old_one_blocks(out: StringIO) -> None:
    reading, stream = pipe()
    telemetry.configure("info", "json", stream)
    for _ in range(20_000):
        telemetry.emit("server.ready")
    telemetry.configure("info", "json", out)
    telemetry.emit("server.stopped")
    assert lines(out)[-1]["event"] == "server.stopped"
    os.close(reading)
    stream.close()


def closed_file() -> TextIO:
    reading, stream = pipe()
    os.close(reading)
    stream.close()
    return stream


def unwritable_descriptor() -> TextIO:
    return open(os.open("/dev/null", os.O_RDONLY), "w")  # writing gives EBADF, as if it were closed


def broken_pipe() -> TextIO:
    reading, stream = pipe()
    os.close(reading)
    return stream


@pytest.mark.parametrize("broken", [closed_file, unwritable_descriptor, broken_pipe])
def test_a_broken_output_costs_lines_and_nothing_else(broken: Any) -> None:
    stream = broken()
    telemetry.configure("info", "json", stream)
    before = counted("conductor_log_lines_dropped_total")
    for _ in range(100):
        telemetry.emit("server.ready")
    assert telemetry.flush(5)
    assert counted("conductor_log_lines_dropped_total") == before + 100
    stream.close()


def test_no_output_at_all_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # what Python does when started with 2>&-
    telemetry.configure("info", "auto")
    telemetry.emit("server.ready")
    assert telemetry.flush(5)


def test_after_a_full_disk_the_log_goes_on_and_says_how_much_is_missing(tmp_path: Path) -> None:
    with open("/dev/full", "w") as stream, (tmp_path / "log").open("w") as disk:
        telemetry.configure("info", "json", stream)
        for _ in range(10):
            telemetry.emit("server.ready")
        assert telemetry.flush(5)
        os.dup2(disk.fileno(), stream.fileno())
        telemetry.emit("server.stopped")
        assert telemetry.flush(5)
        written = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in written] == ["server.stopped", "log.lines_dropped"]
    assert written[1]["count"] == 10


def test_a_non_blocking_output_gets_every_line() -> None:
    reading, stream = pipe()
    os.set_blocking(stream.fileno(), False)
    telemetry.configure("info", "json", stream)
    for number in range(5_000):
        telemetry.emit("server.ready", number=number)
    done = threading.Event()
    threading.Thread(target=lambda: (telemetry.flush(30), done.set())).start()
    assert [line["number"] for line in read_lines(reading, done)] == list(range(5_000))
    stream.close()
    os.close(reading)


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", script]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=env)


def test_a_forked_child_logs_for_itself_and_repeats_nothing() -> None:
    ran = run(
        "import os\n"
        "from conductor_cli import telemetry as t\n"
        "t.configure('info', 'json')\n"
        "t.emit('server.starting', pid='parent')\n"
        "t.emit('executions.rescued', count=5)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    t.emit('server.ready', pid='child')\n"
        "    assert t.flush(5)\n"
        "    assert b'conductor_executions_rescued_total 0.0' in t.metrics()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "t.emit('server.stopped', pid='parent')\n"
    )
    told = [(line["event"], line.get("pid")) for line in map(json.loads, ran.stderr.splitlines())]
    assert sorted(told, key=str) == [
        ("executions.rescued", None),
        ("server.ready", "child"),
        ("server.starting", "parent"),
        ("server.stopped", "parent"),
    ]


def test_a_program_that_ends_gets_its_last_lines_out() -> None:
    ran = run(
        "from conductor_cli import telemetry as t\n"
        "t.configure('info', 'json')\n"
        "[t.emit('server.ready') for _ in range(3000)]\n"
    )
    assert len(ran.stderr.splitlines()) == 3000


def test_importing_it_imports_no_other_library() -> None:
    ran = run(
        "import sys\n"
        "from conductor_cli import telemetry\n"
        "print([n for n in ('structlog', 'prometheus_client', 'psycopg') if n in sys.modules])"
    )
    assert ran.stdout == "[]\n"


# ── Summaries ────────────────────────────────────────────────────────────────────────────


def test_plain_finishes_are_logged_as_one_summary(out: StringIO) -> None:
    telemetry.configure("info", "json", out)
    telemetry.emit("executions.finished", count=40, queue="q", task="t", state="completed")
    telemetry.emit("executions.finished", count=2, queue="q", task="u", state="completed")
    telemetry.emit("executions.finished", queue="q", task="u", state="failed")
    (line,) = lines(out)
    assert (line["event"], line["completed"], line["failed"]) == ("executions.summary", 42, 1)
    assert len(lines(out)) == 1, "a second flush has nothing to add"


def test_a_summary_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "EVERY", 0.2)
    reading, stream = pipe()
    telemetry.configure("info", "json", stream)
    with os.fdopen(reading) as log:
        for count in (3, 4):
            telemetry.emit("executions.finished", count=count, queue="q", task="t", state="failed")
            line = json.loads(log.readline())
            assert (line["event"], line["failed"]) == ("executions.summary", count)
            assert line["seconds"] >= 0.2
    telemetry.reset()
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_no_summary_when_the_level_is_above_info(out: StringIO) -> None:
    telemetry.configure("warning", "json", out)
    telemetry.emit("executions.finished", queue="q", task="t", state="completed")
    assert lines(out) == []


# ── Metrics ──────────────────────────────────────────────────────────────────────────────


def test_counters_without_labels_are_there_from_the_start_as_zero() -> None:
    assert b"conductor_leadership_gained_total " in telemetry.metrics()


def test_durations_land_in_their_buckets() -> None:
    telemetry.observe("execution.run", [0.001, 0.0011, 5.0, 99_999.0], "q", "histogram")
    telemetry.observe("execution.run", iter([5.1]), "q", "histogram")
    labels = {"queue": "q", "task": "histogram"}
    name = "conductor_execution_run_seconds"
    expected = {"0.001": 1, "0.0025": 2, "2.5": 2, "5.0": 3, "10.0": 4, "3600.0": 4, "+Inf": 5}
    for bound, value in expected.items():
        assert counted(f"{name}_bucket", le=bound, **labels) == value
    assert counted(f"{name}_count", **labels) == 5
    assert counted(f"{name}_sum", **labels) == pytest.approx(100_009.1021)


def test_observe_raises_nothing() -> None:
    telemetry.observe("no.such", [1.0], "q")
    telemetry.observe("execution.run", ["x"], "q", "t")


def test_every_histogram_observed_is_known_and_gets_all_its_labels() -> None:
    for place, call in calls_of("observe"):
        assert isinstance(call.args[0], ast.Constant), place
        labels = telemetry.HISTOGRAMS[call.args[0].value].labels
        assert len(call.args) == 2 + len(labels), f"{place}: wants the labels {labels}"


def test_owners_of_one_gauge_are_read_at_each_scrape_and_forgotten_when_they_ask() -> None:
    value = {("a",): 1.0}
    undo = telemetry.gauge("conductor_test_busy", "Busy.", lambda: value, ("queue",))
    undo_b = telemetry.gauge("conductor_test_busy", "Busy.", lambda: {("b",): 7}, ("queue",))
    assert counted("conductor_test_busy", queue="a") == 1
    value["a",] = 2.0
    assert counted("conductor_test_busy", queue="a") == 2
    assert counted("conductor_test_busy", queue="b") == 7
    undo()
    undo()
    assert b'queue="a"' not in telemetry.metrics()
    undo_b()
    assert b"conductor_test_busy" not in telemetry.metrics()


@pytest.mark.parametrize("wrong", [lambda: 1 / 0, lambda: {("too", "many"): 1}, lambda: None])
def test_a_gauge_that_fails_is_left_out_and_told(wrong: Any) -> None:
    before = counted("conductor_gauge_failed_total", gauge="conductor_test_bad")
    undo = telemetry.gauge("conductor_test_bad", "Bad.", wrong, ("x",))
    assert b"conductor_log_lines_dropped_total" in telemetry.metrics()
    undo()
    assert counted("conductor_gauge_failed_total", gauge="conductor_test_bad") == before + 1


def test_a_gauge_prometheus_would_refuse_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="not-a-name"):
        telemetry.gauge("not-a-name", "", dict)


# ── Several processes ────────────────────────────────────────────────────────────────────


def test_what_other_processes_contribute_is_added_and_some_gauges_are_not() -> None:
    mine = {"conductor_running": 1.0, "conductor_heartbeat_age_seconds": 2.0}
    undo = [
        telemetry.gauge(name, "A gauge.", lambda value=value: {(): value})
        for name, value in mine.items()
    ]
    telemetry.emit("executions.claimed", count=3, queue="sum")
    telemetry.observe("execution.run", [0.02, 7000.0], "sum", "t")
    one = telemetry.metrics()
    before = counted("conductor_executions_claimed_total", queue="sum")
    observed = counted("conductor_execution_run_seconds_count", queue="sum", task="t")
    undo.append(
        telemetry.contribute(lambda: [one, one.replace(b"age_seconds 2.0", b"age_seconds 9.0")])
    )
    assert counted("conductor_executions_claimed_total", queue="sum") == 3 * before
    assert counted("conductor_execution_run_seconds_count", queue="sum", task="t") == 3 * observed
    bucket = {"queue": "sum", "task": "t", "le": "0.025"}
    assert counted("conductor_execution_run_seconds_bucket", **bucket) == 3 * (observed - 1)
    assert counted("conductor_running") == 3
    assert counted("conductor_heartbeat_age_seconds") == 9
    for each in undo:
        each()
    assert counted("conductor_executions_claimed_total", queue="sum") == before


def test_a_process_that_has_ended_leaves_what_it_counted_and_no_gauge() -> None:
    from conductor_cli.telemetry import sums

    undo = telemetry.gauge("conductor_running", "A gauge.", lambda: {(): 1.0})
    telemetry.emit("executions.claimed", count=3, queue="last")
    left = sums.lasting([b"", telemetry.metrics()]).decode()
    undo()
    assert 'conductor_executions_claimed_total{queue="last"}' in left
    assert "conductor_running" not in left
    assert "process_resident_memory_bytes" not in left


def test_lines_say_what_all_lines_of_a_process_say(out: StringIO) -> None:
    telemetry.configure("info", "json", out, common={"pid": 7, "at": "here"})
    telemetry.emit("server.ready", at="there")
    (line,) = lines(out)
    assert (line["pid"], line["at"], line["event"]) == (7, "there", "server.ready")


def test_lines_wait_for_their_turn(tmp_path: Path) -> None:
    """Another process holds the lock; a test's own locks would not keep its own process out."""
    reading, stream = pipe()
    locked = tmp_path / "turns"
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
            "print('held', flush=True); sys.stdin.read()",
            str(locked),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder, locked.open("a") as file, stream:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"held\n"
        telemetry.configure("info", "json", stream, turns=file.fileno())
        telemetry.emit("server.ready")
        assert not telemetry.flush(0.3)
        holder.stdin.close()
        assert telemetry.flush(10)
        assert json.loads(os.read(reading, 4096))["event"] == "server.ready"
        telemetry.reset()
    os.close(reading)
