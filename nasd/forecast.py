"""Wall-clock, GPU-hours and slot use to be expected of a config, from simulating its search.

The simulated search runs in a temporary folder; an experiment in the config's own state folder is
only read, for what it has measured so far.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from nasd import config as config_module
from nasd import ladder, preflight, readable, snapshot
from nasd.config import PREPARE, Config, check_against_seed, check_against_slots
from nasd.cost import (
    A100,
    CPU_BFLOAT16,
    CPU_THREAD,
    Machine,
    Volumes,
    attempt_seconds,
    prepare_seconds,
    work,
)
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.genotype import Backbone, Block, FeedForward, Genotype, parameters
from nasd.lifecycle import AttemptState
from nasd.preflight import Seed
from nasd.simulation import SimulatedLauncher, VirtualClock, run
from nasd.snapshot import Attempt, Snapshot
from nasd.squad import read_squad
from nasd.store import Store
from nasd.tick import Tick
from nasd.variation import check_genotype

AUTO_SLOTS = 4  # where slots.devices is "auto": the reference box
DISTILBERT = Seed(
    Backbone(vocab_size=30522, positions=512, width=768),
    Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6),
    has_mlm_head=True,
)
KNOWN_SEEDS = {
    "distilbert-base-uncased": DISTILBERT,
    "distilbert/distilbert-base-uncased": DISTILBERT,
}
# Bytes of text on the hub, and bytes a token of the uncased English vocabulary (books have
# shorter words; Wikipedia lies between a clean sample's 5.0 and the 4.4 of names and numbers).
KNOWN_CORPORA = {
    "wikimedia/wikipedia": ("English Wikipedia", 20.2e9, 4.7),
    "bookcorpus/bookcorpus": ("BookCorpus", 4.85e9, 4.2),
}
FILE_BYTES_PER_TOKEN = 4.5
KNOWN_QUESTIONS = {"rajpurkar/squad": 87_599, "squad": 87_599}
FEATURES_PER_QUESTION = 88_524 / 87_599  # SQuAD v1.1 at 384 tokens, stride 128
LEAST_MEASURED = 3  # attempts, before the time they take to start is believed

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is simulated. assumptions: what it rests on, a sentence each."""

    seed: Seed
    volumes: Volumes
    slots: tuple[str, ...]
    machine: Machine
    assumptions: tuple[str, ...]


def forecast(
    config: Config,
    config_path: Path,
    *,
    tflops: float | None = None,
    slots: int | None = None,
    mlm_sequences: int | None = None,
    qa_questions: int | None = None,
    runs: int = 3,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """The forecast as plain JSON values; raises NasdError for what makes no sense.

    tflops: that a slot sustains. slots: instead of the config's. mlm_sequences: to train on.
    qa_questions: in all, before they are split. runs: search seeds, from the config's on.
    """
    for option, value in (
        ("--tflops", tflops),
        ("--slots", slots),
        ("--mlm-sequences", mlm_sequences),
        ("--qa-questions", qa_questions),
        ("--runs", runs),
    ):
        if value is not None and not 0 < value < math.inf:
            raise NasdError(f"{option}: {value} makes no sense, it must be above 0")
    subject = gather(config, config_path, tflops, slots, mlm_sequences, qa_questions)

    def one(number: int) -> Run:
        def say(text: str) -> None:
            progress(f"run {number + 1} of {runs}: {text}")

        return simulate(config, subject, config.experiment.seed + number, say)

    found = [one(number) for number in range(runs)]
    return _report(config, config_path, subject, found)


# -- what it rests on ----------------------------------------------------------------------------


def gather(
    config: Config,
    config_path: Path,
    tflops: float | None = None,
    slots: int | None = None,
    mlm_sequences: int | None = None,
    qa_questions: int | None = None,
) -> Subject:
    """Seed, data, slots and rate: as given, as measured, as known, or as can be looked up."""
    folder, origin = config_path.resolve().parent, str(config_path)
    names, about_slots = _slots(config, slots, origin)
    measured = _experiment(folder / config.experiment.state)
    seed, about_seed = _seed(config, folder, measured)
    check_against_seed(config, seed.backbone.width, seed.backbone.positions, origin)
    try:
        check_genotype(seed.baseline, config.search_space, seed.backbone.width)
    except NasdError as error:
        raise NasdError(
            f"{origin}: search_space does not hold the seed's own architecture: {error}"
        ) from error
    prepared = _prepared(config, measured)
    volumes, about_data = _volumes(config, folder, prepared, mlm_sequences, qa_questions)
    machine, about_rate = _machine(config, names, tflops, measured)
    return Subject(
        seed, volumes, names, machine, (about_seed, about_data, about_slots + about_rate, _LUCK)
    )


_LUCK = (
    "nothing fails and nobody diverges. Which candidates are bred follows from made-up losses and"
    " scores; their sizes, and the hours with them, differ from one search seed to another."
)


def _slots(config: Config, count: int | None, origin: str) -> tuple[tuple[str, ...], str]:
    listed = config.slots.devices
    if count is None and listed != "auto":
        check_against_slots(config, len(listed), origin)
        return listed, f"{len(listed)} slots as listed, "
    cpu = listed != "auto" and listed[0].startswith("cpu")
    number = count or AUTO_SLOTS
    for stage in config.stages:
        if stage.slots > number:
            raise NasdError(
                f"--slots: stages.{stage.name} asks for {stage.slots} slots, more than {number}"
            )
    check_against_slots(config, number, origin)
    names = tuple(f"{'cpu' if cpu else 'cuda'}:{index}" for index in range(number))
    return names, f"{number} slots{'' if count else ' (slots.devices is auto: a guess)'}, "


def _experiment(state: Path) -> Snapshot | None:
    try:
        with snapshot.opened(state) as connection:
            return snapshot.read(connection)
    except snapshot.NoExperiment:
        return None


def _seed(config: Config, folder: Path, measured: Snapshot | None) -> tuple[Seed, str]:
    source = config.seed_model.source
    has_head_stage = any(stage.train == "head" for stage in config.stages)
    if source in KNOWN_SEEDS:
        seed, how = KNOWN_SEEDS[source], "its shape is known"
    elif measured is not None and measured.experiment.config["seed_model"]["source"] == source:
        prepared = measured.experiment.prepared
        head = not has_head_stage if prepared is None else bool(prepared["has_mlm_head"])
        seed = Seed(measured.experiment.backbone, measured.baseline.genotype, head)
        how = "its shape as in the experiment"
    else:
        seed, how = preflight.look_at_seed(source, folder), "looked at"
    size = parameters(seed.baseline, seed.backbone) / 1e6
    without = "" if seed.has_mlm_head else " without an MLM head"
    return seed, f"seed {source}{without}: {size:.1f} M parameters ({how})."


def _prepared(config: Config, measured: Snapshot | None) -> Mapping[str, Any] | None:
    """The experiment's counts of data, if it has the data of this config."""
    if measured is None or measured.experiment.prepared is None:
        return None
    same = measured.experiment.config["data"] == config.data.model_dump(mode="json")
    return measured.experiment.prepared if same else None


def _volumes(
    config: Config,
    folder: Path,
    prepared: Mapping[str, Any] | None,
    mlm_sequences: int | None,
    qa_questions: int | None,
) -> tuple[Volumes, str]:
    mlm, qa = config.data.mlm, config.data.qa
    if mlm_sequences is not None:
        sequences, how = mlm_sequences, "as given"
    elif prepared is not None:
        sequences, how = prepared["mlm_train_sequences"], "as prepared"
    else:
        sequences, how = _sequences(config, folder)
    if qa_questions is None and prepared is not None:
        names = ("train_questions", "test_questions", "train_features", "test_features")
        counts = tuple(int(prepared[f"qa_{name}"]) for name in names)
        asked = "as prepared"
    else:
        if qa_questions is not None:
            total, asked = qa_questions, "as given"
        elif qa.files:
            total, asked = sum(len(read_squad(folder / name)) for name in qa.files), "counted"
        elif qa.hub in KNOWN_QUESTIONS:
            total, asked = KNOWN_QUESTIONS[qa.hub], "SQuAD v1.1"
        else:
            raise NasdError(f"data.qa.hub: nothing is known of {qa.hub}: give --qa-questions")
        train = min(total - 1, max(1, round(qa.train_share * total)))
        if total < 2:
            raise NasdError(f"--qa-questions: {total} cannot be split into train and test")
        features = [round(part * FEATURES_PER_QUESTION) for part in (train, total - train)]
        counts = (train, total - train, features[0], features[1])
    volumes = Volumes(sequences, mlm.evaluation_sequences, *counts)
    volumes = replace(volumes, qa_tokens=min(volumes.qa_tokens, float(qa.tokens)))
    for stage in config.stages:
        examples = sequences if stage.task == "mlm" else volumes.qa_train_features
        if stage.train != "none" and min(stage.batch, examples) < stage.slots:
            raise NasdError(
                f"stages.{stage.name}: {examples} training examples cannot be dealt out to"
                f" {stage.slots} slots"
            )
    return volumes, (
        f"{_many(sequences)} sequences of {mlm.tokens} tokens ({how}); {counts[0]:,} questions to"
        f" train on and {counts[1]:,} to test ({asked})."
    )


def _sequences(config: Config, folder: Path) -> tuple[int, str]:
    """How many sequences there are to train on, and how that was arrived at."""
    mlm = config.data.mlm
    tokens, parts, known = 0.0, [], True
    for corpus in mlm.corpora:
        if corpus.files:
            try:
                size = float(sum((folder / name).stat().st_size for name in corpus.files))
            except OSError as error:
                raise NasdError(
                    f"data.mlm.corpora: {error.filename} cannot be read: {error.strerror}"
                ) from error
            name, ratio = "files", FILE_BYTES_PER_TOKEN
        elif corpus.hub in KNOWN_CORPORA and (corpus.config or ".en").endswith(".en"):
            name, size, ratio = KNOWN_CORPORA[corpus.hub]
        elif mlm.max_sequences is None:
            raise NasdError(
                f"data.mlm.corpora: nothing is known of the size of {corpus.hub}: give"
                " --mlm-sequences"
            )
        else:
            known = False
            continue
        tokens += size / ratio
        parts.append(f"{name} {readable.size(size)} at {ratio:g} bytes a token")
    there = int(tokens / (mlm.tokens - 2))
    if known and there < 2 * mlm.evaluation_sequences:
        raise NasdError(
            f"data.mlm.corpora: about {there} sequences of {mlm.tokens} tokens are too few for"
            f" data.mlm.evaluation_sequences = {mlm.evaluation_sequences}; --mlm-sequences says"
            " how many there are"
        )
    there -= mlm.evaluation_sequences
    if mlm.max_sequences is not None and (not known or mlm.max_sequences <= there):
        return mlm.max_sequences, "data.mlm.max_sequences"
    return there, ", ".join(parts)


def _machine(
    config: Config, slots: Sequence[str], tflops: float | None, measured: Snapshot | None
) -> tuple[Machine, str]:
    machine, why = A100, "24 % of an A100's peak in bfloat16"
    if slots[0].startswith("cpu"):
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
    told = f"{machine.tflops:g} TFLOP/s each ({why})"
    if machine.rates:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in machine.rates.items())
        rest = any(stage.name not in machine.rates for stage in config.stages)
        told = f"TFLOP/s each as the experiment shows: {rates}" + (f"; else {told}" if rest else "")
    return machine, (
        f"{told}, {machine.scaling:.0%} of it where four work together;"
        f" {machine.start_seconds:.0f} s to start an attempt, {machine.checkpoint_seconds:.0f} s"
        f" for a checkpoint every {config.daemon.checkpoint_minutes:g} min."
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
    volumes = Volumes.of(prepared, theirs.data.qa)
    stages = {stage.name: stage for stage in theirs.stages}
    rates: dict[str, list[float]] = {}
    starts = []
    for (owner, name), result in measured.results.items():
        tried = [a for a in measured.attempts if (a.candidate, a.stage) == (owner, name)]
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
            theirs.data.mlm,
            volumes,
        )
        untrained = stages[name].train != "none" and not asked.steps
        if result.steps != asked.steps or untrained:
            continue
        together = machine.together(len(attempt.slots))
        rates.setdefault(name, []).append(asked.flop / result.seconds / together / 1e12)
    found = {name: median(values) for name, values in rates.items()}
    for stage in config.stages:
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


# -- the simulated search ------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What became of one simulated search. Times are virtual seconds since its beginning."""

    seed: int
    began: float
    ended: float
    snapshot: Snapshot


def simulate(config: Config, subject: Subject, seed: int, progress: Progress) -> Run:
    """The whole search of the config with another search seed, without a budget."""
    experiment = config.experiment.model_copy(update={"seed": seed, "budget_gpu_hours": None})
    config = config.model_copy(update={"experiment": experiment})
    clock = VirtualClock()
    began = clock()
    with tempfile.TemporaryDirectory(prefix="nasd-simulate-") as folder, _silence():
        state = StateFolder(Path(folder) / "state")
        store = Store(state.database)
        try:
            store.create_experiment(
                config.experiment.name,
                seed,
                config.model_dump(mode="json", by_alias=True),
                subject.seed.backbone,
                subject.seed.baseline,
                PREPARE,
                began,
            )
            launcher = SimulatedLauncher(
                clock,
                subject.seed.backbone,
                subject.seed.baseline,
                subject.volumes,
                subject.machine,
                has_mlm_head=subject.seed.has_mlm_head,
                metrics=False,
            )
            tick = Tick(
                store,
                config,
                Path(folder),
                state,
                subject.slots,
                launcher,
                clock,
                monotonic=clock,
                free_bytes=lambda path: 1 << 60,
            )
            end = run(
                tick,
                clock,
                launcher,
                progress=lambda snap, now: progress(_where(snap, now - began)),
            )
        finally:
            store.close()
    if end.experiment.state != "complete":
        raise NasdError(f"the simulated search does not get to its end: {end.experiment.reason}")
    return Run(seed, began, clock(), end)


def _where(snap: Snapshot, seconds: float) -> str:
    generation = snap.generation
    at = "the baseline" if generation is None else f"generation {generation.number}"
    return f"{at}, {readable.duration(seconds)}"


@contextmanager
def _silence() -> Iterator[None]:
    """What the simulated search logs is no news."""
    log = logging.getLogger("nasd")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


# -- what comes of it ----------------------------------------------------------------------------


def _report(
    config: Config, config_path: Path, subject: Subject, runs: Sequence[Run]
) -> dict[str, Any]:
    told = [_told(config, subject, one) for one in runs]
    stages = [PREPARE, *(stage.name for stage in config.stages)]
    total = median(one["gpu_hours"] for one in told)
    return {
        "config": str(config_path),
        "name": config.experiment.name,
        "slots": len(subject.slots),
        "on_gpus": subject.slots[0].startswith("cuda"),
        "budget_gpu_hours": config.experiment.budget_gpu_hours,
        "inputs": {
            "tflops": subject.machine.tflops,
            "rates": dict(subject.machine.rates),
            "volumes": asdict(subject.volumes),
            "backbone": asdict(subject.seed.backbone),
            "baseline": subject.seed.baseline.to_json(),
        },
        "assumptions": list(subject.assumptions),
        **{
            name: _range([one[name] for one in told])
            for name in (
                *("wall_hours", "gpu_hours", "slot_use"),
                *("work_hours", "chain_hours", "over_bound"),
            )
        },
        "stages": [
            {
                "stage": name,
                "slots": median(one["stages"][name]["slots"] for one in told),
                "attempts": median(one["stages"][name]["attempts"] for one in told),
                "hours": median(one["stages"][name]["hours"] for one in told),
                "gpu_hours": (hours := median(one["stages"][name]["gpu_hours"] for one in told)),
                "share": hours / total,
            }
            for name in stages
            if any(one["stages"][name]["attempts"] for one in told)
        ],
        "generations": [
            {
                "generation": number,
                "wall_hours": _range([one["generations"][number]["wall_hours"] for one in told]),
                "gpu_hours": _range([one["generations"][number]["gpu_hours"] for one in told]),
            }
            for number in range(config.experiment.generations + 1)
        ],
        "runs": told,
    }


@dataclass(frozen=True)
class Asked:
    """What a stage takes: seconds on as many slots as it asks for, and on as many as it may get."""

    slots: int
    seconds: float
    widest: float


def _told(config: Config, subject: Subject, one: Run) -> dict[str, Any]:
    """One run, in hours."""
    snap = one.snapshot
    wall = (one.ended - one.began) / 3600
    used = snap.gpu_hours(one.ended)
    stages = {}
    for name in (PREPARE, *(stage.name for stage in config.stages)):
        attempts = [attempt for attempt in snap.attempts if attempt.stage == name]
        stages[name] = {
            "attempts": len(attempts),
            "slots": min((len(attempt.slots) for attempt in attempts), default=0),
            "hours": median(_by_candidate(attempts).values() or [0.0]),
            "gpu_hours": sum(len(attempt.slots) * _held(attempt) for attempt in attempts),
        }
    generations = []
    for generation in snap.generations:
        assert generation.completed_at is not None
        born = {candidate.id for candidate in snap.born_in(generation.number)}
        generations.append(
            {
                "generation": generation.number,
                "wall_hours": (generation.completed_at - generation.opened_at) / 3600,
                "gpu_hours": sum(
                    len(a.slots) * _held(a) for a in snap.attempts if a.candidate in born
                ),
            }
        )
    asked = _asked(config, subject, snap)
    share = sum(one.slots * one.seconds for one in asked.values()) / len(subject.slots) / 3600
    chain = _chain(config, snap, asked) / 3600
    return {
        "seed": one.seed,
        "wall_hours": wall,
        "gpu_hours": used,
        "slot_use": used / (wall * len(subject.slots)),
        "work_hours": share,
        "chain_hours": chain,
        "over_bound": wall / max(share, chain),
        "candidates": len(snap.candidates) - 1,
        "stages": stages,
        "generations": generations,
        "budget_spent": _budget_spent(config.experiment.budget_gpu_hours, one),
    }


def _by_candidate(attempts: Sequence[Attempt]) -> dict[int, float]:
    """Hours that each candidate's attempts held their slots."""
    held: dict[int, float] = {}
    for attempt in attempts:
        held[attempt.candidate] = held.get(attempt.candidate, 0.0) + _held(attempt)
    return held


def _asked(config: Config, subject: Subject, snap: Snapshot) -> dict[tuple[int, str], Asked]:
    """What each finished stage of a candidate takes undisturbed."""
    found = {}
    widest = len(subject.slots) if config.slots.widen else 0
    for owner, name in snap.results:
        candidate, stage = snap.candidates[owner], ladder.stage_named(config, name)
        if stage is None:
            seconds = prepare_seconds(subject.machine, config.data.mlm, subject.volumes)
            found[owner, name] = Asked(1, seconds, seconds)
            continue
        usual, wide = (
            attempt_seconds(
                stage.model_copy(update={"slots": slots}),
                candidate.genotype,
                candidate.lineage,
                subject.seed.backbone,
                config.data.mlm,
                subject.volumes,
                subject.machine,
                config.daemon.checkpoint_minutes,
            )
            for slots in (stage.slots, max(stage.slots, widest))
        )
        found[owner, name] = Asked(stage.slots, usual, wide)
    return found


def _chain(config: Config, snap: Snapshot, asked: Mapping[tuple[int, str], Asked]) -> float:
    """Seconds of the longest chain of attempts, each of which waits for the one before: with any
    number of slots the search takes no less.

    Generations follow each other, and so does what lies before and behind a cutoff.
    """

    def alone(candidate: int, name: str) -> float:
        return asked[candidate, name].widest if (candidate, name) in asked else 0.0

    before = [PREPARE, *(s.name for s in config.ladder("baseline") if s.train == "head")]
    total = sum(alone(snap.baseline.id, name) for name in before)
    for generation in snap.generations:
        segments: list[list[str]] = [[]]
        for stage in config.ladder("candidates"):
            segments[-1].append(stage.name)
            if stage.cuts and generation.number:
                segments.append([])
        total += sum(
            max(
                sum(alone(one.id, name) for name in segment)
                for one in snap.born_in(generation.number)
            )
            for segment in segments
        )
    return total


def _budget_spent(budget: float | None, one: Run) -> dict[str, Any] | None:
    """When the ledger reaches the budget, and in which generation; None if it does not."""
    if budget is None:
        return None
    moments = sorted(
        {
            moment
            for a in one.snapshot.attempts
            for moment in (a.started_at, a.ended_at or one.ended)
        }
    )
    used = 0.0
    for since, until in pairwise(moments):
        busy = sum(
            len(a.slots)
            for a in one.snapshot.attempts
            if a.started_at <= since and (a.ended_at or one.ended) >= until
        )
        more = busy * (until - since) / 3600
        if busy and used + more >= budget:
            at = since + 3600 * (budget - used) / busy
            opened = [g.number for g in one.snapshot.generations if g.opened_at <= at]
            return {"after_hours": (at - one.began) / 3600, "generation": max(opened, default=None)}
        used += more
    return None


def _held(attempt: Attempt) -> float:
    assert attempt.ended_at is not None
    assert attempt.state in (AttemptState.SUCCEEDED, AttemptState.PREEMPTED), attempt
    return (attempt.ended_at - attempt.started_at) / 3600


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


# -- for a terminal ------------------------------------------------------------------------------


def render(data: dict[str, Any]) -> Any:
    """The forecast as a rich renderable, within 80 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    runs = data["runs"]
    unit = "GPU-hours" if data["on_gpus"] else "slot-hours"
    seeds = f"search seed {runs[0]['seed']}"
    if len(runs) > 1:
        seeds = f"search seeds {runs[0]['seed']} to {runs[-1]['seed']}"
    header = Text(no_wrap=True, overflow="ellipsis")
    header.append(data["name"], style="bold")
    header.append(f"  forecast of the whole search, {data['slots']} slots, {seeds}")
    head = Table.grid(padding=(0, 2))
    head.add_row("  wall-clock", *_shown(data["wall_hours"], _wall))
    head.add_row(f"  {unit}", *_shown(data["gpu_hours"], readable.hours))
    head.add_row("  slot use", *_shown(data["slot_use"], lambda share: f"{share:.1%}"))
    parts: list[Any] = [
        header,
        head,
        *(Text(f"  {line}") for line in (_bound(data), _budget(data))),
    ]
    parts += [_stage_table(data, unit), _generation_table(data, unit)]
    rests = Table.grid(padding=(0, 1))
    for line in data["assumptions"]:
        rests.add_row("  -", Text(line))
    rate = "the measured rates" if data["inputs"]["rates"] else "--tflops"
    parts += [
        Text("This rests on", style="bold"),
        rests,
        Text(
            f"The hours are as good as {rate}: with half as many TFLOP/s they are twice as many.",
            style="yellow",
        ),
    ]
    return Group(*parts)


def _shown(one: Mapping[str, float], text: Callable[[float], str]) -> tuple[str, str]:
    least, most = text(one["least"]), text(one["most"])
    return text(one["median"]), f"({least} to {most})" if least != most else ""


def _bound(data: Mapping[str, Any]) -> str:
    """How far the makespan is from what no order of attempts could undercut: all work spread
    evenly over all slots, or the longest chain of attempts. The first knows nothing of cutoffs and
    generations, at which all slots but a few may have to wait."""
    work, chain, over = (data[name] for name in ("work_hours", "chain_hours", "over_bound"))
    bound = max(work["median"], chain["median"])
    which = "all work over all slots" if work["median"] >= chain["median"] else "the longest chain"
    factor, spread = _shown(over, lambda factor: f"{factor:.3f}")
    return (
        f"{factor} x {spread}".rstrip()
        + f" the lower bound of {readable.duration(3600 * bound)}: {which}"
    )


def _budget(data: Mapping[str, Any]) -> str:
    budget = data["budget_gpu_hours"]
    if budget is None:
        return "no budget is set (experiment.budget_gpu_hours)"
    spent = [one["budget_spent"] for one in data["runs"]]
    over = [one for one in spent if one is not None]
    if not over:
        return f"within the budget of {readable.hours(budget)}"
    middle = sorted(over, key=lambda one: one["after_hours"])[len(over) // 2]
    number = middle["generation"]
    where = "with the baseline" if number is None else f"in generation {number}"
    some = "" if len(over) == len(spent) else f", in {len(over)} of {len(spent)} runs"
    return (
        f"the budget of {readable.hours(budget)} is spent {where}, after"
        f" {readable.duration(3600 * middle['after_hours'])}{some}"
    )


def _stage_table(data: Mapping[str, Any], unit: str) -> Any:
    table = _table("stage", "slots", "attempts", "hours each", unit, "share")
    for one in data["stages"]:
        table.add_row(
            one["stage"],
            f"{one['slots']:g}",
            f"{one['attempts']:g}",
            readable.hours(one["hours"]),
            readable.hours(one["gpu_hours"]),
            f"{one['share']:.1%}",
        )
    return table


def _generation_table(data: Mapping[str, Any], unit: str) -> Any:
    table = _table("generation", "wall-clock", "", unit, "")
    for one in data["generations"]:
        table.add_row(
            str(one["generation"]),
            *_shown(one["wall_hours"], _wall),
            *_shown(one["gpu_hours"], readable.hours),
        )
    return table


def _table(*names: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=False, pad_edge=False)
    for index, name in enumerate(names):
        table.add_column(name, no_wrap=True, justify="right" if index and name else "left")
    return table


def _wall(hours: float) -> str:
    return readable.duration(3600 * hours)


def _many(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 10**6 else f"{count:,}"
