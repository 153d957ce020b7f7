"""sbatch: what a job of a stage asks for, how it is submitted, and whose fault a refusal is."""

import math
import os
import subprocess
from collections.abc import Sequence

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.slots import on_gpus
from nasd.launch import interpreter, job
from nasd.launch.launcher import NotYet
from nasd.launch.queue import environment, last_line

SUBMIT_SECONDS = 60.0
# What sbatch says where it is not the job that is at fault: there will be another time.
AWAY = (
    "unable to contact", "connection refused", "timed out", "socket", "zero bytes",
    "transport endpoint", "munge", "authentication", "temporarily", "backup", "submit limit",
    "maxsubmit", "not responding", "slurm_persist", "configuration source",
)  # fmt: skip
# By a word of what sbatch says: the key that it may be about.
KEYS = {
    "partition": "partition", "account": "account", "qos": "qos", "feature": "constraint",
    "memory": "memory_gb", "time": "time_minutes", "gres": "gres", "node configuration": "gres",
}  # fmt: skip


def spread(count: int, nodes: int | None) -> int:
    """Over how many nodes so many slots come out even: at most those asked for."""
    return next(one for one in range(min(count, nodes or 1), 0, -1) if count % one == 0)


def options(config: Config, stage: str, slots: Sequence[str]) -> list[str]:
    """What sbatch is asked for a job of a stage on so many slots."""
    asked = config.slurm.of(stage)
    nodes = spread(len(slots), asked.nodes)
    count = len(slots) // nodes  # on each, which is what Slurm counts these by
    gres = asked.gres
    if gres is None and on_gpus(slots):
        gres = "gpu:{slots}"
    found = [
        "--no-requeue",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        *(["--ntasks-per-node=1"] if nodes > 1 else []),
        f"--cpus-per-task={count * config.slots.threads}",
    ]
    for name in ("partition", "account", "qos", "constraint"):
        if value := getattr(asked, name):
            found.append(f"--{name}={value}")
    if gres:
        found.append(f"--gres={gres.replace('{slots}', str(count))}")
    if asked.time_minutes is not None:
        found.append(f"--time={asked.time_minutes}")
    if asked.memory_gb is not None:
        found.append(f"--mem={math.ceil(1024 * asked.memory_gb * count)}M")
    ahead = min(65_535, math.ceil(60 * config.slurm.signal_minutes))
    return [*found, f"--signal=B:{job.LIMIT_SIGNAL.name.removeprefix('SIG')}@{ahead}", *asked.extra]


def submitted(words: Sequence[str], stage: str) -> str:
    """What sbatch answers; raises NasdError where it refuses, NotYet where it cannot be known."""
    try:
        done = subprocess.run(
            # No sbatch outlives the daemon: what it submits then would be nobody's.
            [*interpreter.command("nasd.contract.leash", str(os.getpid())), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=SUBMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NotYet(f"sbatch has not answered for {SUBMIT_SECONDS:g} s") from None
    if done.returncode == 0:
        return (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    raise _refusal(last_line(done.stderr), stage)


def _refusal(said: str, stage: str) -> NasdError:
    told = said.lower()
    if any(word in told for word in AWAY):
        return NotYet(f"Slurm does not take jobs just now: {said}")
    key = next((key for word, key in KEYS.items() if word in told), "")
    where = f"slurm.{key}" if key else "slurm"
    return NasdError(f"{where}: Slurm refuses the jobs of {stage}: {said}; mend [slurm]")
