"""The configuration, before anything is asked of a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conductor_cli.config import check_exposure
from conductor_cli.diagnosis.finding import error, ok, warning
from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from conductor_cli.catalog import TaskSet
    from conductor_cli.config import Config
    from conductor_cli.diagnosis.finding import Findings

CHECK = "configuration"


def look_at(config: Config, tasks: TaskSet | None) -> Findings:
    """What can be told from the settings and the tasks alone; ``tasks``: None when not loaded."""
    try:
        check_exposure(config)
    except ConfigError as problem:
        yield error(CHECK, str(problem), "A server would refuse to start; see the message.")
    if tasks is None:
        return
    queues = tasks.queues
    if not queues:
        yield warning(
            CHECK, "No tasks are configured: a server would serve nothing.",
            "Name your modules under [tasks] modules.",
        )  # fmt: skip
    for name in sorted(set(config.worker.queues) - set(queues)):
        yield warning(
            CHECK, f"[worker.queues.{name}] configures a queue that no task is in.",
            f"The queues are: {', '.join(queues) or 'none'}. Correct the name or remove it.",
        )  # fmt: skip
    if queues:
        number = len(list(tasks))
        yield ok(
            CHECK, f"{config.path or 'no file'}: {number} task{'s' * (number != 1)} in "
            f"{len(queues)} queue{'s' * (len(queues) != 1)}.",
        )  # fmt: skip
