"""Where slots would be idle at a generation's end, the next one is bred (`population.overlap`)."""

from pathlib import Path
from typing import Any

import pytest

from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, FeedForward, Genotype
from nasd.contract.protocol import Outcome, Spec, read
from nasd.record import requests
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import DecisionKind, State
from nasd.record.snapshot import events, opened
from nasd.record.state import Snapshot
from nasd.views.status import facts as status_facts
from nasd.views.status.table import everyone
from tests.conftest import (
    drive,
    make_tick,
    of_tuned_parents,
    small_config,
    small_dict,
    succeeded,
    without_summaries,
)

SLOTS = 3
LONG, SHORT = 500.0, 30.0
CONFIG: dict[str, Any] = {
    "slots__devices": [f"cpu:{number}" for number in range(SLOTS)],
    "stages__finetune__slots": 1,
    "population__mu": 3,
    "population__lambda": 5,
    "experiment__generations": 4,
}


@pytest.fixture(autouse=True)
def _quick():
    with without_summaries():
        yield


def some_are_long(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    """Every fifth takes long at its last training."""
    trains = spec.stage is not None and spec.stage.name == "finetune"
    return (LONG if trains and spec.candidate % 5 == 2 else SHORT), succeeded(spec)


def searched(state: StateFolder, **changes: Any) -> Any:
    tick = make_tick(state, small_config(**CONFIG, **changes), some_are_long)
    assert drive(tick).experiment.state == "complete"
    return tick


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A search with overlap, and the same without."""
    with without_summaries(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        home = tmp_path_factory.mktemp("overlap")
        return tuple(
            searched(StateFolder(home / str(overlap)), population__overlap=overlap)
            for overlap in (True, False)
        )


def test_whoever_is_late_is_selected_from_with_the_next_generation(done: Any) -> None:
    found: Snapshot = done[0].store.read()
    late = [(one.number, number) for one in found.generations for number in found.late(one.number)]
    assert len(late) >= 2
    for generation, number in late:
        one = found.candidates[number]
        assert (one.generation, one.state) == (generation, State.SCORED)
        ranks = {m.generation: m.rank for m in found.members if m.candidate == number}
        assert ranks[generation] is None
        assert ranks[generation + 1] is not None
    points = [
        set(made.payload["points"]) for made in found.decisions if made.kind is DecisionKind.SELECT
    ]
    for generation, number in late:
        assert str(number) not in points[generation]
        assert str(number) in points[generation + 1]


def test_what_rests_on_arrival_is_recorded_before_anything_follows_from_it(done: Any) -> None:
    told = [one.detail for one in _events(done[0]) if one.event == "generation"]
    for generation in (1, 2, 3):
        late = done[0].store.read().late(generation)
        if late:
            numbers = ", ".join(map(str, late))
            said = f"slots are idle: generation {generation} is selected from, {numbers} with the"
            assert told.index(f"{said} next") < told.index(f"generation {generation + 1} opens")


@pytest.mark.parametrize("injects", [False, True])
def test_the_first_generation_is_waited_for_unless_somebody_was_put_into_it(
    tmp_path: Path, injects: bool
) -> None:
    state = StateFolder(tmp_path / "state")
    config = small_config(**CONFIG | {"experiment__generations": 1}, population__overlap=True)
    tick = make_tick(state, config, some_are_long)
    if injects:
        made = Genotype((Block(2, (FeedForward("relu", (32,)),)),) * 2)
        requests.file(state.requests, requests.new("inject", genotype=made.to_json()))
    found = drive(tick)
    assert found.experiment.state == "complete"
    # Without it there are as many as survive, and so nobody to choose from before all have scores.
    assert found.late(0) == ((2,) if injects else ())
    assert found.candidates[2].state is State.SCORED


def test_no_slot_is_idle_for_the_last_of_a_generation(done: Any) -> None:
    with_it, without = done
    assert with_it.clock.now < without.clock.now
    assert _use(with_it) > _use(without)
    assert not any(without.store.read().late(number) for number in range(5))


def test_the_last_generation_is_waited_for_and_so_is_a_front_that_is_trained_on(
    done: Any, folder: Any
) -> None:
    assert not done[0].store.read().late(4)
    operators = {"narrow": 1, "widen": 1, "more_heads": 1, "fewer_heads": 1, "add_ffn": 1}
    data = of_tuned_parents(
        small_dict(**CONFIG, population__overlap=True, population__finishing=1), operators
    )
    tick = make_tick(folder(), parse(data, "small.toml"), some_are_long)
    found = drive(tick)
    assert found.experiment.state == "complete"
    assert any(found.late(number) for number in (1, 2))
    assert not found.late(3)  # the fourth breeds nobody


def test_a_lost_attempt_of_who_is_late_begins_again_from_the_same_parent(folder: Any) -> None:
    tick = make_tick(folder(), small_config(**CONFIG, population__overlap=True), some_are_long)
    drive(tick, lambda found: any(found.late(n) for n in range(1, 4)))
    before = tick.store.read()
    (number, *_) = next(late for n in range(1, 4) if (late := before.late(n)))
    tick()
    tick.keep()
    attempt = next(one for one in tick.store.read().live_attempts if one.candidate == number)
    first = read(Spec, tick.state.attempt(attempt.id).spec)
    del tick.launcher.jobs[attempt.token]
    tick()
    found = drive(tick, lambda found: found.attempts_at[number, attempt.stage][-1].live)
    again = found.attempts_at[number, attempt.stage][-1]
    assert again.id != attempt.id
    second = read(Spec, tick.state.attempt(again.id).spec)
    assert second.weights == first.weights and second.weights is not None
    assert Path(second.weights).is_dir()


def test_what_people_see_shows_who_is_late(folder: Any) -> None:
    tick = make_tick(folder(), small_config(**CONFIG, population__overlap=True), some_are_long)
    found = drive(tick, lambda found: any(found.late(n) for n in range(1, 4)))
    number = found.late(next(n for n in range(1, 4) if found.late(n)))[0]
    tick()
    facts = status_facts.read(tick.state.path, now=tick.clock.now)
    assert number in {one.id for one in everyone(facts)}
    assert facts.remaining is not None


def test_it_is_refused_with_finalists_under_several_seeds() -> None:
    with pytest.raises(NasdError, match=r"population.overlap: finalists under several seeds"):
        small_config(**CONFIG, population__overlap=True, select={"seeds": 2})


def _events(tick: Any) -> list[Any]:
    with opened(tick.state.path) as connection:
        return events(connection, 10_000)


def _use(tick: Any) -> float:
    """The share of the slots' time from the first generation's birth to the end."""
    found = tick.store.read()
    began = found.generations[1].opened_at
    held = [one for one in found.attempts if one.started_at >= began and one.ended_at is not None]
    busy = sum(len(one.slots) * (one.ended_at - one.started_at) for one in held)
    return float(busy / (SLOTS * (tick.clock.now - began)))
