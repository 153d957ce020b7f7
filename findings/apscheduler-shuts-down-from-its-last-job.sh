#!/usr/bin/env bash
# APScheduler 3.11.3: a scheduler that runs its jobs in its own thread, and whose one repeated job
# shuts it down, ends with an error: it comes back from the job to note its next run, and the job is
# no longer there. start() raises JobLookupError, although all has been done.
# Seen: the job ran 1 time, running False, then JobLookupError
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check apscheduler==3.11.3 tzlocal==5.3.1
"$there/venv/bin/python" - <<'PY'
import sys
from datetime import datetime
from importlib.metadata import version

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.blocking import BlockingScheduler

scheduler = BlockingScheduler(executors={"default": DebugExecutor()})
runs = []


def last():
    runs.append(1)
    scheduler.shutdown(wait=False)


scheduler.add_job(last, "interval", seconds=1, next_run_time=datetime.now().astimezone())
said = "nothing"
try:
    scheduler.start()
except JobLookupError:
    said = "JobLookupError"
print(
    f"apscheduler {version('apscheduler')}: the job ran {len(runs)} time, running"
    f" {scheduler.running}, then {said}"
)
sys.exit(said != "JobLookupError")
PY
