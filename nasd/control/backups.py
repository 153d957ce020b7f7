"""Backups of the database, beside it: state/backups/<time>.db, the newest few.

To go back to one: stop nasd, copy it over state/nasd.db, remove nasd.db-wal and nasd.db-shm, and
start nasd. What was decided since is decided again, and the same.
"""

import calendar
import time
from pathlib import Path

from nasd.record.folders import StateFolder
from nasd.record.store import Store

KEPT = 8
_NAME = "nasd-%Y%m%d-%H%M%S.db"


def make(store: Store, state: StateFolder, now: float) -> Path:
    """A new backup; older ones but the newest few are removed. Its name comes behind all others,
    also where the clock was set back: by their names a person, and age(), know the newest."""
    _forget_halves(state)
    if newest := _made(state)[-1:]:
        now = max(now, calendar.timegm(time.strptime(newest[0].name, _NAME)) + 1)
    path = state.backups / time.strftime(_NAME, time.gmtime(now))
    try:
        store.backup(path)
    except BaseException:
        _forget_halves(state)  # on a full disk, its space is needed
        raise
    for old in _made(state)[:-KEPT]:
        old.unlink()
    return path


def newest(state: StateFolder) -> float:
    """When the newest backup was made, in seconds since the epoch; 0 without one."""
    made = _made(state)[-1:]
    return made[0].stat().st_mtime if made else 0.0


def age(state: StateFolder, now: float) -> float | None:
    """Seconds since the newest backup, None without one; 0 where the clock was set back."""
    newest = _made(state)[-1:]
    return max(0.0, now - newest[0].stat().st_mtime) if newest else None


def _made(state: StateFolder) -> list[Path]:
    """Oldest first."""
    digit = "[0-9]"
    return sorted(state.backups.glob(f"nasd-{digit * 8}-{digit * 6}.db"))


def _forget_halves(state: StateFolder) -> None:
    """Removes what a backup left that was killed, or failed."""
    for half in state.backups.glob(".nasd-*.tmp*"):
        half.unlink()
