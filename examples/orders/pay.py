"""What the bank's webhook would do once the money is there: python pay.py ORDER."""

import sys

from conductor_cli import Conductor

if __name__ == "__main__":
    with Conductor.from_config() as conductor:
        conductor.emit("payment.settled", {"order": sys.argv[1]})
