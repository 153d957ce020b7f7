"""The command line. Each command imports what it needs when it is called.

One file for each kind of command, with its options in `options`; each registers its own with `app`.
"""

import io
import sys

from nasd.cli import searching  # their order is that of the panels in `nasd --help`

# isort: split
from nasd.cli import compressing, profiling

# isort: split
from nasd.cli import looking

# isort: split
from nasd.cli import intervening

# isort: split
from nasd.cli import models
from nasd.cli.options import app
from nasd.contract.errors import NasdError
from nasd.launch.interpreter import keep_asserts

__all__ = [
    "app",
    "compressing",
    "intervening",
    "looking",
    "main",
    "models",
    "profiling",
    "searching",
]


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 is shown escapes instead
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        keep_asserts()
        app(standalone_mode=True, prog_name="nasd")  # also of `python -m nasd`
    except NasdError as error:
        print(f"nasd: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
