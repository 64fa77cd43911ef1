"""Conductor: background jobs, cron and durable execution on nothing but Postgres.

Public names live here and are imported when first used, so that ``conductor --help`` and a
client that only invokes do not pay for what they do not touch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from conductor_cli.version import __version__

if TYPE_CHECKING:
    from conductor_cli.aio import AsyncConductor
    from conductor_cli.client import Conductor
    from conductor_cli.config import Config, WorkerConfig
    from conductor_cli.context import AsyncContext, Context
    from conductor_cli.coordinator import JobCoordinator
    from conductor_cli.errors import (
        Cancel,
        ChildCancelled,
        ChildFailed,
        ChildTimedOut,
        ConductorError,
        ConfigError,
        CredentialsRefused,
        DatabaseBusy,
        DatabaseReadOnly,
        DatabaseUnavailable,
        Duplicate,
        EventTimedOut,
        ExecutionCancelled,
        ExecutionFailed,
        ExecutionNotFound,
        Fail,
        PayloadError,
        PermissionRefused,
        Retry,
        SchemaMissing,
        SchemaTooNew,
        ShutdownTimeout,
        StepError,
        StepTimedOut,
        TaskDefinitionError,
        TaskTimeout,
        TimedOut,
        UnknownTask,
    )
    from conductor_cli.filters import between, exists, one_of, prefix
    from conductor_cli.models import DrainReport, Execution, ExecutionError, State
    from conductor_cli.orchestrator import Orchestrator, OrchestratorInfo
    from conductor_cli.registry import Invocation, Task, cron, on_event, task
    from conductor_cli.scheduler import JobScheduler
    from conductor_cli.step import Step
    from conductor_cli.timing import Backoff
    from conductor_cli.worker import JobWorker

_HOMES = {
    "aio": ("AsyncConductor",),
    "client": ("Conductor",),
    "config": ("Config", "WorkerConfig"),
    "context": ("AsyncContext", "Context"),
    "coordinator": ("JobCoordinator",),
    "errors": (
        "Cancel",
        "ChildCancelled",
        "ChildFailed",
        "ChildTimedOut",
        "ConductorError",
        "ConfigError",
        "CredentialsRefused",
        "DatabaseBusy",
        "DatabaseReadOnly",
        "DatabaseUnavailable",
        "Duplicate",
        "EventTimedOut",
        "ExecutionCancelled",
        "ExecutionFailed",
        "ExecutionNotFound",
        "Fail",
        "PayloadError",
        "PermissionRefused",
        "Retry",
        "SchemaMissing",
        "SchemaTooNew",
        "ShutdownTimeout",
        "StepError",
        "StepTimedOut",
        "StepTimedOut",
        "TaskDefinitionError",
        "TaskTimeout",
        "TimedOut",
        "TimedOut",
        "UnknownTask",
    ),
    "filters": ("between", "exists", "one_of", "prefix"),
    "models": ("DrainReport", "Execution", "ExecutionError", "State"),
    "orchestrator": ("Orchestrator", "OrchestratorInfo"),
    "registry": ("Invocation", "Task", "cron", "on_event", "task"),
    "scheduler": ("JobScheduler",),
    "step": ("Step",),
    "timing": ("Backoff",),
    "worker": ("JobWorker",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncConductor",
    "AsyncContext",
    "Backoff",
    "Cancel",
    "ChildCancelled",
    "ChildFailed",
    "ChildTimedOut",
    "Conductor",
    "ConductorError",
    "Config",
    "ConfigError",
    "Context",
    "CredentialsRefused",
    "DatabaseBusy",
    "DatabaseReadOnly",
    "DatabaseUnavailable",
    "DrainReport",
    "Duplicate",
    "EventTimedOut",
    "Execution",
    "ExecutionCancelled",
    "ExecutionError",
    "ExecutionFailed",
    "ExecutionNotFound",
    "Fail",
    "Invocation",
    "JobCoordinator",
    "JobScheduler",
    "JobWorker",
    "Orchestrator",
    "OrchestratorInfo",
    "PayloadError",
    "PermissionRefused",
    "Retry",
    "SchemaMissing",
    "SchemaTooNew",
    "ShutdownTimeout",
    "State",
    "Step",
    "StepError",
    "StepTimedOut",
    "Task",
    "TaskDefinitionError",
    "TaskTimeout",
    "TimedOut",
    "UnknownTask",
    "WorkerConfig",
    "__version__",
    "between",
    "cron",
    "exists",
    "on_event",
    "one_of",
    "prefix",
    "task",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'conductor_cli' has no attribute {name!r}")
    value = getattr(import_module(f"conductor_cli.{home}"), name)
    globals()[name] = value
    return value
