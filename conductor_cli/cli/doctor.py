"""``conductor doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.catalog import TaskSet
    from conductor_cli.cli.options import Given
    from conductor_cli.config import Config
    from conductor_cli.diagnosis import Finding

SOMETHING_WRONG: Final = 1
COLUMNS: Final = ("level", "check", "message", "advice")
STYLES: Final = {"ok": "green", "warning": "yellow", "error": "bold red"}


@click.command(cls=options.Command, short_help="Say what would go wrong here.")
@options.json_flag
@click.pass_obj
def doctor(given: options.Given, as_json: bool) -> int:
    """Look at the configuration, Postgres, the schema, the servers and their work.

    Changes nothing. Each finding is ok, a warning or an error, and says what to do. Exit code 1
    when there is an error; 2, 3 and 5 as with every command: bad configuration, a database that
    is newer than this program or cannot be reached.
    """
    visit = Visit(given)
    visit.make()
    if as_json:
        output.json(visit.findings)
    elif output.is_terminal():
        _show(visit.findings)
    else:
        output.table(COLUMNS, [_row(each) for each in visit.findings])
    return visit.code


class Visit:
    """Gathers findings, as far as one gets, and the exit code they stand for."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._problem: Exception | None = None
        self.findings: list[Finding] = []

    def make(self) -> None:
        from conductor_cli.cli import session
        from conductor_cli.errors import ConfigError, DatabaseUnavailable

        try:
            config = session.settings(self._given)
        except ConfigError as problem:
            self._blocked("configuration", problem)
            return
        tasks = self._tasks(config)
        try:
            with session.located(config, output.tell) as found:
                self._examine(found, tasks, embedded=config.database.url == session.EMBEDDED)
        except (ConfigError, DatabaseUnavailable) as problem:
            self._blocked("database", problem)

    @property
    def code(self) -> int:
        from conductor_cli.cli import failures
        from conductor_cli.diagnosis import Level

        if self._problem is not None:
            return failures.exit_code(self._problem)
        wrong = any(each.level is Level.ERROR for each in self.findings)
        return SOMETHING_WRONG if wrong else 0

    def _tasks(self, config: Config) -> TaskSet | None:
        from conductor_cli import diagnosis, errors
        from conductor_cli.cli import session

        tasks = None
        try:
            tasks = session.tasks(config)
        except (errors.ConfigError, errors.TaskDefinitionError) as problem:
            self._blocked("configuration", problem)
        self.findings += diagnosis.look_at(config, tasks)
        return tasks

    def _examine(self, config: Config, tasks: TaskSet | None, *, embedded: bool) -> None:
        from conductor_cli import diagnosis
        from conductor_cli.cli import session
        from conductor_cli.client import Conductor

        with Conductor.from_config(config) as conductor:
            session.reach(conductor.database)
            found, problem = diagnosis.examine(
                conductor.database, config, tasks, installs_itself=embedded
            )
        self.findings += found
        self._problem = self._problem or problem

    def _blocked(self, check: str, problem: Exception) -> None:
        """Nothing works until this is mended."""
        from conductor_cli import diagnosis, telemetry
        from conductor_cli.cli import failures

        self._problem = self._problem or problem
        for line in failures.lines(problem):
            self.findings.append(
                diagnosis.Finding(
                    check, diagnosis.Level.ERROR, telemetry.redact(line), ADVICE[check]
                )
            )


ADVICE: Final = {
    "configuration": "Correct it; conductor.toml.example lists every key. Servers do not start.",
    "database": "Start Postgres, or correct [database] url; then look again.",
}


def _row(finding: Finding) -> tuple[str, ...]:
    return (finding.level, finding.check, finding.message, finding.advice)


def _show(findings: Sequence[Finding]) -> None:
    from collections import Counter

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "check", "finding"):
        shown.add_column(column, overflow="fold", no_wrap=column != "finding")
    for each in findings:
        text = Text(output.plain(each.message))
        if each.advice:
            text.append(f"\n→ {output.plain(each.advice)}", style="dim")
        shown.add_row(Text(each.level, style=STYLES[each.level]), Text(each.check), text)
    Console().print(shown)
    counts = Counter(str(each.level) for each in findings)
    output.say(f"{counts['error']} wrong, {counts['warning']} to mind, {counts['ok']} well.")
