"""Checks of the machine: GPUs, their driver, torch on them, cores, memory, clock, TensorBoard."""

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil

from nasd.contract import tasks
from nasd.contract.config import check_against_slots
from nasd.contract.genotype import unchanged
from nasd.contract.readable import counted, duration
from nasd.contract.slots import Slot, SlotKind, devices, divided, part_of, unit
from nasd.estimate.cost import memory_gb
from nasd.launch import child, gpus, interpreter, launchers
from nasd.record import daemon_lock
from nasd.views.doctor import service
from nasd.views.doctor.case import GB, Case, Finding

CHILD_SECONDS = 120.0  # importing torch from a cold disk takes a while
# What a rank takes of the machine's memory beside what its slot holds, generously: on a GPU also
# the driver's, and batches on their way.
RANK_GB = {SlotKind.CPU: 0.6, SlotKind.CUDA: 4.0}
# On a CPU in bfloat16 oneDNN keeps programs for shapes that it has met, and questions all differ in
# length (seen, with the few that nasd.worker.training.allocator leaves it: 0.8 GB).
PROGRAMS_GB = 0.8
NO_HALVINGS, ONE_EXAMPLE = 0, 62  # of the micro-batch
CLOCK_SLACK_SECONDS = 60.0


def slots(case: Case) -> Iterator[Finding]:
    """Whether the devices of the config are there, and enough for each stage."""
    config = case.config
    if config.slots.devices != "auto":  # for what comes, also where one is missing
        case.devices = list(divided(config.slots.devices, config.slots.share))
    kind = launchers.of(config.slots)
    case.devices = [str(slot) for slot in kind.devices(config, False)]
    if not kind.here:
        yield Finding("slots", "good", f"{len(case.devices)} of {config.slots.launcher}'s")
    elif case.on_gpus:
        for gpu in gpus.list_gpus():
            device, size = str(Slot.of(SlotKind.CUDA, gpu["index"])), gpu["memory"]
            if device in devices(case.devices):
                case.gpu_memory[device] = size
                share = config.slots.share
                part = "" if share == 1 else f", {_gb(part_of(size, share))} to each of {share}"
                yield Finding("slots", "good", f"{device}: {gpu['name']}, {_gb(size)}{part}")
    else:
        cores = counted(config.slots.threads, "core")
        yield Finding("slots", "good", f"{counted(len(case.devices), 'CPU share')} of {cores} each")
    check_against_slots(config, len(devices(case.devices)), str(case.path))


def driver(case: Case) -> Iterator[Finding]:
    """The GPUs' driver, and whether it stays awake between two questions."""
    if not case.gpu_memory:
        return
    try:
        told = child.ask(
            "nasd.views.doctor.driver",
            {"slots": sorted(case.gpu_memory)},
            timeout_seconds=CHILD_SECONDS,
        )
    except child.NoAnswer as error:
        yield Finding("driver", "note", f"the driver does not tell its version: {error}")
        return
    yield Finding("driver", "good", f"NVIDIA {told['driver']}, for CUDA up to {told['cuda']}")
    asleep = [slot for slot, on in told["persistent"].items() if on is False]
    if asleep:
        yield Finding(
            "driver",
            "note",
            f"persistence mode is off on {', '.join(asleep)}, so that each look at an idle GPU"
            " wakes it up: sudo nvidia-smi -pm 1",
        )


def torch(case: Case) -> Iterator[Finding]:
    """Whether torch can compute on the GPUs, asked of a child: not while a daemon uses them, which
    would take the child for somebody else on its GPUs."""
    if not case.gpu_memory:
        return
    if daemon_lock.held(case.state.lock):
        yield Finding("torch", "good", "not tried: a daemon is at work on the GPUs")
        return
    slots = sorted(case.gpu_memory)
    try:
        told = _of_torch(case, slots, gpus.visible(slots))
    except child.NoAnswer as error:
        yield Finding("torch", "bad", f"it cannot be tried on the GPUs: {error}")
        return
    for slot, fault in told["faults"].items():
        yield Finding("torch", "bad", f"it cannot compute on {slot}: {fault}")
    if not told["faults"]:
        yield Finding(
            "torch", "good", f"{told['torch']} for CUDA {told['cuda']} computes on all of them"
        )
    if told["emulated"]:
        yield _emulated(case, ", ".join(told["emulated"]))


def precision(case: Case) -> Iterator[Finding]:
    """Whether this machine's processor computes in the precision that CPU slots are to have."""
    here = case.devices and not case.on_gpus and launchers.of(case.config.slots).here
    if not here or case.config.slots.precision == "float32":
        return
    try:
        told = _of_torch(case, case.devices)
    except child.NoAnswer as error:
        yield Finding("torch", "bad", f"it cannot be asked what the processor computes in: {error}")
        return
    if told["emulated"]:
        yield _emulated(case, "this processor")


def _of_torch(
    case: Case, slots: Sequence[str], lent: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """lent: of a child's environment."""
    question = {"slots": slots, "precision": case.config.slots.precision}
    return child.ask("nasd.worker.devices", question, lent, CHILD_SECONDS)


def _emulated(case: Case, where: str) -> Finding:
    wanted = case.config.slots.precision
    said = f"{where} would only emulate {wanted}, so attempts compute in float32, which takes"
    return Finding("torch", "note", f"{said} longer than built-in {wanted}")


def cores(case: Case) -> Iterator[Finding]:
    """Whether there is a core for each thread of each slot."""
    if not case.devices or not launchers.of(case.config.slots).here:
        return
    there = len(os.sched_getaffinity(0))
    wanted = len(case.devices) * case.config.slots.threads
    what = f"{len(case.devices)} slots with slots.threads = {case.config.slots.threads} ask for"
    if wanted <= there:
        yield Finding("cores", "good", f"{what} {wanted} of {there} cores")
    else:
        yield Finding(
            "cores", "note", f"{what} {wanted} cores, and there are {there}: lower slots.threads"
        )


def memory(case: Case) -> Iterator[Finding]:
    """Whether the seed's architecture fits at every stage: into each GPU with one example at a
    time, as the micro-batch is found by trying; on CPU shares with a rank's whole share."""
    if case.backbone is None or case.baseline is None or not case.devices:
        return
    if not launchers.of(case.config.slots).here:
        return
    kind = SlotKind.CUDA if case.on_gpus else SlotKind.CPU
    config = case.config
    needs = {
        stage.name: memory_gb(
            stage,
            case.baseline,
            unchanged(case.baseline),
            case.backbone,
            tasks.of(stage.task).limit(config.data),
            stage.slots,
            config.slots.precision,
            ONE_EXAMPLE if kind is SlotKind.CUDA and stage.micro_batch is None else NO_HALVINGS,
        )
        for stage in config.stages
    }
    stage = max(needs, key=lambda name: needs[name])
    share = config.slots.share
    for device, whole in case.gpu_memory.items():
        size = whole if share == 1 else part_of(whole, share)
        if needs[stage] * GB > size:
            whose = "" if share == 1 else " for each"
            mend = "take another GPU" if share == 1 else "lower slots.share"
            yield Finding(
                "memory",
                "bad",
                f"{device} has {_gb(size)}{whose}, and the seed at {stage} takes"
                f" about {needs[stage]:.1f} GB: {mend}, or lower stages.{stage}.micro_batch",
            )
    there = psutil.virtual_memory().total
    each = RANK_GB[kind]
    if kind is SlotKind.CPU:
        each += needs[stage]
        if config.slots.precision == "bfloat16" and any(
            tasks.of(one.task).varies for one in config.stages
        ):
            each += PROGRAMS_GB
    wanted = len(case.devices) * each * GB
    what = f"{len(case.devices)} slots take about {_gb(wanted)} of the machine's {_gb(there)}"
    if wanted > there:
        yield Finding("memory", "note", f"{what}, most at {stage}: take fewer slots")
    else:
        yield Finding("memory", "good", what)


def clock(case: Case) -> Iterator[Finding]:
    """Whether the clock is behind what is recorded already, and whether anybody keeps it right."""
    behind = 0.0 if case.newest_event is None else case.newest_event - time.time()
    if behind > CLOCK_SLACK_SECONDS:
        yield Finding(
            "clock",
            "bad",
            f"it is {duration(behind)} behind the newest event of the database, so durations and"
            f" {unit(case.devices)} would be wrong: set it right, for good with"
            " `sudo timedatectl set-ntp true`",
        )
        return
    synchronised = clock_is_synchronised()
    if synchronised:
        yield Finding("clock", "good", "synchronised, and not behind what is recorded")
    elif synchronised is False:
        mend = "sudo timedatectl set-ntp true" if service.systemd_runs() else "run ntpd or chronyd"
        yield Finding("clock", "note", f"not synchronised with any other: {mend}")


class _Timex(ctypes.Structure):
    """The beginning of the kernel's struct timex, and room for the rest of it."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("rest", ctypes.c_long * 32),
    ]


def clock_is_synchronised() -> bool | None:
    """As timedatectl tells: the kernel bounds the clock's error below 16 s. None: it does not
    tell."""
    try:
        told = _Timex(modes=0)
        answer = ctypes.CDLL(None).adjtimex(ctypes.byref(told))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else told.maxerror < 16_000_000


def tensorboard(case: Case) -> Iterator[Finding]:
    """Whether TensorBoard starts, to look at the curves with."""
    try:
        done = subprocess.run(
            interpreter.command("tensorboard.main", "--version"),
            env=interpreter.environment(),
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        yield Finding("TensorBoard", "note", f"it did not start within {CHILD_SECONDS:g} s")
        return
    if done.returncode == 0:
        yield Finding("TensorBoard", "good", f"{done.stdout.strip()} starts")
    else:
        said = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        yield Finding(
            "TensorBoard", "note", f"it does not start ({said}): install nasd anew, with bin/setup"
        )


def _gb(size: float) -> str:
    return f"{size / GB:.0f} GB" if size >= 10 * GB else f"{size / GB:.1f} GB"
