"""``conductor start-server``."""

from __future__ import annotations

import os
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
@click.option("--processes", type=int, help="How many processes work, each as configured.")
@click.option("--dry-run", is_flag=True, help="Show what would be served, and start nothing.")
@click.option("--child", type=int, hidden=True)  # of another start-server, at this pipe
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
    processes: int | None,
    dry_run: bool,
    child: int | None,
    as_json: bool,
) -> int:
    """Run the server: workers, scheduler, health checks, metrics.

    It works until SIGTERM, SIGINT (Ctrl-C) or SIGHUP, then lets running tasks finish within
    coordinator.shutdown_timeout and hands back the rest; a second signal hands back at once.
    A database that does not answer is waited for. SIGUSR1 prints the stacks of all threads.

    Python runs one task at a time on a core; with --processes N tasks use N cores. One of them
    that dies is replaced, and what it ran runs again elsewhere at once.
    """
    if child is not None:
        from conductor_cli.cli import child as one_of_several

        return one_of_several.serve(given, child)
    from conductor_cli.cli import plan, process, session

    if as_json and not dry_run:
        raise options.Refused("--json goes with --dry-run.")
    if not dry_run:
        process.begin(lambda: os._exit(0))  # nothing has been started yet
    flags = {
        **options.server_overrides(host, port),
        "worker.concurrency": concurrency,
        "worker.processes": processes,
    }
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
    from conductor_cli.config import check_exposure

    check_exposure(config)
    if jobs and config.worker.processes > 1:
        from conductor_cli.cli import supervisor

        return supervisor.serve(given, config, queues)
    return _serve_here(given, config, queues, jobs=jobs)


def _serve_here(given: options.Given, config: Config, queues: Sequence[str], *, jobs: bool) -> int:
    """In this process, which is all of the server."""
    from conductor_cli import telemetry
    from conductor_cli.cli import daemon, session
    from conductor_cli.cli.front import Front
    from conductor_cli.orchestrator import Orchestrator

    telemetry.configure(config.log.level, config.log.format)
    session.tasks(config, None)  # a mistake in a module is told before anything starts
    with session.located(config, daemon.log.info) as found:
        orchestrator = Orchestrator.from_config(found, queues=queues, jobs=jobs)
        server = daemon.Daemon(
            orchestrator,
            config,
            lambda shown: Front(shown, config, lambda: daemon.described(orchestrator)),
        )
        orchestrator.enter_by(server.in_main)
        given.leaves_threads = True
        code = server.run()
    daemon.let_go(given, server)
    return code
