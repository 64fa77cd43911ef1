"""Which executions are meant: ids by their beginning, or filters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import click

from conductor_cli.cli import options
from conductor_cli.models import Execution, State
from conductor_cli.store import reports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from conductor_cli.client import Conductor
