"""What would go wrong here: a list of small checks, each of which gives findings.

``settings`` looks at the configuration, ``postgres`` at the server, ``schema`` at what migrations
made, ``fleet`` at servers and their work. ``examination`` runs them one by one, each bounded in
time, so that none that fails keeps the others from being made.
"""

from conductor_cli.diagnosis.examination import Check, examine
from conductor_cli.diagnosis.finding import Finding, Level, Patient
from conductor_cli.diagnosis.settings import look_at

__all__ = ["Check", "Finding", "Level", "Patient", "examine", "look_at"]
