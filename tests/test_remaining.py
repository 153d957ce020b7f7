"""When the search will end, against when it did."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.contract.protocol import Heartbeat, read
from nasd.contract.volumes import Volumes
from nasd.control.tick import Tick
from nasd.estimate.cost import Machine
from nasd.launch.simulated import SimulatedLauncher
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase, State
from nasd.record.state import Snapshot
from nasd.record.store import Store
from nasd.views.forecast.virtual_time import VirtualClock, run
from nasd.views.status.facts import Reader
from nasd.views.status.remaining import Remaining, remaining
from tests.conftest import begin, small_config, thesis_config

DISTILBERT = Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6)
SLOTS = tuple(f"cuda:{n}" for n in range(4))
VOLUMES = Volumes(200_000, 2_000, 70_000, 17_000, 71_000, 17_200)


class Search:
    """A search of the thesis's schedule in virtual time, asked at several points of its life."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.config = config
        self.state = StateFolder(folder / "state")
        store = Store(self.state.database)
        store._db.execute("PRAGMA synchronous = OFF")
        self.clock = VirtualClock()
        begin(store, config, Backbone(30522, 512, 768), DISTILBERT, self.clock())
        self.launcher = SimulatedLauncher(
            self.clock, Backbone(30522, 512, 768), DISTILBERT, VOLUMES, Machine(), metrics=False
        )
        self.tick = Tick(
            *(store, config, folder, self.state, SLOTS, self.launcher, self.clock),
            monotonic=self.clock,
            free_bytes=lambda path: 1 << 50,
        )
        self.told: list[tuple[str, float, Remaining | None, float]] = []

    def run(self) -> None:
        run(self.tick, self.clock, self.launcher, progress=self._ask)

    def _ask(self, snapshot: Snapshot, now: float) -> None:
        generation = snapshot.generation
        where = "baseline" if generation is None else f"{generation.number} {generation.phase}"
        beats = {
            one.id: beat
            for one in snapshot.live_attempts
            if (beat := self._beat(one.id)) is not None
        }
        left = remaining(snapshot, self.config, len(SLOTS), now, beats)
        self.told.append((where, now, left, snapshot.gpu_hours(now)))

    def _beat(self, attempt: int) -> Heartbeat | None:
        try:
            return read(Heartbeat, self.state.attempt(attempt).heartbeat)
        except NasdError:
            return None


WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "widened": {"slots": {"devices": list(SLOTS), "widen": True}},
    "two seeds": {"select": {"seeds": 2}},
    "brackets": {"promotion": {"rule": "hyperband"}},
}


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def search(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Search:
    config = thesis_config(**{"experiment": {"generations": 3}, **request.param})
    found = Search(tmp_path_factory.mktemp("remaining"), config)
    found.run()
    return found


def test_before_anything_trains_it_is_not_known(search: Search):
    assert search.told[0][2] is None
    assert search.told[0][0] == "baseline"


def test_once_a_generation_is_scored_the_end_is_known_to_a_sixth(search: Search):
    end, total = search.clock(), search.told[-1][3]
    asked = 0
    for where, now, left, spent in search.told:
        if where.endswith("climbing") and int(where.split()[0]) >= 1 and now < end:
            assert left is not None
            whole = end - search.told[0][1]
            assert abs(left.seconds - (end - now)) < whole / 6, where
            assert abs(left.slot_hours - (total - spent)) < total / 6, where
            assert left.guessed == ()
            asked += 1
    assert asked > 20


def test_before_that_it_is_the_right_order_and_says_what_it_guesses(search: Search):
    end = search.clock()
    early = [one for one in search.told if one[0] == "0 climbing" and one[2] is not None]
    assert early
    for _, now, left, _ in early:
        assert left is not None
        assert (end - now) / 2.5 < left.seconds < 2.5 * (end - now)
    first = early[0][2]
    assert first is not None and "pretrain_1" in first.guessed


def test_it_shrinks_as_an_attempt_gets_on(search: Search):
    snapshot = search.tick.store.read()
    attempt = next(one for one in snapshot.attempts if one.stage == "pretrain_1")
    running = replace(attempt, state="running", ended_at=None)
    one = replace(snapshot.candidates[attempt.candidate], state=State.RUNNING, stage="pretrain_1")
    (generation,) = [g for g in snapshot.generations if g.number == one.generation]
    results = {k: r for k, r in snapshot.results.items() if k[0] != one.id or k[1] == "pretrain_0"}
    assert one.generation is not None
    born = snapshot.born_in(one.generation)
    before = {c.id: replace(c, stage=c.stage.partition("~")[0]) for c in born}
    snapshot = replace(
        snapshot,
        generations=(replace(generation, phase=Phase.CLIMBING),),
        candidates={**snapshot.candidates, **before, one.id: one},
        attempts=(*(a for a in snapshot.attempts if a.id != attempt.id), running),
        results=results,
    )

    def left(step: int) -> float:
        beat = Heartbeat(doing="training", step=step, steps=100, at=0.0, age=1.0)
        found = remaining(snapshot, search.config, 4, attempt.started_at, {attempt.id: beat})
        assert found is not None
        return found.seconds

    assert left(0) > left(50) > left(99)
    assert left(0) - left(50) == pytest.approx(left(50) - left(100))


def test_a_search_of_another_nasd_has_no_end_and_is_shown_all_the_same(tmp_path: Path):
    from nasd.views.status.view import view
    from tests.conftest import drive, make_tick
    from tests.test_status import in_phase

    tick = make_tick(StateFolder(tmp_path), small_config())
    drive(tick, in_phase(1, Phase.CLIMBING))
    tick.store._db.execute("UPDATE experiment SET config = json_set(config, '$.daemon.later', 1)")
    facts = Reader(tmp_path).read(tick.clock())
    assert (facts.config, facts.remaining) == (None, None)
    text = "\n".join(one.plain for one in view(facts, 80, 24))
    assert "the experiment is of another nasd" in text
    assert "waits for slots" in text
