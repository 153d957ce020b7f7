"""Tells a person something, by a command, a webhook, or both: a process of its own.

    python -m nasd.launch.tell      one JSON object on standard input: command, webhook, message

Its exit code is 1, with a sentence, where one of them did not take it. Standard library alone.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

COMMAND_SECONDS = 60.0
POST_SECONDS = 20.0
PAUSES = (0.0, 5.0, 30.0)  # before each try of a webhook


def by_command(command: Sequence[str], message: Mapping[str, Any]) -> str:
    """The message as JSON on its standard input, text and event in its environment; why it failed,
    or ""."""
    about = {"NASD_EVENT": str(message["event"]), "NASD_TEXT": str(message["text"])}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(message),
            text=True,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            env=os.environ | about,
        )
    except OSError as error:
        return f"notify.command: {command[0]} cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"notify.command: {command[0]} has not ended within {COMMAND_SECONDS:g} s"
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        return f"notify.command: {command[0]} left with {done.returncode} ({said[:200]})"
    return ""


def by_webhook(address: str, message: Mapping[str, Any]) -> str:
    """A POST of the message as JSON; why it failed, or "", without the address, which may be a
    secret."""
    if address.startswith("$"):
        name, address = address[1:], os.environ.get(address[1:], "")
        if not address:
            return f"notify.webhook: the environment has no {name}"
    why = ""
    for pause in PAUSES:
        time.sleep(pause)
        try:
            asked = urllib.request.Request(
                address,
                data=json.dumps(message).encode(),
                headers={"Content-Type": "application/json", "User-Agent": "nasd"},
            )
            with urllib.request.urlopen(asked, timeout=POST_SECONDS):
                return ""
        except urllib.error.HTTPError as error:
            why = f"notify.webhook: it was answered {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:  # it will be so again
                return why
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            why = f"notify.webhook: it cannot be reached ({reason})".replace(address, "...")
    return why


def main() -> int:
    asked = json.load(sys.stdin)
    faults = []
    if asked["command"]:
        faults.append(by_command(asked["command"], asked["message"]))
    if asked["webhook"]:
        faults.append(by_webhook(asked["webhook"], asked["message"]))
    told = "; ".join(one for one in faults if one)
    if told:
        print(told, file=sys.stderr)
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
