"""``conductor healthcheck``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from conductor_cli.cli import options, output

if TYPE_CHECKING:
    from conductor_cli.config import Config

TIMEOUT: Final = 2.5  # seconds
EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1", "": "127.0.0.1"}
NOT_READY: Final = 1


@click.command(cls=options.Command, short_help="Ask the server whether it is ready.")
@click.option("--host", help="The address at which to ask; default: where the server listens.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="The port to ask; default: the server's."
)
@options.json_flag
@click.pass_obj
def healthcheck(given: options.Given, host: str | None, port: int | None, as_json: bool) -> int:
    """Ask the server of this configuration whether it is ready; exit code 1 if it is not."""
    from conductor_cli.config import load

    flags = options.server_overrides(host, port)
    config = load(given.config, overrides=flags, require_database=False)
    reasons = _reasons(config)
    if as_json:
        output.json({"ready": not reasons, "reasons": reasons})
    elif reasons:
        output.tell("\n".join(f"Error: not ready: {output.plain(each)}" for each in reasons))
    else:
        output.say("ready")
    return NOT_READY if reasons else 0


def _reasons(config: Config) -> list[str]:
    """Why the server is not ready; none when it is."""
    from http.client import HTTPConnection, HTTPException

    host, port = config.server.host, config.server.port
    if not port:
        raise options.Refused("server.port is 0, any free port: say which one with --port.")
    host = EVERYWHERE.get(host, host).strip("[]")
    connection = HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return _told(answer.status, answer.read(100_000))
    except TimeoutError:
        return [f"nothing answers within {TIMEOUT:g} s at {host}:{port}"]
    except OSError as error:
        return [f"nothing answers at {host}:{port}: {error.strerror or error}"]
    except UnicodeError:
        return [f"{host!r} is no host's name"]
    except HTTPException:
        return [f"what answers at {host}:{port} is not a Conductor server"]
    finally:
        connection.close()


def _told(code: int, body: bytes) -> list[str]:
    import json

    try:
        answer: Any = json.loads(body)
        if code == 200 and answer["status"] == "ready":
            return []
        return [str(each) for each in answer["reasons"]]
    except (ValueError, TypeError, KeyError):
        return [f"the answer is not a Conductor server's (HTTP {code})"]
