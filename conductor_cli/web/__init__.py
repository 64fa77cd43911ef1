"""The HTTP side of a server: health, readiness, metrics; the dashboard's home.

``server`` binds, serves and stops; ``app`` answers; ``connection`` limits what a client may hold.
"""

from conductor_cli.web.server import WebServer

__all__ = ["WebServer"]
