"""Backups of the database, beside it: state/backups/<time>.db, the newest few.

To go back to one: stop nasd, copy it over state/nasd.db, remove nasd.db-wal and nasd.db-shm, and
start nasd. What was decided since is decided again, and the same.
"""

import time
from pathlib import Path

from nasd.folders import StateFolder
from nasd.store import Store

KEPT = 8


def make(store: Store, state: StateFolder, now: float) -> Path:
    """A new backup; older ones but the newest few are removed."""
    path = state.backups / time.strftime("nasd-%Y%m%d-%H%M%S.db", time.gmtime(now))
    store.backup(path)
    for old in sorted(state.backups.glob("nasd-*.db"))[:-KEPT]:
        old.unlink()
    return path


def age(state: StateFolder, now: float) -> float | None:
    """Seconds since the newest backup, None without one; 0 where the clock was set back."""
    newest = sorted(state.backups.glob("nasd-*.db"))[-1:]
    return max(0.0, now - newest[0].stat().st_mtime) if newest else None
