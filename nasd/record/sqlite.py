"""sqlite-utils, without pandas.

It imports pandas where that is installed, as `datasets` sees to, only to know a few more types:
70 MB of memory and 0.3 s that the daemon does without.
"""

import sys

_absent = "pandas" not in sys.modules
if _absent:
    sys.modules["pandas"] = None  # type: ignore[assignment]  # importing it now fails
try:
    from sqlite_utils import Database, Migrations
finally:
    if _absent:
        del sys.modules["pandas"]

__all__ = ["Database", "Migrations"]
