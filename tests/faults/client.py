"""Who invokes, and writes down what became of each: ok, failed or unknown."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from conductor_cli import Conductor, ConductorError
from tests.faults.evidence import Notebook

SHY: Final = 0.05  # of the invocations in a transaction of the caller's are rolled back


class Client:
    """Names each execution itself, so that one whose fate is unknown can be looked for."""

    def __init__(self, url: str, notebook: Notebook) -> None:
        self._url, self._notebook = url, notebook
        self._conductor = Conductor.create(url, pool_size=4)

    def close(self) -> None:
        self._conductor.close()

    def invoke(self, task: str, payload: object = None, **options: Any) -> UUID:
        """One that has to succeed."""
        id, fate = uuid4(), "unknown"
        try:
            self._conductor.invoke(task, payload, queue="default", id=id, **options)
            fate = "ok"
        finally:
            self._notebook.note("invoke", id=id, fate=fate)
        return id

    def invoke_many(self, task: str, payloads: Sequence[object], **options: Any) -> list[UUID]:
        """At once, in one transaction; has to succeed."""
        with self._conductor.database.transaction() as conn:
            ids = [
                self._conductor.invoke(
                    task, each, queue="default", id=uuid4(), connection=conn, **options
                )
                for each in payloads
            ]
        for id in ids:
            self._notebook.note("invoke", id=id, fate="ok")
        return ids

    def invoke_patiently(self, task: str, within: float = 40.0) -> UUID:
        """One that succeeds sooner or later, Postgres having only just come back."""
        until = time.monotonic() + within
        while True:
            try:
                return self.invoke(task)
            except (ConductorError, psycopg.Error):
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def invoke_batch(self, task: str, count: int) -> tuple[list[UUID], float]:
        """As quickly as can be; the ids, and the moment of the commit at the latest."""
        ids = list(self._conductor.invoke_many(task, [None] * count, queue="default"))
        moment = time.monotonic()
        for id in ids:
            self._notebook.note("invoke", id=id, fate="ok")
        return ids, moment

    def try_invoke(self, task: str, payload: object = None) -> str:
        """One that may fail; returns its fate."""
        id = uuid4()
        in_transaction = random.random() < 0.5
        fate = (self._in_transaction if in_transaction else self._alone)(task, payload, id)
        self._notebook.note("invoke", id=id, fate=fate)
        return fate

    def _alone(self, task: str, payload: object, id: UUID) -> str:
        try:
            self._conductor.invoke(task, payload, queue="default", id=id)
        except (ConductorError, psycopg.Error):
            return "unknown"
        return "ok"

    def _in_transaction(self, task: str, payload: object, id: UUID) -> str:
        try:
            conn = psycopg.connect(self._url, connect_timeout=5)
        except psycopg.OperationalError:
            return "failed"
        fate = "failed"
        try:
            self._conductor.invoke(task, payload, queue="default", id=id, connection=conn)
            if random.random() >= SHY:
                fate = "unknown"  # from here on the commit may be under way
                conn.commit()
                fate = "ok"
            else:
                conn.rollback()
        except (ConductorError, psycopg.Error):
            pass
        finally:
            conn.close()
        return fate


class Load:
    """Invokes at a steady rate in a thread of its own, through whatever happens, until it ends."""

    def __init__(
        self, client: Client, task: str, payload: Callable[[], object], rate: float
    ) -> None:
        self._client, self._task, self._payload, self._rate = client, task, payload, rate
        self._over = threading.Event()
        self.fates: dict[str, int] = {"ok": 0, "failed": 0, "unknown": 0}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            fate = self._client.try_invoke(self._task, self._payload())
            self.fates[fate] += 1
            due = max(due + 1 / self._rate, time.monotonic() - 1)  # no burst after an outage
            self._over.wait(max(0.0, due - time.monotonic()))
