"""``python -m tests``: the whole suite, its parts side by side; with arguments it is plain pytest.

Most tests wait, for processes and for Postgres: one after the other they take more than twice as
long. Each part has Postgres servers of its own.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PYTEST: Final = (sys.executable, "-m", "pytest")
PARTS: Final = (
    ("tests/unit", "tests/store", "tests/faults"),
    ("tests/services",),
    ("tests/acceptance",),
)


def main(arguments: Sequence[str]) -> int:
    """The exit code is pytest's, of the first part that has one."""
    if arguments:
        return subprocess.call([*PYTEST, *arguments])
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(_run, PARTS))
    return next((code for code in codes if code), 0)


def _run(part: Sequence[str]) -> int:
    done = subprocess.run(
        [*PYTEST, "-q", "--durations=12", *part],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(f"\n=== {' '.join(part)}\n{done.stdout}", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
