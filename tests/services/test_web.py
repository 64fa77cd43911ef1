"""The web server, over real sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from conductor_cli import telemetry
from conductor_cli.errors import ConfigError
from conductor_cli.service import Deadline
from conductor_cli.web import WebServer, connection, server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(server.__file__).parents[2]


def well() -> Sequence[str]:
    return ()


def serve(host: str = "127.0.0.1", port: int = 0, **options: Any) -> WebServer:
    return WebServer(host, port, **{"readiness": well, **options})


@contextmanager
def running(host: str = "127.0.0.1", port: int = 0, **options: Any) -> Iterator[WebServer]:
    web = serve(host, port, **options)
    web.start()
    try:
        yield web
    finally:
        web.stop()
        assert web.join(Deadline(10)), "the web server did not stop"


@pytest.fixture
def web() -> Iterator[WebServer]:
    with running() as started:
        yield started


def connect(web: WebServer, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", web.port), timeout=10)
    client.sendall(sent)
    return client


def is_hung_up(client: socket.socket) -> bool:
    """Waits for the other side to close; False when it stays."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


# ── Answers ──────────────────────────────────────────────────────────────────────────────


def test_healthz_answers_as_long_as_the_process_lives(web: WebServer) -> None:
    answer = httpx.get(f"{web.url}/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_readyz_tells_the_reasons_and_when_they_are_gone() -> None:
    reasons = ["database: no connection to postgresql://bob:s3cret@db/app", "heartbeat: late"]
    with running(readiness=lambda: reasons) as web:
        answer = httpx.get(f"{web.url}/readyz")
        assert answer.status_code == 503
        told = ["database: no connection to postgresql://bob:***@db/app", "heartbeat: late"]
        assert answer.json() == {"status": "unready", "reasons": told}
        assert httpx.get(f"{web.url}/healthz").status_code == 200
        reasons.clear()
        answer = httpx.get(f"{web.url}/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_readiness_check_that_fails_is_itself_a_reason() -> None:
    def broken() -> Sequence[str]:
        raise RuntimeError("no idea")

    with running(readiness=broken) as web:
        answer = httpx.get(f"{web.url}/readyz")
        assert answer.status_code == 503
        assert "no idea" in answer.json()["reasons"][0]


def test_metrics_are_prometheus_text(web: WebServer) -> None:
    telemetry.emit("executions.claimed", count=3, queue="of-test-web")
    answer = httpx.get(f"{web.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'conductor_executions_claimed_total{queue="of-test-web"} 3.0' in answer.text


def test_elsewhere_a_readable_404_names_the_endpoints(web: WebServer) -> None:
    for path in ("/", "/nothing", "/healthz/", "/%0A%3Cscript%3E"):
        answer = httpx.get(web.url + path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/json"
        for endpoint in ("/healthz", "/readyz", "/metrics"):
            assert f"GET {endpoint}" in answer.json()["error"]


def test_a_dashboard_turned_off_says_so() -> None:
    with running(dashboard=False) as web:
        assert "server.dashboard = false" in httpx.get(web.url).json()["error"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_only_get_and_head_are_allowed(web: WebServer, path: str) -> None:
    head = httpx.head(web.url + path)
    assert (head.status_code, head.content) == (200, b"")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = httpx.request(method, web.url + path)
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
        assert answer.json()["error"]


def test_every_answer_carries_the_security_headers() -> None:
    with running(token="t") as web:
        answers = [httpx.get(web.url + path) for path in ("/healthz", "/readyz", "/metrics", "/")]
        answers.append(httpx.post(f"{web.url}/healthz"))
    assert [answer.status_code for answer in answers] == [200, 200, 401, 404, 405]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


# ── The token ────────────────────────────────────────────────────────────────────────────


def test_metrics_need_the_token_when_there_is_one_and_health_never_does() -> None:
    with running(token="s3cret-ü") as web:
        right = {"Authorization": "Bearer s3cret-ü".encode()}
        assert httpx.get(f"{web.url}/metrics", headers=right).status_code == 200
        for path in ("/healthz", "/readyz"):
            assert httpx.get(web.url + path).status_code == 200


@pytest.mark.parametrize(
    "given",
    [None, b"", b"Bearer", b"Bearer wrong", b"Basic s3cret", b"s3cret", b"\xff"],
)
def test_a_wrong_token_is_refused(given: bytes | None) -> None:
    with running(token="s3cret") as web:
        headers = {} if given is None else {"Authorization": given}
        answer = httpx.get(f"{web.url}/metrics", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "conductor_" not in answer.text


@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_not_taken_for_none(token: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        serve(token=token)


# ── Starting ─────────────────────────────────────────────────────────────────────────────


def test_a_busy_port_is_an_error_at_start_that_names_it_and_says_what_to_do(web: WebServer) -> None:
    with pytest.raises(ConfigError) as caught:
        serve(port=web.port).start()
    message = str(caught.value)
    assert f"port {web.port} on 127.0.0.1 is in use" in message
    assert "--port" in message
    assert httpx.get(f"{web.url}/healthz").status_code == 200


def test_a_port_bound_by_another_program_is_busy_too() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ConfigError, match="in use"),
    ):
        serve(port=other.getsockname()[1]).start()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a" * 70 + ".example", "1.2.3.4.5"])
def test_a_host_that_does_not_resolve_is_an_error_at_start(host: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be resolved.*--host"):
        serve(host=host).start()


def test_an_address_of_another_machine_is_an_error_at_start() -> None:
    with pytest.raises(ConfigError, match=r"no address 192\.0\.2\.1"):
        serve(host="192.0.2.1").start()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_cannot_exist_is_an_error_at_start(port: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and 65535"):
        serve(port=port).start()


def lowest_port_for_everybody() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())


@pytest.mark.skipif(lowest_port_for_everybody() <= 80, reason="anyone may bind port 80 here")
def test_a_port_without_permission_is_an_error_at_start() -> None:
    script = (
        "import os\n"
        "from conductor_cli.errors import ConfigError\n"
        "from conductor_cli.web import WebServer\n"
        "warm = WebServer('127.0.0.1', 0, readiness=tuple); warm.start(); warm.stop()\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: WebServer('127.0.0.1', 80, readiness=tuple).start()\n"
        "except ConfigError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "port 80 on 127.0.0.1 needs rights this user lacks" in ran.stdout
    assert "--port" in ran.stdout


def test_a_host_given_as_a_name_is_served_at_all_its_addresses() -> None:
    with running("localhost") as web:
        assert web.url == f"http://localhost:{web.port}"
        assert httpx.get(f"http://127.0.0.1:{web.port}/healthz").status_code == 200


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_ipv6_works(host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with running(host) as web:
        assert httpx.get(f"http://[::1]:{web.port}/healthz").status_code == 200
        assert web.url == f"http://[{host.strip('[]')}]:{web.port}"
        if host == "::":
            assert httpx.get(f"http://127.0.0.1:{web.port}/healthz").status_code == 200


def test_two_servers_live_in_one_process_in_daemon_threads_and_take_over_no_signals() -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with running(readiness=lambda: ["one"]) as one, running(readiness=lambda: ["two"]) as two:
        assert one.port != two.port
        for web, reason in ((one, "one"), (two, "two")):
            assert httpx.get(f"{web.url}/readyz").json()["reasons"] == [reason]
        threads = [thread for thread in threading.enumerate() if thread.name == "web"]
        assert len(threads) == 2
        assert all(thread.daemon for thread in threads)
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_it_starts_and_stops_from_any_thread() -> None:
    answers: list[int] = []

    def everything() -> None:
        with running() as web:
            answers.append(httpx.get(f"{web.url}/healthz").status_code)

    thread = threading.Thread(target=everything)
    thread.start()
    thread.join(20)
    assert answers == [200]


# ── Stopping ─────────────────────────────────────────────────────────────────────────────


def stopped_within(web: WebServer, seconds: float) -> bool:
    started = time.monotonic()
    web.stop()
    web.stop()
    assert web.join(Deadline(10))
    return time.monotonic() - started < seconds


def test_an_idle_server_stops_at_once_and_its_port_is_free_again() -> None:
    with running() as first, httpx.Client() as client:
        port = first.port
        client.get(f"{first.url}/healthz")  # leaves a connection open, kept alive
        assert stopped_within(first, 1.0)
    with running(port=port) as second:
        assert httpx.get(f"{second.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET /hea", b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"]
)
def test_a_client_that_dawdles_cannot_hold_the_stop(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with running() as web, connect(web, sent):
        httpx.get(f"{web.url}/healthz")
        assert stopped_within(web, 3.0)
    assert not caplog.records, "uvicorn ran into its own, later limit"


def test_a_client_that_does_not_read_cannot_hold_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    big = {(f"{number:010000}",): 1.0 for number in range(2_000)}  # more than any socket buffer
    undo = telemetry.gauge("conductor_test_web_big", "Big.", lambda: big, ("number",))
    try:
        with running() as web, connect(web) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1) == b"H"
            assert stopped_within(web, 3.0)
    finally:
        undo()
    assert not caplog.records, "uvicorn ran into its own, later limit"


def test_stopping_what_never_started_is_harmless() -> None:
    web = serve()
    web.stop()
    assert web.join(Deadline(1))


# ── Bad company ──────────────────────────────────────────────────────────────────────────


def test_health_answers_while_metrics_are_stuck() -> None:
    entered, release = threading.Event(), threading.Event()

    def stuck() -> dict[tuple[str, ...], float]:
        entered.set()
        release.wait(30)
        return {(): 1.0}

    undo = telemetry.gauge("conductor_test_web_stuck", "Stuck.", stuck)
    try:
        with running() as web, connect(web, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
            assert entered.wait(10)
            assert httpx.get(f"{web.url}/healthz", timeout=5).status_code == 200
            release.set()
    finally:
        release.set()
        undo()


def test_a_request_half_sent_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.3)
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with running() as web:
        for sent in (b"", b"GET /hea", whole + b"GET /hea"):
            with connect(web, sent) as client:
                while sent.startswith(whole) and not client.recv(4096).endswith(b"}"):
                    pass
                assert is_hung_up(client)
        with connect(web, whole) as patient:  # between requests, that is keep-alive's to decide
            assert patient.recv(4096)
            patient.settimeout(1.0)
            assert not is_hung_up(patient)


def test_connections_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS", 3)
    with running() as web:
        clients = [connect(web) for _ in range(3)]
        with connect(web) as one_too_many:
            assert is_hung_up(one_too_many)
        for client in clients:
            client.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                assert httpx.get(f"{web.url}/healthz").status_code == 200
                break
            except httpx.TransportError:
                continue
        else:
            pytest.fail("the places of those who left stayed taken")


def test_nonsense_is_answered_with_400_and_the_server_lives_on(web: WebServer) -> None:
    with connect(web, b"\x16\x03\x01\x00\xa5nonsense\r\n\r\n") as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{web.url}/healthz").status_code == 200


def test_the_death_of_its_loop_is_reported() -> None:
    died: list[BaseException] = []
    web = serve(on_death=lambda _service, error: died.append(error))
    web.start()
    httpx.get(f"{web.url}/healthz")
    loop = web._server._loop
    assert loop is not None
    loop.call_soon_threadsafe(loop.stop)
    assert web.join(Deadline(10))
    assert [type(error) for error in died] == [RuntimeError]


def test_a_stop_right_after_the_start_is_not_missed() -> None:
    for _ in range(20):
        web = serve()
        web.start()
        assert stopped_within(web, 3.0)
