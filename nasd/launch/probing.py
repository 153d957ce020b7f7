"""A job of a moment, which says before a search begins whether the nodes are fit for one."""

import json
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nasd.contract.config import Config
from nasd.launch import interpreter, slurm
from nasd.launch.queue import OVER, Queue, environment, last_line
from nasd.launch.sbatch import options, submitted


@dataclass(frozen=True)
class Probe:
    """What a job of a moment found on the node that it ran on. fault: why it did not, or "".

    version: nasd's there. ahead: by how many seconds its clock is ahead of this one's.
    """

    fault: str = ""
    node: str = ""
    version: str = ""
    ahead: float = 0.0


def probe(config: Config, state: Path, patience: float) -> Probe:
    """Whether a node sees the folder of a search, and runs the same nasd by the same clock.

    The job is as those of the first stage. Both write a file there: what each clock is off from the
    file server's, they are off from each other. Raises NasdError where Slurm takes no such job.
    """
    stage = config.stages[0].name
    first = next((name for name in (state, *state.parents) if name.is_dir()), state)
    with tempfile.TemporaryDirectory(prefix=".nasd-probe-", dir=first) as name:
        folder = Path(name)
        python = config.slurm.python or interpreter.this()
        told = folder / "told.json"
        lines = [
            "#!/bin/sh",
            *config.slurm.setup,
            shlex.join(interpreter.command("nasd.launch.probe", str(folder), python=python)),
            "",
        ]
        (folder / "probe.sh").write_text("\n".join(lines))
        slots = [str(slot) for slot in slurm.devices(config, False)][:1]
        words = [
            *("sbatch", "--parsable", "--job-name=probe-of-nasd", f"--chdir={folder}"),
            f"--output={str(folder / 'log').replace('%', '%%')}",
            *options(config, stage, slots),
        ]
        number = submitted([*words, str(folder / "probe.sh")], stage).partition(";")[0]
        queue = Queue(1.0, name="probe-of-nasd")
        end, seen = time.monotonic() + patience, None
        while time.monotonic() < end and not told.exists():
            queue.look()
            seen = next((one for one in queue.jobs.values() if one.id == number), seen)
            if seen is not None and seen.state in OVER and not told.exists():
                time.sleep(2)  # a shared file system may take a moment to show it
                break
            time.sleep(0.1)
        if not told.exists():
            said = last_line((folder / "log").read_text()) if (folder / "log").exists() else ""
            subprocess.run(["scancel", number], capture_output=True, env=environment())
            if seen is None or seen.state not in OVER:
                why = f"still waits after {patience:g} s ({seen.reason if seen else 'unseen'})"
                return Probe(f"its probe job {number} {why}, so no node could be looked at")
            where = f" on {seen.nodes}" if seen.nodes else ""
            return Probe(
                f"its probe job {number} left no word in {first}{where} ({seen.state}"
                f"{f', {said}' if said else ''}): the nodes have to see that folder, and nasd's"
                f" environment ({python}), by the same paths; else name another experiment.state,"
                " or slurm.python"
            )
        found = json.loads(told.read_text())
        ours = folder / "ours"
        ours.write_text("")
        ahead = found["ahead"] - (time.time() - ours.stat().st_mtime)
        return Probe("", found["node"], found["version"], ahead)
