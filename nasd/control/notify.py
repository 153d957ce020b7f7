"""Words to the service manager, as in sd_notify(3): ready, still alive, what is being done.

Without a service manager, nothing here does anything.
"""

import os
import socket

SEND_SECONDS = 1.0  # a service manager that does not read must not hold up the daemon


def notify(**fields: str) -> bool:
    """Sends `notify(ready="1", status="…")` as READY=1, STATUS=…; whether it was sent.

    Never raises for a service manager that is not there: silence is for its watchdog to notice.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    lines = [f"{name.upper()}={' '.join(value.splitlines())}" for name, value in fields.items()]
    place = os.fsencode(address)
    if address.startswith("@"):  # the abstract namespace: no file
        place = b"\0" + place[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_SECONDS)
            sender.connect(place)
            sender.send("\n".join(lines).encode("utf-8", "replace"))
    except OSError:
        return False
    return True


def watchdog_seconds() -> float | None:
    """How long this process may be silent before the service manager restarts it, as in
    sd_watchdog_enabled(3); None if it may be as long as it likes."""
    try:
        microseconds = int(os.environ["WATCHDOG_USEC"])
        whose = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except (KeyError, ValueError):
        return None
    return microseconds / 1e6 if microseconds > 0 and whose == os.getpid() else None
