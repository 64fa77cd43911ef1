"""``conductor start-server``."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from conductor_cli.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.config import Config


@click.command("start-server", cls=options.Command, short_help="Run the server.")
@click.option("--without-jobs", is_flag=True, help="Serve HTTP only: claim no work, never lead.")
@options.server_flags
@options.queue_flags
@click.option("--concurrency", type=int, help="How many tasks run at once, in every queue.")
@click.option("--dry-run", is_flag=True, help="Show what would be served, and start nothing.")
@options.json_flag
@click.pass_obj
def start_server(
    given: options.Given,
    *,
    without_jobs: bool,
    host: str | None,
    port: int | None,
    queues: Sequence[str],
    concurrency: int | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run the server: workers, scheduler, health checks, metrics.

    It works until SIGTERM or SIGINT (Ctrl-C), then lets running tasks finish within
    coordinator.shutdown_timeout and hands back the rest; a second signal hands back at once.
    A database that does not answer is waited for. SIGUSR1 prints the stacks of all threads.
    """
    from conductor_cli.cli import plan, process, session

    if as_json and not dry_run:
        raise options.Refused("--json goes with --dry-run.")
    if not dry_run:
        process.begin(lambda: os._exit(0))  # nothing has been started yet
    flags = {**options.server_overrides(host, port), "worker.concurrency": concurrency}
    config = _everywhere(session.settings(given, flags), concurrency)
    if dry_run:
        plan.show(plan.of(config, queues, jobs=not without_jobs), as_json=as_json)
        return 0
    return _serve(given, config, queues, jobs=not without_jobs)


def _everywhere(config: Config, concurrency: int | None) -> Config:
    """The flag beats what the file says about single queues, too."""
    if concurrency is None:
        return config
    workers = config.worker.queues.items()
    queues = {name: replace(each, concurrency=concurrency) for name, each in workers}
    return replace(config, worker=replace(config.worker, queues=queues))


def _serve(given: options.Given, config: Config, queues: Sequence[str], *, jobs: bool) -> int:
    from conductor_cli import telemetry
    from conductor_cli.cli import daemon, session
    from conductor_cli.config import check_exposure
    from conductor_cli.orchestrator import Orchestrator

    check_exposure(config)
    telemetry.configure(config.log.level, config.log.format)
    session.tasks(config)  # a mistake in a module is told before anything starts
    with session.located(config, daemon.log.info) as found:
        orchestrator = Orchestrator.from_config(found, queues=queues, jobs=jobs)
        server = daemon.Daemon(orchestrator, config)
        given.leaves_threads = True
        code = server.run()
    if server.has_stopped:
        given.leaves_threads = False
        _end_within(server.time_left)
    return code


def _end_within(seconds: float) -> None:
    """Let the interpreter end by itself, exit handlers included, but not for ever: threads that
    tasks have left behind could hold it."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()
