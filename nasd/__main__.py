import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while importing is no fault to be traced
if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whatever lies in it

from nasd.cli import main  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
