"""What a request means, as a pure function of a snapshot: its effect, or why it is refused.

The command line asks it before it files a request, and the daemon before it applies one: so what
is impossible is refused at once, and what became so meanwhile is refused all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.streams import stream
from nasd.policy import endings, ladder, scheduling
from nasd.record.lifecycle import CandidateKind, ExperimentState, Phase, State
from nasd.record.requests import Request
from nasd.record.state import PAUSED, Attempt, Candidate, Snapshot
from nasd.search.variation.breeding import check_genotype


class Refused(NasdError):
    """One sentence: why it cannot be done."""


@dataclass(frozen=True)
class Pause:
    """kind: "pause", "drain", or "" to go on."""

    kind: Literal["pause", "drain", ""]


@dataclass(frozen=True)
class Stop:
    pass


@dataclass(frozen=True)
class SetBudget:
    """None: no limit."""

    gpu_hours: float | None


@dataclass(frozen=True)
class Retry:
    candidate: int


@dataclass(frozen=True)
class Cut:
    """attempt: the live one to be ended, if there is one."""

    candidate: Candidate
    attempt: Attempt | None


@dataclass(frozen=True)
class Inject:
    genotype: Genotype


@dataclass(frozen=True)
class Revive:
    """Cut candidates, and the stages behind their cutoffs."""

    stages: Mapping[int, str]


Effect = Pause | Stop | SetBudget | Retry | Cut | Inject | Revive

Stands = Callable[[tuple[int, str]], bool]


@dataclass(frozen=True)
class Accepted:
    """text: what happens now, in words."""

    effect: Effect
    text: str


def answer(
    snapshot: Snapshot, config: Config, request: Request, now: float, stands: Stands
) -> Accepted:
    """The effect of a request on this search; raises Refused if it can have none.

    snapshot: the whole search. now: for the GPU-hours that are used. stands: whether the weights of
    a (candidate, stage) do.
    """
    assert snapshot.whole
    match request.action:
        case "pause":
            return _pause(snapshot)
        case "drain":
            return _drain(snapshot)
        case "resume":
            return _resume(snapshot)
        case "stop":
            if config.slots.launcher != "local":
                return Accepted(
                    Stop(),
                    f"nasd leaves, and {_attempts(snapshot, 'goes on', 'go on')} without it;"
                    " `nasd run` takes the search up (to end them as well: `nasd pause` first)",
                )
            return Accepted(
                Stop(),
                f"{_attempts(snapshot, 'writes a checkpoint', 'write their checkpoints')}, and then"
                " nasd leaves; `nasd run` goes on from there",
            )
        case "budget":
            return _budget(snapshot, config, request.gpu_hours, now)
        case "retry":
            return _retry(snapshot, config, _candidate(snapshot, request), stands)
        case "cut":
            return _cut(snapshot, _candidate(snapshot, request))
        case "inject":
            return _inject(snapshot, config, request.genotype or {})
        case "regret":
            return _regret(snapshot, config, now, stands, request.sample)


def _pause(snapshot: Snapshot) -> Accepted:
    experiment = snapshot.experiment
    if experiment.state is ExperimentState.COMPLETE:
        raise Refused("the search is complete: nothing runs that could be paused")
    if experiment.pause == "pause":
        raise Refused(f"it is paused already, {experiment.pause_note}")
    stops = _attempts(snapshot, "stops at its next checkpoint", "stop at their next checkpoints")
    return Accepted(Pause("pause"), f"nothing new starts, {stops}; `nasd resume` goes on")


def _drain(snapshot: Snapshot) -> Accepted:
    experiment = snapshot.experiment
    if experiment.state is ExperimentState.COMPLETE:
        raise Refused("the search is complete: nothing runs that could be drained")
    if experiment.pause == "pause":
        raise Refused(
            f"it is paused, {experiment.pause_note}, so nothing runs that could be drained:"
            " `nasd resume` first"
        )
    if experiment.pause == "drain":
        raise Refused(f"it is draining already, {experiment.pause_note}")
    runs = _attempts(snapshot, "runs to its end", "run to their end")
    return Accepted(Pause("drain"), f"nothing new starts, {runs}; `nasd resume` goes on")


def _resume(snapshot: Snapshot) -> Accepted:
    experiment = snapshot.experiment
    if not experiment.pause:
        more = {
            "halted": f"; it has halted ({experiment.reason}), and `nasd run` goes on from there",
            "complete": "; it is complete",
        }.get(experiment.state, "")
        raise Refused(f"it is neither paused nor draining, so there is nothing to resume{more}")
    was = PAUSED[experiment.pause]
    return Accepted(Pause(""), f"it was {was} {experiment.pause_note}; the search goes on")


def _budget(snapshot: Snapshot, config: Config, wanted: float | None, now: float) -> Accepted:
    used, unit = snapshot.gpu_hours(now), snapshot.hours_unit
    if wanted == scheduling.budget(snapshot, config):
        there = "there is no budget" if wanted is None else f"the budget is {wanted:g} {unit}"
        raise Refused(f"{there} already")
    if wanted is None:
        text = f"no budget limits the search any more; {used:.2f} {unit} are used"
    elif wanted > used:
        text = f"the budget is {wanted:g} {unit}, of which {used:.2f} are used"
    else:
        text = (
            f"the budget is {wanted:g} {unit}, and {used:.2f} are used: what runs stops at a"
            " checkpoint, and then the search halts"
        )
    return Accepted(SetBudget(wanted), text)


def _candidate(snapshot: Snapshot, request: Request) -> Candidate:
    assert request.candidate is not None
    if request.candidate not in snapshot.candidates:
        raise Refused(
            f"there is no candidate {request.candidate}: `nasd status` shows who there is"
        )
    return snapshot.candidates[request.candidate]


def _retry(snapshot: Snapshot, config: Config, one: Candidate, stands: Stands) -> Accepted:
    name = f"candidate {one.id}"
    if one.state is State.PENDING:
        if not endings.setbacks(snapshot, one):
            raise Refused(f"{name} waits for slots at {one.stage}, and has nothing to be retried")
        return Accepted(Retry(one.id), f"{name} waits at {one.stage} for nothing but slots")
    if one.state is not State.FAILED:
        raise Refused(f"{name} is {one.state}, at {one.stage}: retry is for those that failed")
    if not one.is_baseline:
        _may_come_back(snapshot, config, one)
    origin, _ = ladder.weights_of(snapshot, config, one)
    if origin is not None and not stands(origin):
        raise Refused(
            f"{name} would start {one.stage} from the weights of candidate {origin[0]} at"
            f" {origin[1]}, which are gone"
        )
    return Accepted(Retry(one.id), f"{name} is pending at {one.stage} again")


def _may_come_back(snapshot: Snapshot, config: Config, one: Candidate) -> None:
    """Raises Refused where decisions have been made without the candidate."""
    generation = next(g for g in snapshot.generations if g.number == one.generation)
    if one.kind is not CandidateKind.CANDIDATE:
        waited_for = one.kind is CandidateKind.CONTROL or generation.phase is Phase.BREEDING
        if generation is snapshot.generation and waited_for:
            return
        raise Refused(
            f"candidate {one.id} is {one.called}, of generation {one.generation}, which went on"
            " without it"
        )
    if generation.phase is not Phase.CLIMBING:
        raise Refused(
            f"candidate {one.id} is of generation {one.generation}, which is {generation.phase} and"
            " goes on without it"
        )
    steps = ladder.steps_of(snapshot, config, one)
    for made in snapshot.cutoffs:
        if made.generation == one.generation and (
            steps.index(made.stage) >= steps.index(one.stage)
        ):
            raise Refused(
                f"candidate {one.id} failed at {one.stage}, and the cutoff after {made.stage} was"
                " decided without it: a decision is never made again"
            )


def _cut(snapshot: Snapshot, one: Candidate) -> Accepted:
    name = f"candidate {one.id}"
    if one.is_baseline:
        raise Refused(f"{name} is the baseline, which everything is measured against")
    if one.final:
        raise Refused(f"{name} is {one.state} already, at {one.stage}")
    attempt = next((a for a in snapshot.live_attempts if a.candidate == one.id), None)
    ended = "" if attempt is None else f", and its attempt {attempt.id} is ended"
    return Accepted(Cut(one, attempt), f"{name} is cut at {one.stage}{ended}")


def check_injected(snapshot: Snapshot, config: Config, wanted: Mapping[str, Any]) -> Genotype:
    """What a person has made, as a genotype of the search space; raises Refused where it is none,
    whatever the search comes to."""
    try:
        genotype = Genotype.from_json(wanted)
        _check_keys(wanted, genotype.to_json())
        check_genotype(genotype, config.search_space, snapshot.experiment.backbone.width)
    except NasdError as error:
        raise Refused(str(error)) from error
    return genotype


def _inject(snapshot: Snapshot, config: Config, wanted: Mapping[str, Any]) -> Accepted:
    genotype = check_injected(snapshot, config, wanted)
    for one in snapshot.candidates.values():
        if one.hash == genotype.hash:
            raise Refused(f"candidate {one.id} has this genotype already")
    if genotype.hash in [one.hash for one in snapshot.injections]:
        raise Refused("this genotype waits already for the next generation that is bred")
    newest, planned = snapshot.generation, config.experiment.generations
    number = 0 if newest is None else newest.number + (newest.phase is not Phase.BREEDING)
    if number > planned:
        raise Refused(
            f"no generation is left to be bred, as experiment.generations is {planned}: raise it in"
            " the config, and inject before `nasd run` goes on"
        )
    return Accepted(Inject(genotype), f"it is bred with generation {number}: {genotype}")


def _check_keys(wanted: Any, known: Any, where: str = "") -> None:
    """Raises NasdError where `wanted` has a key that a genotype has not: nothing would come of it.
    known: the same genotype as nasd writes it."""
    if isinstance(known, list):
        for number, (one, other) in enumerate(zip(wanted, known, strict=True)):
            _check_keys(one, other, f"{where}[{number}]")
    elif isinstance(known, dict):
        for key, value in wanted.items():
            if key not in known:
                takes = ", ".join(known)
                place = f"{where} takes {takes}" if where else f"a genotype takes {takes}"
                raise NasdError(f"there is no {key!r} in a genotype: {place}")
            _check_keys(value, known[key], f"{where}.{key}".removeprefix("."))


def drawn(snapshot: Snapshot, stopped: Sequence[Candidate], sample: int | None) -> list[Candidate]:
    """So many of those whom cutoffs have stopped, by the search's seed; all of them without a
    number. Each is as likely to be among them, so they speak for the others."""
    if sample is None or sample >= len(stopped):
        return [*stopped]
    random = stream(snapshot.experiment.seed, stopped[0].generation or 0, "regret", len(stopped))
    return sorted(random.sample([*stopped], sample), key=lambda one: one.id)


def _regret(
    snapshot: Snapshot, config: Config, now: float, stands: Stands, sample: int | None
) -> Accepted:
    newest, planned = snapshot.generation, config.experiment.generations
    if newest is None or newest.phase is not Phase.COMPLETE or newest.number < planned:
        where = "none has begun" if newest is None else f"{newest.number} is {newest.phase}"
        raise Refused(
            "what a cutoff missed is asked for when the last generation is complete: of generations"
            f" 0 to {planned}, {where}"
        )
    stopped = snapshot.stopped_in(newest.number)
    if not stopped:
        raise Refused(
            f"in generation {newest.number} there is nobody whom a cutoff has stopped and who has"
            " not been trained on since"
        )
    of, stopped = len(stopped), drawn(snapshot, stopped, sample)
    left = [one for one in stopped if stands((one.id, one.stage))]
    if not left:
        raise Refused(f"the weights of all whom the cutoff stopped are gone: {_named(stopped)}")
    if scheduling.budget_spent(snapshot, config, now):
        spent = f"{scheduling.budget(snapshot, config)} {snapshot.hours_unit}"
        raise Refused(f"the budget of {spent} is spent")
    steps = [stage.name for stage in config.ladder("candidates")]
    stages = {one.id: steps[steps.index(one.stage) + 1] for one in left}
    gone = [one for one in stopped if one not in left]
    but = f"; the weights of {_named(gone)} are gone" if gone else ""
    some = "" if len(stopped) == of else f", {len(stopped)} of the {of} who were cut"
    return Accepted(Revive(stages), f"trained on behind the selection: {_named(left)}{some}{but}")


def _named(candidates: Sequence[Candidate]) -> str:
    names = ", ".join(str(one.id) for one in candidates)
    return f"candidate {names}" if len(candidates) == 1 else f"candidates {names}"


def _attempts(snapshot: Snapshot, does: str, do: str) -> str:
    live = len(snapshot.live_attempts)
    if not live:
        return "nothing runs just now"
    return f"1 attempt {does}" if live == 1 else f"{live} attempts {do}"
