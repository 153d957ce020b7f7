"""A Slurm that is a folder: sbatch, squeue, scancel and srun as a test wants them to answer.

    python slurm_stub.py PROGRAM FOLDER ARGUMENT ...     (`install` makes commands of that)

Its jobs run at once, on this machine. Files in the folder say otherwise: `down`, no command
answers; `refuses`, what sbatch says; `waits`, jobs stay pending, for the reason in it; `ends`, in
what state a job that ends is to have been; `running`, one that has ended is not seen to have yet;
`forgets`, none of its jobs is known.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


def install(folder: Path) -> Path:
    """Commands on a stub of its own; what has to be ahead on PATH."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("sbatch", "squeue", "scancel", "srun"):
        program = programs / name
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" {name} "{folder}" "$@"\n'
        )
        program.chmod(0o755)
    return programs


def jobs(folder: Path) -> dict[str, dict[str, str]]:
    """What it was asked to run, by number."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.job"))}


def _said(folder: Path, name: str) -> str | None:
    path = folder / name
    return path.read_text().strip() if path.exists() else None


def _state(folder: Path, number: str, job: dict[str, str]) -> tuple[str, str]:
    if job.get("cancelled"):
        state = "CANCELLED"
    elif "pid" not in job:
        return "PENDING", _said(folder, "waits") or "None"
    else:
        code = _said(folder, f"{number}.code")
        late = _said(folder, "running") is not None
        state = "RUNNING" if code is None or late else "COMPLETED" if code == "0" else "FAILED"
    if state != "RUNNING" and (ends := _said(folder, "ends")) is not None:
        state = ends
    if job.get("cancelled") and "pid" in job and _said(folder, f"{number}.code") is None:
        state = "COMPLETING"
    return state, "None"


def _run(folder: Path, number: str, job: dict[str, str]) -> None:
    """As a batch step: whose own process is the one that is signalled, and whose code is kept."""
    keeper = subprocess.Popen(
        [
            *("sh", "-c", 'sh "$1" >>"$2" 2>&1 & echo $! >"$3.pid"; wait $!; echo $? >"$3.code"'),
            *("keeper", job["script"], job["output"], str(folder / number)),
        ],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (pid := _said(folder, f"{number}.pid")):
        time.sleep(0.005)
    job |= {"pid": pid, "keeper": str(keeper.pid)}


def sbatch(folder: Path, words: list[str]) -> int:
    if (why := _said(folder, "refuses")) is not None:
        print(f"sbatch: error: Batch job submission failed: {why}", file=sys.stderr)
        return 1
    options = dict(one[2:].partition("=")[::2] for one in words if one.startswith("--"))
    if "test-only" in options:
        print("sbatch: Job 1 to start now", file=sys.stderr)
        return 0
    number = str(len(list(folder.glob("*.job"))) + 1)
    job = {**options, "script": words[-1], "words": " ".join(words)}
    if _said(folder, "waits") is None:
        _run(folder, number, job)
    (folder / f"{number}.job").write_text(json.dumps(job))
    print(number)
    return 0


def squeue(folder: Path, words: list[str]) -> int:
    with (folder / "asked").open("a") as file:
        file.write("squeue\n")
    forgets = _said(folder, "forgets") is not None
    for number, job in jobs(folder).items() if not forgets else ():
        state, reason = _state(folder, number, job)
        print("|".join((number, state, reason, "n1", job["job-name"], job["chdir"])))
    print("99|RUNNING|None|n1|of-somebody-else|/elsewhere")
    return 0


def scancel(folder: Path, words: list[str]) -> int:
    number = words[-1]
    path = folder / f"{number}.job"
    job = json.loads(path.read_text())
    if "--state=PENDING" in words and "pid" in job:
        return 0
    path.write_text(json.dumps({**job, "cancelled": "yes"}))
    if "pid" in job and _said(folder, f"{number}.code") is None:
        os.kill(int(job["pid"]), signal.SIGTERM)
    return 0


def srun(folder: Path, words: list[str]) -> int:
    """All tasks on this machine; one that fails ends the others."""
    options = dict(one[2:].partition("=")[::2] for one in words if one.startswith("--"))
    command = [one for one in words if one.partition("=")[0][2:] not in options]
    tasks = [
        subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(number)})
        for number in range(int(options["ntasks"]))
    ]
    while None in (codes := [one.poll() for one in tasks]):
        if any(codes):
            for one in tasks:
                one.terminate()
        time.sleep(0.05)
    return max(abs(one.returncode) for one in tasks)


if __name__ == "__main__":
    program, place, *rest = sys.argv[1:]
    if (Path(place) / "down").exists():
        print(DOWN, file=sys.stderr)
        sys.exit(1)
    sys.exit(
        {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "srun": srun}[program](
            Path(place), rest
        )
    )
