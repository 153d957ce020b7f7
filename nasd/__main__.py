import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whatever lies in it

from nasd.cli import main

main()
