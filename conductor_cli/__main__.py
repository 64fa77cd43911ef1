"""``python -m conductor_cli`` is the command ``conductor``."""

import sys

from conductor_cli.cli import main

sys.exit(main())
