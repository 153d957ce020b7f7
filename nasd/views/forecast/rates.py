"""How fast a slot is: as given, as an experiment has measured, as it was tried, or as known of its
kind."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from nasd.contract import config as config_module
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.slots import devices, on_gpus, sharers
from nasd.contract.volumes import Volumes
from nasd.estimate.cost import A100, CPU_BFLOAT16, CPU_THREAD, DEVICE_SHARE, Machine, work
from nasd.record.state import Snapshot
from nasd.views.forecast.speed import Speed

LEAST_MEASURED = 3  # attempts, before the time they take to start is believed


def machine(
    config: Config,
    slots: Sequence[str],
    tflops: float | None,
    measured: Snapshot | None,
    speed: Speed | None = None,
) -> tuple[Machine, str]:
    """And a sentence on it. speed: as it was tried."""
    machine, why = A100, "24 % of an A100's peak in bfloat16"
    if not on_gpus(slots):
        machine, why = CPU_THREAD, f"{CPU_THREAD.tflops:g} a CPU thread"
        rate = CPU_THREAD.tflops * config.slots.threads
        if config.slots.precision == "bfloat16":
            rate *= CPU_BFLOAT16
            why += f", x {CPU_BFLOAT16:g} in bfloat16"
        machine = replace(machine, tflops=rate)
    if tflops is not None:
        machine, why = replace(machine, tflops=tflops), "as given"
    elif measured is not None:
        machine = _calibrated(config, measured, machine)
    shown = "as the experiment shows"
    if speed is not None and tflops is None and not machine.rates:
        machine, shown = replace(machine, rates=speed.rates), f"as tried {speed.told}"
        why += "" if speed.rates else f"; {speed.told}"
    told = f"{machine.tflops:g} TFLOP/s each ({why})"
    if machine.rates:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in machine.rates.items())
        if len(set(machine.rates.values())) == 1:
            rates = f"{next(iter(machine.rates.values())):.3g}"
        rest = any(stage.name not in machine.rates for stage in config.parts)
        told = f"TFLOP/s each {shown}: {rates}" + (f"; else {told}" if rest else "")
    return machine, (
        f"{told}, {machine.scaling:.0%} of it where four work together;"
        f" {machine.start_seconds:.0f} s to start an attempt, {machine.checkpoint_seconds:.0f} s"
        f" for a checkpoint every {config.daemon.checkpoint_minutes:g} min.{_shared(config)}"
    )


def _shared(config: Config) -> str:
    share = config.slots.share
    if share == 1:
        return ""
    return (
        f" Each of {share} on a GPU is as fast as one alone until together they keep it busy; a"
        f" step does so with its operations and {DEVICE_SHARE:.0%} of the rest of its time, as"
        " measured on an H100."
    )


def _calibrated(config: Config, measured: Snapshot, machine: Machine) -> Machine:
    """The machine, as fast as in the experiment where that is known, by what the stages took that
    were never interrupted. A stage not yet measured is as fast as others of its task."""
    prepared = measured.experiment.prepared
    try:
        theirs = config_module.parse(measured.experiment.config, "the experiment's config")
    except NasdError:  # of another version of nasd
        return machine
    if prepared is None:
        return machine
    volumes = Volumes.of(prepared, theirs.data)
    stages = {stage.name: stage for stage in theirs.parts}
    rates: dict[str, list[float]] = {}
    starts = []
    for (owner, name), result in measured.results.items():
        tried = measured.attempts_at.get((owner, name), [])
        if name not in stages or len(tried) != 1 or result.seconds <= 0:
            continue
        (attempt,) = tried
        assert attempt.ended_at is not None
        starts.append(max(0.0, attempt.ended_at - attempt.started_at - result.seconds))
        candidate = measured.candidates[owner]
        asked = work(
            stages[name],
            candidate.genotype,
            candidate.lineage,
            measured.experiment.backbone,
            theirs.data,
            volumes,
            theirs.taught_along(stages[name], candidate.is_baseline),
        )
        untrained = stages[name].train != "none" and not asked.steps
        if result.steps != asked.steps or untrained:
            continue
        ranks = len(devices(attempt.slots))
        seconds = machine.alone(result.seconds, asked.flop, ranks, sharers(attempt.slots))
        rates.setdefault(name, []).append(asked.flop / seconds / machine.together(ranks) / 1e12)
    found = {name: median(values) for name, values in rates.items()}
    for stage in config.parts:
        alike = [
            rate
            for name, rate in found.items()
            if (stages[name].task, stages[name].train == "none")
            == (stage.task, stage.train == "none")
        ]
        if stage.name not in found and alike:
            found[stage.name] = median(alike)
    seconds = median(starts) if len(starts) >= LEAST_MEASURED else machine.start_seconds
    return replace(machine, rates=found, start_seconds=seconds)
