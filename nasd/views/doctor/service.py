"""The check of nasd as a service: installed, enabled, of this checkout, and up to date with it."""

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nasd.launch import interpreter
from nasd.views.doctor.case import Case, Finding

UNITS = Path("/etc/systemd/system")
SEARCH, BOARD = "nasd.service", "nasd-tensorboard.service"
ROOT = Path(__file__).resolve().parents[3]
SECONDS = 60.0


def systemd_runs() -> bool:
    """Whether it runs this machine."""
    return Path("/run/systemd/system").is_dir()


def service(case: Case, units: Path = UNITS) -> Iterator[Finding]:
    """units: where the unit files stand."""
    installed = units / SEARCH
    if not installed.exists():
        if systemd_runs():
            yield Finding(
                "service",
                "note",
                "not installed, so nobody starts the search after a reboot: sudo"
                " bin/install-service",
            )
        else:
            yield Finding("service", "good", "none: systemd does not run this machine")
        return
    try:
        text = installed.read_text(encoding="utf-8")
    except OSError as error:
        yield Finding("service", "note", f"{installed} cannot be read: {error.strerror}")
        return
    again = f"sudo bin/install-service --config {shlex.quote(str(case.path.resolve()))}"
    checkout = _value(text, r"^WorkingDirectory=(.*)$")
    config = _value(text, r'--config "([^"]*)"')
    if Path(checkout) != ROOT:
        yield Finding("service", "note", f"{SEARCH} is of the checkout {checkout}: {again}")
    elif Path(config) != case.path.resolve():
        yield Finding("service", "note", f"{SEARCH} serves another config, {config}: {again}")
    elif stale := _stale(units, text):
        yield Finding("service", "note", f"{stale}: {again}")
    elif not list(units.glob(f"*.wants/{SEARCH}")):
        yield Finding(
            "service",
            "note",
            "installed, but nobody starts it after a reboot: sudo systemctl enable nasd",
        )
    else:
        yield Finding("service", "good", "installed, enabled, and up to date with this checkout")


def _value(text: str, pattern: str) -> str:
    """What stands in a unit file, "" where the pattern does not."""
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].replace("%%", "%") if found else ""


def _stale(units: Path, text: str) -> str:
    """What is to be said of unit files that bin/install-service would write otherwise today."""
    options = ["--config", _value(text, r'--config "([^"]*)"')]
    options += ["--user", _value(text, r"^User=(.*)$")]
    options += ["--python", _value(text, r'^ExecStart="([^"]*)"')]
    names = [SEARCH]
    if (units / BOARD).exists():
        names.append(BOARD)
        port = _value((units / BOARD).read_text(encoding="utf-8"), r"--port (\d+)")
        options += ["--port", port]
    else:
        options.append("--no-tensorboard")
    home = _value(text, r'"HF_HOME=([^"]*)"')
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-P", ROOT / "bin/install-service", "--into", folder, *options],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=interpreter.environment({"HF_HOME": home}),
            )
        except subprocess.TimeoutExpired:
            return f"bin/install-service did not answer within {SECONDS:g} s"
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            return f"whether {SEARCH} is up to date cannot be told ({said})"
        for name in names:
            if (Path(folder) / name).read_text(encoding="utf-8") != (units / name).read_text(
                encoding="utf-8"
            ):
                return f"{name} is not what bin/install-service writes today"
    return ""
