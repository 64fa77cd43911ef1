"""``python -m tests``: the whole suite, its parts side by side; with arguments it is plain pytest.

Most tests wait, for processes and for Postgres: one after the other they take more than twice as
long. Each part has Postgres servers of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Final

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
    running = [_start(part) for part in PARTS]
    codes = []
    for part, (process, output) in zip(PARTS, running, strict=True):
        codes.append(process.wait())
        output.seek(0)
        print(f"\n=== {' '.join(part)}\n{output.read()}", flush=True)
    return next((code for code in codes if code), 0)


def _start(part: Sequence[str]) -> tuple[subprocess.Popen[str], IO[str]]:
    output = tempfile.TemporaryFile("w+")
    line = [*PYTEST, "-q", "--durations=12", *part]
    return subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, text=True), output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
