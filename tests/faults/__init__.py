"""The fault harness: real servers, real Postgres, faults on purpose, and a checker that counts.

`python -m tests.faults [NAMES...] [--short]` runs the scenarios of the fault table and prints a
line for each. The rooms: ``proxy`` (a network that misbehaves), ``cluster`` (a Postgres to be
stopped and broken), ``server`` (a `conductor start-server` to be killed), ``client`` (who
invokes, and writes down what became of it), ``evidence`` (what was seen, outside of those that are
broken), ``checker`` (counts what may not be), ``stage`` (all of these for one scenario),
``scenarios/`` (the faults), ``table`` (the lines). What the servers run is in ``victims/``.
"""
