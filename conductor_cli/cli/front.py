"""The face of a daemon on the web."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conductor_cli.cli import daemon
from conductor_cli.web import WebServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conductor_cli.config import Config


class Front(WebServer):
    """Health, readiness and metrics; ``describe`` is what the line says that it is up."""

    def __init__(
        self,
        shown: daemon.Daemon,
        config: Config,
        describe: Callable[[], Mapping[str, object]],
    ) -> None:
        super().__init__(
            config.server.host, config.server.port, readiness=shown.reasons,
            token=config.server.token, dashboard=config.server.dashboard, on_death=shown.lose_face,
        )  # fmt: skip
        self._describe = describe

    def announce(self) -> None:
        """Everything is up."""
        daemon.log.info("Serving %s", self.url, extra=dict(self._describe()))
