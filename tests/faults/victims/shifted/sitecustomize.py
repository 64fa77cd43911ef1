"""A process whose wall clock is off by FAULTS_SHIFT seconds, as the functions of ``time`` tell it.

Not the kernel's clock, and not what C code asks of it (``datetime.now()``, which only dates the
log here); monotonic clocks are as they were. Loaded
by Python itself at its start, when its folder is on PYTHONPATH.
"""

from __future__ import annotations

import os
import time

SHIFT = float(os.environ["FAULTS_SHIFT"])

_time, _time_ns = time.time, time.time_ns
_localtime, _gmtime = time.localtime, time.gmtime


time.time = lambda: _time() + SHIFT
time.time_ns = lambda: _time_ns() + int(SHIFT * 1e9)
time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
time.gmtime = lambda seconds=None: _gmtime(time.time() if seconds is None else seconds)
