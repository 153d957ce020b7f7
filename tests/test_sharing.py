"""Attempts that share a GPU: slots and their names, who starts where, health, memory, hours."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import slots
from nasd.contract.config import Config, parse
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Spec, read
from nasd.contract.slots import Slot
from nasd.estimate.cost import DEVICE_SHARE, Machine
from nasd.launch import devices, gpus
from nasd.launch.gpus import Gpu, GpuProcess
from nasd.policy import endings, scheduling
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, QuarantineKind, State
from nasd.record.state import Quarantine, Snapshot
from nasd.views.doctor import machine
from nasd.views.doctor.case import Case
from nasd.views.forecast.virtual_time import run
from nasd.views.status import blocks, facts
from nasd.views.status.devices import Device
from nasd.views.status.remaining import remaining
from nasd.worker.training import allocator
from nasd.worker.training.micro_batch import ROOM, TrialGpu
from tests.conftest import drive, make_tick, small_config, story
from tests.faults import STRANGER, Box
from tests.snapshots import attempt_of, generation_1, put, with_attempts
from tests.test_simulation import finished, simulated

__all__ = ["generation_1"]  # a fixture

SHARED = small_config(slots__devices=["cuda:0", "cuda:1"], slots__share=4)
WHOLE = small_config(slots__devices=["cuda:0", "cuda:1"])
NAMES = slots.divided(("cuda:0", "cuda:1"), 4)
MEASURED = small_config(
    slots__devices=["cuda:0", "cuda:1"],
    slots__share=4,
    stages__evaluate__measure=True,
    measure={"device": "cuda"},
)
GB = 10**9


# -- names -----------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 64))
def test_the_shares_of_gpus_come_to_the_gpus(count: int, share: int) -> None:
    listed = tuple(f"cuda:{number}" for number in range(count))
    names = slots.divided(listed, share)
    assert len(set(names)) == len(names) == count * share
    assert slots.devices(names) == listed
    assert slots.worth(names) == pytest.approx(count)
    assert slots.sharers(names) == 1
    assert slots.sharers(names[:1]) == share
    assert [str(Slot.parse(name)) for name in names] == list(names)
    assert slots.one_a_device(names) == names[:count]
    assert slots.free(names, names[1:]) == [names[0]]


def test_what_is_not_shared_is_called_as_ever() -> None:
    assert slots.divided(("cuda:0", "cuda:3"), 1) == ("cuda:0", "cuda:3")
    assert slots.divided(("cuda:0", "cpu:0"), 2) == ("cpu:0", "cuda:0.1/2", "cuda:0.2/2")
    assert slots.worth(["cpu:0", "cpu:1"]) == 2


@pytest.mark.parametrize(
    "name", ["cuda:0.0/4", "cuda:0.5/4", "cuda:0.1", "cuda:0/4", "cpu:0.1/2", "cuda:0.1/4 ", ""]
)
def test_nothing_else_is_a_slot(name: str) -> None:
    with pytest.raises(ValueError, match="no slot is called"):
        Slot.parse(name)


def test_a_gpu_that_was_divided_otherwise_is_not_free_before_that_is_over() -> None:
    assert slots.free(NAMES, ["cuda:0"]) == [n for n in NAMES if n.startswith("cuda:1")]
    assert slots.free(NAMES, ["cuda:0.2/2"]) == [n for n in NAMES if n.startswith("cuda:1")]
    assert slots.free(["cuda:0", "cuda:1"], ["cuda:1.4/4"]) == ["cuda:0"]
    assert slots.free(NAMES, ["cuda:0.1/4", "cuda:0"]) == [n for n in NAMES if "cuda:1" in n]


# -- configs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slots__devices": ["cpu:0"]}, "share: only GPUs are shared; list more CPU shares"),
        ({"slots__launcher": "slurm", "slots__devices": "auto"}, "share: slurm deals out GPUs"),
        ({"slots__devices": ["cuda:0"], "slots__widen": True}, "share: slots.widen gives several"),
        ({"slots__devices": ["cuda:0.1/4"]}, "slots.devices"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(NasdError, match=r"small\.toml: ") as refused:
        small_config(slots__share=4, **changes)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def there(monkeypatch: pytest.MonkeyPatch, *memory: int) -> None:
    found = [{"index": n, "name": "Stub", "memory": size} for n, size in enumerate(memory)]
    monkeypatch.setattr(gpus, "list_gpus", lambda: found)


def test_each_listed_gpu_gives_its_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, 80 * GB, 80 * GB)
    assert tuple(map(str, devices.found(SHARED.slots, False))) == NAMES
    assert tuple(map(str, devices.found(WHOLE.slots, False))) == ("cuda:0", "cuda:1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    auto = small_config(slots__devices="auto", slots__share=4)
    assert tuple(map(str, devices.found(auto.slots, False))) == NAMES


def test_a_gpu_too_small_for_so_many_and_no_gpu_at_all_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there(monkeypatch, 80 * GB, 4 * GB)
    with pytest.raises(NasdError, match=r"slots.share: cuda:1 has 4.0 GB, .* take 2 or fewer"):
        devices.found(SHARED.slots, False)
    there(monkeypatch)
    auto = small_config(slots__devices="auto", slots__share=4)
    with pytest.raises(NasdError, match=r"slots\.share: 4 attempts are to share each GPU, and no"):
        devices.found(auto.slots, False)


# -- who starts where ------------------------------------------------------------------------------


def started(
    found: Snapshot, config: Config = SHARED, names: tuple[str, ...] = NAMES
) -> dict[int, tuple[str, ...]]:
    return {one.candidate: one.slots for one in scheduling.starts(found, config, names, 5000.0)}


def at(found: Snapshot, *stages: str) -> Snapshot:
    return put(found, {4 + n: (name, State.PENDING) for n, name in enumerate(stages)})


def test_small_ones_spread_over_the_gpus(generation_1: Snapshot) -> None:
    found = at(generation_1, "evaluate", "evaluate", "evaluate", "evaluate")
    told = started(found)
    assert [Slot.parse(name).device for (name,) in told.values()] == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
        "cuda:1",
    ]
    busy = dict.fromkeys(("cuda:0.1/4", "cuda:0.2/4", "cuda:0.3/4"), 98)
    told = started(replace(found, leases=busy))
    assert [Slot.parse(name).device for (name,) in told.values()] == ["cuda:1"] * 3 + ["cuda:0"]


def test_ranks_of_one_attempt_are_on_different_gpus(generation_1: Snapshot) -> None:
    found = at(generation_1, "finetune", "finetune", "evaluate", "pretrain_0")  # 2, 2, 1, 2 slots
    told = started(found)
    assert len(told) == 4
    assert all(len(slots.devices(its)) == len(its) for its in told.values())
    busy = {name: 98 for name in NAMES if name.startswith("cuda:1")}
    assert set(started(replace(found, leases=busy))) == {6}  # the one that needs one slot


def test_what_is_measured_on_a_gpu_has_all_of_one(generation_1: Snapshot) -> None:
    found = at(generation_1, "evaluate", "evaluate", "finetune", "pretrain_0")
    told = started(found, MEASURED)
    assert set(told[4]) == {name for name in NAMES if name.startswith("cuda:0")}
    assert set(told[5]) == {name for name in NAMES if name.startswith("cuda:1")}
    assert set(told) == {4, 5}
    assert slots.sharers(told[4]) == 1
    held = {"cuda:0.4/4": 98}
    told = started(replace(found, leases=held), MEASURED)
    assert set(told[4]) == {name for name in NAMES if name.startswith("cuda:1")}
    assert set(told) == {4}  # what trains on two GPUs does not fit beside it


@given(
    stages=st.lists(
        st.sampled_from(["pretrain_0", "pretrain_1", "finetune", "evaluate"]),
        min_size=4,
        max_size=4,
    ),
    held=st.sets(st.sampled_from([*NAMES, "cuda:0", "cuda:1.2/2"])),
    lost=st.sets(st.sampled_from(["cuda:0", "cuda:1"])),
    measures=st.booleans(),
)
def test_no_share_is_given_twice_and_nothing_is_given_of_what_is_left_alone(
    generation_1: Snapshot, stages: list[str], held: set[str], lost: set[str], measures: bool
) -> None:
    config = MEASURED if measures else SHARED
    quarantine = {one: Quarantine(one, QuarantineKind.LOST, "why", 0.0) for one in lost}
    leases = dict.fromkeys(sorted(held), 98)
    found = replace(at(generation_1, *stages), leases=leases, quarantine=quarantine)
    used: list[str] = []
    for candidate, its in started(found, config).items():
        assert set(its) <= set(slots.free(NAMES, [*held, *used]))
        assert not set(slots.devices(its)) & lost
        if measures and found.candidates[candidate].stage == "evaluate":
            assert len(its) == 4 and len(slots.devices(its)) == 1
        else:
            assert len(slots.devices(its)) == len(its)
        used += its


# -- health ----------------------------------------------------------------------------------------


def test_a_gpu_whose_attempts_are_all_lost_is_suspect_as_a_whole(generation_1: Snapshot) -> None:
    gone = [
        attempt_of(4 + n, "evaluate", AttemptState.LOST, slots=(name,), id=100 + n)
        for n, name in enumerate(NAMES[1::2][:3])
    ]
    good = attempt_of(
        *(7, "evaluate", AttemptState.SUCCEEDED),
        slots=("cuda:0.1/4",),
        id=103,
        verdict="succeeded",
    )
    found = with_attempts(replace(generation_1, attempts=()), *gone, good)
    assert list(endings.suspects(found, NAMES)) == ["cuda:1"]


def sharing(folder: Path, **changes: Any) -> Box:
    given = {"slots__devices": ["cuda:0", "cuda:1"], "slots__share": 4, **changes}
    config = small_config(daemon__infrastructure_retries=10_000, population__lambda=8, **given)
    return Box(StateFolder(folder), config)


def busy(found: Snapshot) -> bool:
    return len(found.live_attempts) > 2


def test_a_lost_gpu_ends_whatever_shares_it_and_is_left_alone(tmp_path: Path) -> None:
    box = sharing(tmp_path)
    tick = box.daemon()
    found = box.drive(tick, busy)
    on_it = [one for one in found.live_attempts if "cuda:0" in slots.devices(one.slots)]
    box.faults["cuda:0"] = "GPU is lost"
    for _ in range(3):  # answers in a row, in no time
        tick()
    found = tick.store.read()
    ended = [one for one in found.attempts if one.id in {each.id for each in on_it}]
    assert {(one.state, one.message) for one in ended} == {
        (AttemptState.LOST, "cuda:0: GPU is lost")
    }
    last = max(one.id for one in found.attempts)
    found = box.drive(tick)
    assert found.experiment.state == "complete"
    later = [one for one in found.attempts if one.id > last]
    assert later and all(slots.devices(one.slots) == ("cuda:1",) for one in later)
    assert list(found.quarantine) == ["cuda:0"]


def test_our_own_processes_are_nobody_elses_and_a_strangers_keep_the_rest_away(
    tmp_path: Path,
) -> None:
    box = sharing(tmp_path)
    tick = box.daemon()
    found = box.drive(tick, busy)
    assert len(box._gpu("cuda:0").processes) >= 2  # of several attempts of ours
    for _ in range(3):
        box.let_pass(31)
        tick()
    assert not tick.store.read().quarantine
    box.strangers.add("cuda:0")
    found = box.drive(tick, lambda snapshot: "cuda:0" in snapshot.quarantine)
    assert str(STRANGER) in found.quarantine["cuda:0"].reason
    last = max(one.id for one in found.attempts)
    found = box.drive(tick)
    assert all(slots.devices(one.slots) == ("cuda:1",) for one in found.attempts if one.id > last)


# -- a whole search --------------------------------------------------------------------------------


def test_the_story_does_not_depend_on_how_gpus_are_shared(tmp_path: Path) -> None:
    told = {}
    for share in (1, 4):
        config = small_config(slots__devices=["cuda:0", "cuda:1"], slots__share=share)
        tick = make_tick(StateFolder(tmp_path / str(share)), config)
        drive(tick)
        told[share] = story(tick.store)
        found = tick.store.read()
        held = [one.ended_at - one.started_at for one in found.attempts]
        counts = [len(one.slots) for one in found.attempts]
        spent = sum(n * seconds / share for n, seconds in zip(counts, held, strict=True))
        assert found.gpu_hours(tick.clock()) == pytest.approx(spent / 3600)
        tick.store.close()
    assert told[1] == told[4]


def test_who_is_measured_is_alone_on_its_gpu_with_all_of_its_memory(tmp_path: Path) -> None:
    tick = make_tick(StateFolder(tmp_path), MEASURED)
    drive(tick)
    found = tick.store.read()
    specs = {one.id: read(Spec, tick.state.attempt(one.id).spec) for one in found.attempts}
    measured = [one for one in found.attempts if one.stage == "evaluate"]
    assert measured
    for one in measured:
        assert len(one.slots) == 4 and specs[one.id].share == 1
        for other in found.attempts:
            meets = one.started_at < other.ended_at and other.started_at < one.ended_at
            on_it = set(slots.devices(one.slots)) & set(slots.devices(other.slots))
            assert one is other or not (meets and on_it)
    assert {specs[one.id].share for one in found.attempts if one.stage == "finetune"} == {4}


def test_a_search_goes_on_with_its_gpus_shared_otherwise(tmp_path: Path) -> None:
    first = make_tick(StateFolder(tmp_path), WHOLE)
    found = drive(first, lambda snapshot: len(snapshot.attempts) > 6)
    before = found.gpu_hours(first.clock())
    first.store.close()
    tick = make_tick(StateFolder(tmp_path), SHARED, clock=first.clock)
    tick.begin()
    drive(tick)
    found = tick.store.read()
    assert found.experiment.state == "complete"
    assert {slots.sharers(one.slots) for one in found.attempts} == {1, 4}
    assert found.gpu_hours(tick.clock()) > before
    worth = sum(one.worth * (one.ended_at - one.started_at) for one in found.attempts)
    assert found.gpu_hours(tick.clock()) == pytest.approx(worth / 3600)


# -- memory ----------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU of 80 GB, of which somebody holds all but 6; what a process was limited to."""
    told: dict[str, float] = {}
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (6 * GB, 80 * GB))
    monkeypatch.setattr(cuda, "memory_reserved", lambda device: 2 * GB)
    monkeypatch.setattr(cuda, "get_device_name", lambda device: "Stub")
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GB)
    )
    monkeypatch.setattr(
        cuda,
        "set_per_process_memory_fraction",
        lambda share, device: told.update(fraction=share),
    )
    return told


def test_micro_batches_are_tried_within_the_part_and_remembered_apart(card: Any) -> None:
    alone, shared = TrialGpu("cuda:0"), TrialGpu("cuda:0", 8)
    assert alone.room == ROOM * 8 * GB
    assert shared.room == ROOM * slots.part_of(80 * GB, 8) < ROOM * 10 * GB
    assert alone.name != shared.name == f"{alone.name}, shared by 8"


def test_a_process_is_kept_to_its_part(card: Any) -> None:
    allocator.keep_to_share(torch.device("cuda", 0), 8)
    part = card["fraction"] * 80 * GB
    assert part == pytest.approx(10 * GB - slots.CONTEXT_BYTES)


# -- what it costs ---------------------------------------------------------------------------------


def test_the_pace_of_small_steps_is_as_measured_on_one_gpu() -> None:
    told = Machine(tflops=1e6).shared  # all of a step waits
    assert told(0.016, 0.0, 1, 1) == 0.016
    assert told(0.016, 0.0, 1, 8) == pytest.approx(0.031)
    assert 0.038 < told(0.016, 0.0, 1, 11) < 0.050


def test_who_keeps_a_gpu_busy_gains_nothing_by_sharing_it() -> None:
    assert Machine(tflops=100.0).shared(2.0, 2e14, 1, 4) == pytest.approx(8.0)


@given(
    waits=st.floats(0, 10),
    works=st.floats(0, 10),
    count=st.integers(1, 4),
    share=st.integers(1, 64),
)
def test_what_is_measured_while_shared_is_told_alone_and_back(
    waits: float, works: float, count: int, share: int
) -> None:
    one = Machine(tflops=1.0)
    flop = works * 1e12 * one.together(count)
    longer = one.shared(waits + works, flop, count, share)
    assert waits + works <= longer <= share * (waits + works) * (1 + 1e-9)
    alone = one.alone(longer, flop, count, share)
    assert alone <= longer
    assert one.shared(alone, flop, count, share) == pytest.approx(longer)
    assert 0 < DEVICE_SHARE < 1


def test_in_a_simulation_small_candidates_come_further_with_shared_gpus(
    folder: Any,
) -> None:
    small = Machine(tflops=1e3, step_seconds=0.5, start_seconds=5.0)
    ends = {}
    for share in (1, 4):
        config = small_config(
            slots__devices=["cuda:0", "cuda:1"],
            slots__share=share,
            population__mu=8,
            population__lambda=8,
            daemon__checkpoint_minutes=5.0,
        )
        found, told = finished(folder(), config=config, machine=small)
        ended = max(one.ended_at for one in found.attempts)
        ends[share] = ended - found.experiment.created_at, found.gpu_hours(ended), told
    assert ends[4][0] < 0.6 * ends[1][0]
    assert ends[4][1] < ends[1][1]
    assert ends[4][2] == ends[1][2]


def test_what_is_left_is_told_in_the_hours_of_whole_gpus(folder: Any) -> None:
    config = small_config(
        slots__devices=["cuda:0", "cuda:1"],
        slots__share=4,
        population__mu=6,
        population__lambda=12,
        experiment__generations=2,
    )
    tick, clock, launcher = simulated(folder(), config=config)
    told: list[tuple[float, float, float]] = []

    def ask(snapshot: Snapshot, now: float) -> None:
        number = -1 if snapshot.generation is None else snapshot.generation.number
        left = remaining(tick.store.read(), config, 8, now, {}) if number == 1 else None
        if left is not None:
            told.append((now, left.seconds, snapshot.gpu_hours(now) + left.slot_hours))

    end = run(tick, clock, launcher, progress=ask)
    spent, ended = end.gpu_hours(clock()), clock()
    assert len(told) > 3
    for now, seconds, hours in told:
        assert hours == pytest.approx(spent, rel=0.4)
        assert 0.5 < seconds / (ended - now) < 2


# -- what people see -------------------------------------------------------------------------------


def test_doctor_says_what_of_a_gpu_each_attempt_gets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there(monkeypatch, 80 * GB, 80 * GB)
    case = Case(tmp_path / "config.toml", SHARED)
    found = [one.text for one in machine.slots(case)]
    assert found[0] == "cuda:0: Stub, 80 GB, 19 GB to each of 4"
    assert tuple(case.devices) == NAMES
    wide = {**SHARED.model_dump(by_alias=True)}
    for one in wide["stages"]:
        one["slots"] = 4
    case = Case(tmp_path / "config.toml", parse(wide, "config.toml"))
    with pytest.raises(NasdError, match=r"4 slots are asked for, but\n?.* has 2"):
        list(machine.slots(case))


def seen(folder: Path, told: Mapping[str, Device]) -> facts.Facts:
    tick = make_tick(StateFolder(folder), SHARED)
    drive(tick, lambda snapshot: bool(snapshot.live_attempts))
    tick.store.quarantine("cuda:1", QuarantineKind.LOST, "GPU is lost", tick.clock())
    tick.store.close()
    return replace(facts.read(folder), devices=told)


def test_the_status_view_has_a_line_for_each_share_and_its_gpus_figures_once(
    tmp_path: Path,
) -> None:
    device = Device(use=71.0, memory=30 * GB, total=80 * GB, temperature=55)
    found = seen(tmp_path, dict.fromkeys(NAMES, device))
    assert set(found.slots) == set(NAMES)
    assert found.usable == 4
    lines = [one.plain for one in blocks.slots(found, 60, None)]
    assert len(lines) == 9
    assert sum("71 %" in line for line in lines) == 2
    assert sum("left alone: GPU is lost" in line for line in lines) == 4
    assert sum("idle" in line for line in lines) == 3
    assert lines[1].startswith("cuda:0.1/4")


def test_the_driver_is_asked_for_gpus_and_not_for_their_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Watch:
        def __init__(self, names: Any) -> None:
            asked.append(tuple(names))

        def look(self) -> Mapping[str, Gpu]:
            return {"cuda:0": Gpu("cuda:0", processes=(GpuProcess(1, GB),))}

        def close(self) -> None:
            pass

    monkeypatch.setattr(gpus, "GpuWatch", Watch)
    with gpus.watched(NAMES) as health:
        assert health() is not None
    assert asked == [("cuda:0", "cuda:1")]
    assert gpus.visible(("cuda:1.2/4",))["CUDA_VISIBLE_DEVICES"] == "1"
