"""The peers: how each turns seconds of training into models.

Searches run in the real daemon, `nasd run`, until their time is up. All others are trained by the
same workers, beside it. Every peer starts from the same fine-tuned baseline, to the last bit, and
its training is charged to each.
"""

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import tomlkit

from nasd.contract.config import PREPARE, Config, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.launch import interpreter
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Snapshot
from nasd.search.variation.breeding import initial_population
from nasd.worker.model import phenotype
from tests.bench.laboratory import Diverged, Judge, Laboratory, overhead, pace_of, worked
from tests.bench.pruned import narrowed, pruned, without_top
from tests.bench.standing import SHARES, Model, Standing, front
from tests.bench.worlds import OURS, RANDOM, THESIS, Way, table_of, unknown

LOOK_SECONDS = 1.0
LEAVE_SECONDS = 180.0
GENERATIONS = 500  # more than any time is enough for
LENGTHS = (0.25, 0.75)  # of what a model has, for the two trainings of those without a search
WORTH = 4.0  # times what an attempt takes beside its training, or there is no short one
OVER = 0.1  # of the time: what a plan may be wrong by, as it is made before the training
DEPTH = 3  # of the control, where our search is not among the peers
Say = Callable[[str], None]


@dataclass
class Contest:
    """What all peers are given. seconds: of training for each. charges_scoring: whether scoring
    counts as well. depth: of our search's deepest line, once it is known."""

    lab: Laboratory
    judge: Judge
    seconds: float
    say: Say
    charges_scoring: bool = False
    depth: int = DEPTH

    @property
    def start(self) -> float:
        """What the baseline costs each."""
        lab = self.lab
        return lab.begin.seconds + (lab.scored.seconds if self.charges_scoring else 0.0)

    def baseline(self) -> Model:
        lab = self.lab
        return lab.model("baseline", lab.baseline, self.start, lab.scored.quality, self._told)

    @cached_property
    def _told(self) -> float:
        return self.judge(self.lab.begin.result)


# -- searches in the daemon ----------------------------------------------------------------------


def searched(
    contest: Contest, name: str, way: Way, more: Mapping[str, Any] | None = None
) -> Standing:
    """A search of this way, until its time is up."""
    lab = contest.lab
    state = StateFolder(lab.folder / f"state-{name}")
    keys = {
        "experiment.state": state.path.name,
        "experiment.generations": GENERATIONS,
        **(more or {}),
    }
    table = table_of(lab.world, way, lab.number, keys)
    config = parse(table, name)
    path = lab.folder / f"{name}.toml"
    path.write_text(tomlkit.dumps(table), encoding="utf-8")
    shutil.copytree(lab.cache, state.cache, copy_function=os.link)  # made once for all
    log = lab.folder / f"{name}.log"
    command = [
        *interpreter.command("nasd.contract.leash", str(os.getpid())),
        *interpreter.command("nasd", "run", "--config", str(path)),
    ]
    follower = Follower(contest, config, state)
    with log.open("wb") as out:
        daemon = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            while daemon.poll() is None and not follower.look():
                time.sleep(LOOK_SECONDS)
        finally:
            told = daemon.poll() is None
            if told:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(LEAVE_SECONDS)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
    over = follower.look()
    notes = [f"not there yet: {key}" for key in unknown(way)]
    if not over:
        if daemon.returncode and not told:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise NasdError(f"the search {name} ended: {''.join(last)} (see {log})")
        notes.append(f"ended by itself after {follower.spent:.0f} s: see {log}")
    return follower.standing(name, notes)


class Follower:
    """Looks on while a daemon searches: what is charged to it, and what its models are worth."""

    def __init__(self, contest: Contest, config: Config, state: StateFolder) -> None:
        self._contest, self._config, self._state = contest, config, state
        self._models: dict[int, Model] = {}
        self._kept = state.path.with_name(f"{state.path.name}-kept")
        self.spent = self.scoring = 0.0
        self._depth = 1

    def look(self) -> bool:
        """Whether the time is up."""
        try:
            with snapshot.opened(self._state.path) as connection:
                found = snapshot.read(connection)
        except NasdError:  # it has only just begun
            return False
        self._account(found)
        return self.spent >= self._contest.seconds

    def _account(self, found: Snapshot) -> None:
        """Attempts count in the order in which they ran: there is one slot."""
        spent = scoring = 0.0
        stages = {one.name: one for one in self._config.stages}
        for attempt in found.attempts:
            if attempt.live:
                continue
            seconds = worked(self._state.attempt(attempt.id).log)
            stage = stages.get(attempt.stage)
            scores = stage is not None and stage.train == "none"
            if scores:
                scoring += seconds
            if self._is_charged(attempt.stage):
                spent += seconds
            candidate = found.candidates[attempt.candidate]
            done = attempt.state is AttemptState.SUCCEEDED and candidate.state is State.SCORED
            if scores and done and candidate.id not in self._models:
                self._scored(found, candidate.id, spent)
        self.spent, self.scoring = spent, scoring

    def _is_charged(self, name: str) -> bool:
        """All but what is the same for everybody: making the caches; and a head that these children
        never use, which a seed without one must be given all the same."""
        stage = next((one for one in self._config.stages if one.name == name), None)
        if name == PREPARE:
            return False
        if stage is None:
            return True
        if stage.train == "none":
            return self._contest.charges_scoring
        return stage.train != "head" or self._config.variation.inherit_from == "mlm"

    def _scored(self, found: Snapshot, number: int, at: float) -> None:
        contest, candidate = self._contest, found.candidates[number]
        seen = found.quality(number)
        assert seen is not None
        if candidate.is_baseline:
            if seen != contest.lab.scored.quality:
                raise NasdError(
                    f"the baseline scores {seen} here and {contest.lab.scored.quality} beside it:"
                    " peers that start differently cannot be compared"
                )
            self._models[number] = replace(contest.baseline(), at=at)
            return
        if getattr(candidate, "role", "") == "control":  # it is charged, and no find of the search
            return
        one = contest.lab.model(str(number), candidate.genotype, at, seen)
        if one in front([*self._models.values(), one]):
            stage = [s.name for s in self._config.ladder("candidates") if s.train != "none"][-1]
            folder = self._state.result(number, stage)
            if folder.is_dir():
                # By links: the search removes what it needs no more, and is judged when it is over,
                # as a judge beside it would cost its workers the processor's seconds.
                shutil.copytree(folder, self._kept / str(number), copy_function=os.link)
        self._models[number] = one
        if at <= contest.seconds:
            self._depth = self._line(found, number)
        contest.say(
            f"  {at:6.0f} s: candidate {number} of generation {candidate.generation},"
            f" {one.share:.2f} of the blocks, sees {seen:.1f}"
        )

    def _line(self, found: Snapshot, number: int) -> int:
        """How many trainings behind the baseline's a candidate's line has had."""
        candidate, depth = found.candidates[number], 0
        while not candidate.is_baseline:
            depth += 1
            assert candidate.parent is not None
            candidate = found.candidates[candidate.parent]
        return max(depth, self._depth)

    def standing(self, name: str, notes: Sequence[str]) -> Standing:
        """With the judgement on all that were on the front when they stood."""
        for number, one in self._models.items():
            if (folder := self._kept / str(number)).is_dir():
                told = self._contest.judge(folder)
                self._models[number] = replace(one, quality=told)
                self._contest.say(
                    f"  candidate {number} is worth {told:.1f}, of {one.seen:.1f} seen"
                )
        shutil.rmtree(self._kept, ignore_errors=True)
        return Standing(
            name, tuple(self._models.values()), self.spent, self.scoring, self._depth, tuple(notes)
        )


def ours(contest: Contest) -> Standing:
    found = searched(contest, "ours", OURS)
    contest.depth = found.depth
    return found


def thesis(contest: Contest) -> Standing:
    return searched(contest, "thesis", THESIS)


# -- peers without a search ----------------------------------------------------------------------


def at_random(contest: Contest) -> Standing:
    """Mutants of the baseline, many steps away, in the order in which they are drawn; the transfers
    and the ladder are ours."""
    lab = contest.lab
    config = lab.config
    models = [contest.baseline()]
    spent, scoring = contest.start, lab.scored.seconds
    stage, scores = lab.stage("train_on"), lab.stage("evaluate")
    for number in itertools.count():
        if spent >= contest.seconds:
            break
        if number in DRAWN:
            drawn = initial_population(
                *(lab.baseline, config.search_space, config.variation, DRAWN[number], lab.number)
            )
        mutant = drawn[number]
        try:
            trained = lab.attempt(
                stage, lab.begin.result, mutant.genotype, mutant.lineage, candidate=number + 1
            )
        except Diverged as lost:
            spent += lost.seconds
            continue
        scored = lab.attempt(scores, trained.result, mutant.genotype, candidate=number + 1)
        spent += trained.seconds + (scored.seconds if contest.charges_scoring else 0.0)
        scoring += scored.seconds
        one = lab.model(str(number + 1), mutant.genotype, spent, scored.quality)
        if one in front([*models, one]):
            one = replace(one, quality=contest.judge(trained.result))
        shutil.rmtree(trained.result)
        models.append(one)
        contest.say(
            f"  {spent:6.0f} s: mutant {number + 1}, {one.share:.2f} of the blocks, sees"
            f" {one.seen:.1f}" + ("" if one.quality is None else f", is worth {one.quality:.1f}")
        )
    notes = [f"not there yet: {key}" for key in unknown(RANDOM)]
    return Standing("random", tuple(models), spent, scoring, 1, tuple(notes))


# At that number, so many are drawn: the first of them are always the same.
DRAWN = {0: 32, 32: 128, 128: 512, 512: 2048}


def planned(contest: Contest, name: str, smaller: Mapping[str, Genotype]) -> Standing:
    """Each of these models of the fine-tuned baseline is trained on for the same share of what the
    peer has left of its time: all for a short part of that, and then all anew for the long part, as
    much training can be too much. The largest first."""
    lab = contest.lab
    models = [contest.baseline()]
    spent, scoring, notes = contest.start, lab.scored.seconds, list[str]()
    beside = overhead(lab) + (lab.scored.seconds if contest.charges_scoring else 0.0)
    each = (contest.seconds - contest.start) / len(smaller)
    stage, examples = lab.stage("train_on"), lab.prepared.qa_train_features
    pieces = LENGTHS if min(LENGTHS) * each >= WORTH * beside else (1.0,)
    for number, (part, called) in enumerate(itertools.product(pieces, smaller), start=1):
        genotype = smaller[called]
        made = pruned(lab.answering(), genotype)
        folder = lab.folder / f"{name}-{number}"
        phenotype.save(made, folder)
        epochs = pace_of(lab, made, stage).epochs(part * each - beside, stage, examples)
        longer = stage.model_copy(update={"epochs": epochs})
        trained = lab.attempt(longer, folder, genotype, candidate=number)
        scored = lab.attempt(lab.stage("evaluate"), trained.result, genotype, candidate=number)
        spent += trained.seconds + (scored.seconds if contest.charges_scoring else 0.0)
        scoring += scored.seconds
        fits = spent <= (1 + OVER) * contest.seconds
        at = min(spent, contest.seconds) if fits else spent
        told = contest.judge(trained.result)
        called = f"{called}, {epochs:.1f} epochs"
        models.append(lab.model(called, genotype, at, scored.quality, told))
        shutil.rmtree(folder)
        shutil.rmtree(trained.result)
        losses = [loss for _, loss in trained.outcome.curve]
        notes.append(
            f"{called}: evaluation loss {losses[-1]:.3f}, at its best {min(losses):.3f};"
            f" {trained.seconds:.0f} s"
        )
        contest.say(
            f"  {spent:6.0f} s: {called}, {models[-1].share:.2f} of the blocks, sees"
            f" {scored.quality:.1f}, is worth {told:.1f}"
        )
    return Standing(name, tuple(models), spent, scoring, 1, tuple(notes))


def top_dropped(contest: Contest) -> Standing:
    baseline = contest.lab.baseline
    left = range(len(baseline.blocks) - 1, 0, -1)
    smaller = {f"{count} blocks": without_top(baseline, count) for count in left}
    return planned(contest, "drop_top", smaller)


def narrow(contest: Contest) -> Standing:
    """At the shares that the table tells of, as far as FFNs alone can be that much smaller."""
    lab = contest.lab
    found = {share: narrowed(lab.baseline, lab.backbone, share) for share in SHARES[1:]}
    smaller = {f"{share:g} of the blocks": one for share, one in found.items() if one is not None}
    return planned(contest, "narrow", smaller)


def control(contest: Contest) -> Standing:
    """With as much training as a child of our search's last generation has had in its line, in one
    schedule: so many times its epochs."""
    lab = contest.lab
    stage = lab.stage("train_on")
    assert stage.epochs is not None
    stage = stage.model_copy(update={"epochs": contest.depth * stage.epochs})
    trained = lab.attempt(stage, lab.begin.result, candidate=1)
    scored = lab.attempt(lab.stage("evaluate"), trained.result, candidate=1)
    spent = contest.start + trained.seconds
    spent += scored.seconds if contest.charges_scoring else 0.0
    told = contest.judge(trained.result)
    contest.say(f"  {spent:6.0f} s: the control, {contest.depth} trainings, is worth {told:.1f}")
    shutil.rmtree(trained.result)
    one = lab.model("control", lab.baseline, spent, scored.quality, told)
    scoring = lab.scored.seconds + scored.seconds
    notes = (f"{contest.depth} trainings of a child's length in one schedule",)
    return Standing("control", (contest.baseline(), one), spent, scoring, contest.depth, notes)


def control_all(contest: Contest) -> Standing:
    smaller = {"the baseline": contest.lab.baseline}
    return planned(contest, "control_all", smaller)


PEERS: Mapping[str, tuple[str, Callable[[Contest], Standing]]] = {
    "ours": ("task lineage, informed transfers, small steps", ours),
    "thesis": ("(a) fresh transfers, MLM lineage, the preset's ladder", thesis),
    "random": ("(b) many-step mutants of the baseline, our transfers", at_random),
    "drop_top": ("(c) blocks dropped from the top", top_dropped),
    "narrow": ("(d) FFNs narrowed by magnitude", narrow),
    "control": ("(e) the baseline, trained as our last children's line", control),
    "control_all": ("(e) the baseline, trained for all the time", control_all),
}
