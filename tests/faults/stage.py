"""Everything one scenario has at hand: a Postgres, servers, a client, and the judge at the end."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from conductor_cli import Context
from tests.faults.checker import Count, check
from tests.faults.client import Client, Load
from tests.faults.cluster import Cluster, Clusters, eventually
from tests.faults.evidence import Evidence, Notebook, Row, first_starts
from tests.faults.proxy import Proxy
from tests.faults.server import DEFAULT, QUICK, Beat, Server, Setting

HAS_STEPS: Final = hasattr(Context, "step")
RESUME: Final = 10.0  # seconds after the return of Postgres

ROWS: Final = """
select id, task, case state when 'c' then 'completed' when 'f' then 'failed' else 'cancelled' end,
    runs, failures, crashes, result, error ->> 'type', event ->> 'scheduled_for'
from conductor.history
union all
select id, task, state::text, runs, failures, crashes, null, error ->> 'type',
    event ->> 'scheduled_for'
from conductor.live
"""


class CannotRun(Exception):
    """This machine does not allow it; says why."""


@dataclass
class Line:
    """What a scenario comes to."""

    injected: int = 0
    figures: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    count: Count | None = None


class Stage:
    """Made anew for each scenario. ``short``: it has to be quick; what that changes is ``told``."""

    def __init__(self, clusters: Clusters, folder: Path, *, short: bool) -> None:
        self.clusters, self.folder, self.short = clusters, folder, short
        self.line = Line()
        self.shortened: list[str] = []
        self.notebook = Notebook(folder / "evidence")
        self.servers: list[Server] = []
        self._stack = contextlib.ExitStack()
        self._cluster: Cluster | None = None
        self._client: Client | None = None
        self._worst: dict[str, float] = {}

    # What there is

    def choose(self, what: str, full: Any, short: Any) -> Any:
        """A size by the form of the run; a shortened one is told."""
        if self.short and short != full:
            self.shortened.append(f"{what} {short} instead of {full}")
        return short if self.short else full

    @property
    def beat(self) -> Beat:
        """The heartbeat: the default one, or in the short form a quick one."""
        if self.short and "heartbeat" not in " ".join(self.shortened):
            self.shortened.append("heartbeat 1 s, timeout 3 s instead of 5 s, 15 s")
        return QUICK if self.short else DEFAULT

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            self.open()
        assert self._cluster is not None
        return self._cluster

    def open(self, settings: Mapping[str, str] | None = None, place: Path | None = None) -> Cluster:
        """Its Postgres, with settings of its own."""
        self._cluster = self._stack.enter_context(self.clusters.running(settings, place))
        return self._cluster

    def replace_cluster(self, cluster: Cluster) -> None:
        """From now on this one is asked what stands in the database."""
        self._cluster = cluster

    def proxy(self) -> Proxy:
        return self._stack.enter_context(Proxy(self.cluster.address))

    def enter(self, context: Any) -> Any:
        return self._stack.enter_context(context)

    @property
    def client(self) -> Client:
        """Straight to Postgres."""
        if self._client is None:
            self._client = self.client_at(self.cluster.url)
        return self._client

    def move_client(self) -> None:
        """Let the client follow to the cluster that is asked now."""
        self._client = None

    def client_at(self, url: str) -> Client:
        client = Client(url, self.notebook)
        self._stack.callback(client.close)
        return client

    def server(self, *, url: str | None = None, ready: bool = True, **settings: Any) -> Server:
        """One more server."""
        setting = Setting(**{"beat": self.beat, **settings})
        name = f"server{len(self.servers) + 1}"
        server = Server(self.folder / name, url or self.cluster.url, self.notebook, setting)
        self.servers.append(server)
        self._stack.callback(server.close)
        if ready:
            server.wait_until_ready()
        return server

    def load(
        self, task: str = "quick", payload: Callable[[], object] = lambda: None,
        rate: float = 50.0, client: Client | None = None,
    ) -> Load:  # fmt: skip
        return Load(client or self.client, task, payload, rate)

    def close(self) -> None:
        self._stack.close()

    # What is done

    def release(self, name: str) -> None:
        """Let the tasks that wait for this name go on."""
        (self.folder / name).touch()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """What happens inside may make a server lose what it runs, and excuses a second run."""
        since = time.monotonic()
        try:
            yield
        finally:
            until = time.monotonic() + self.beat.rescue
            self.notebook.note("fault", what="outage", pid=None, since=since, until=until)

    def inject(self, times: int = 1) -> None:
        self.line.injected += times

    # What is found

    def figure(
        self, name: str, value: float | str, at_most: float | None = None, unit: str = " s"
    ) -> None:
        """A figure of the line, of several of one name the greatest; above its bound it breaks the
        promise."""
        if isinstance(value, str):
            self.line.figures[name] = value
            return
        worst = self._worst[name] = max(value, self._worst.get(name, value))
        bound = "" if at_most is None else f" (at most {at_most:.3g}{unit})"
        self.line.figures[name] = f"{worst:.2f}{unit}{bound}"
        if at_most is not None and value > at_most:
            self.line.broken.append(f"{name} {value:.2f}{unit}, at most {at_most:.3g}{unit}")

    def require(self, holds: bool, what: str) -> None:
        """An invariant of this scenario."""
        if not holds:
            self.line.broken.append(what)

    def evidence(self) -> Evidence:
        """What was seen so far, and what the database says now."""
        evidence = self.notebook.read()
        evidence.until = time.monotonic()
        evidence.rows = [Row(*row) for row in self.cluster.run(ROWS)]
        return evidence

    def started(self, ids: list[UUID] | None = None, claim: int = 1) -> int:
        """How many of these have had a run of at least this attempt."""
        runs = self.notebook.read().runs
        return len({r.id for r in runs if r.claim >= claim and (ids is None or r.id in set(ids))})

    def wait_until_started(self, ids: list[UUID], within: float = 30.0) -> None:
        eventually(lambda: self.started(ids) == len(ids), within, f"the start of {len(ids)}")

    def wait_until_all_run_again(self, ids: list[UUID], after: float, within: float) -> float:
        """Seconds from ``after`` until each of these has been started anew; told as it is."""
        wanted = set(ids)

        def found() -> bool:
            return wanted <= first_starts(self.notebook.read().runs, after).keys()

        try:
            eventually(found, within + 20, "the new start of all")
        except AssertionError as error:
            self.line.broken.append(str(error))
            return float("inf")
        starts = first_starts(self.notebook.read().runs, after)
        return max(starts[id] for id in wanted) - after

    def settle(self, within: float = 60.0, *, keep: str = "") -> None:
        """Wait until everything has ended. ``keep``: a task whose executions go on."""
        self.line.count = None
        try:
            eventually(
                lambda: self.cluster.one(
                    "select count(*) from conductor.live where task <> %s and state <> 's'", keep
                ) == 0,
                within, "the end of all work",
            )  # fmt: skip
        except AssertionError:
            left = self.cluster.run(
                "select task, state, count(*) from conductor.live group by 1, 2"
            )
            self.line.broken.append(f"after {within:g} s there is left: {left}")

    def judge(
        self, every: timedelta | None = None, *, settled: bool = True, keep: str = ""
    ) -> Count:
        """Let the checker count, once all work has ended."""
        if settled:
            self.settle(keep=keep)
        count = check(self.evidence(), every=every, settled=settled)
        self.line.count = count
        return count

    def wait_until_works(self, within: float = RESUME, after: float | None = None) -> float:
        """Invoke one at a time until one ends; returns seconds from ``after`` (default: now)."""
        began = time.monotonic()
        after = began if after is None else after
        id = self.client.invoke_patiently("quick")
        try:
            eventually(
                lambda: any(r.id == id and r.returned for r in self.notebook.read().runs),
                max(within, 0.1) + 30, "new work",
            )  # fmt: skip
        except AssertionError as error:
            self.line.broken.append(str(error))
            return float("inf")
        return time.monotonic() - after

    def stale(self) -> int:
        """Late writes that servers have refused and told of."""
        return sum(server.total("executions.stale") for server in self.servers)


@contextlib.contextmanager
def staged(clusters: Clusters, *, short: bool) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(
        prefix="conductor-faults-", ignore_cleanup_errors=True
    ) as path:
        stage = Stage(clusters, Path(path), short=short)
        try:
            yield stage
        finally:
            stage.close()
