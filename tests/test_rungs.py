"""A stage with rungs is climbed in parts, and is the same stage: steps, weights, story."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import rungs
from nasd.contract.config import Stage, parse
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Outcome, Spec, Verdict
from nasd.contract.schedule import Schedule
from nasd.control.tick import Tick
from nasd.policy.ladder import work_ahead
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Event, State
from nasd.record.state import Snapshot
from nasd.search.fidelity.promotion import Budget
from nasd.views import history
from nasd.views.board import _decisions, generation_events
from nasd.views.dossier import compile_dossier
from nasd.views.report.figures import drawings
from nasd.views.report.findings import Findings
from nasd.views.status.waits import waits
from nasd.views.why import Subject, why
from nasd.worker.stage import run as run_stage
from nasd.worker.tasks.task import Ranks
from tests.conftest import drive, make_tick, path_of, small_config, small_dict
from tests.training import Never, Workshop, demo_config, make_workshop, stage, weights

CONFIG = demo_config()
HALF = [{"at": 0.5, "keep": 0.5}]


def with_rungs(name: str, *at: float, **changes: Any) -> Stage:
    found = stage(CONFIG, name, **changes).model_dump()
    return Stage.model_validate({**found, "rungs": [{"at": one, "keep": 0.5} for one in at]})


# -- in a config ---------------------------------------------------------------------------------


def test_a_stage_with_rungs_is_climbed_in_parts_and_the_last_has_its_name():
    config = small_config(
        stages__finetune__rungs=[{"at": 0.25, "keep": 0.5}, {"at": 0.5, "keep": 0.75}]
    )
    ladder = config.ladder("candidates")
    assert [(one.name, one.keep) for one in ladder] == [
        ("pretrain_0", 0.5),
        ("pretrain_1", None),
        ("finetune@0.25", 0.5),
        ("finetune@0.5", 0.75),
        ("finetune", None),
        ("evaluate", None),
    ]
    assert {one.whole for one in ladder[2:5]} == {"finetune"}
    written = rungs.climbed(config.model_dump(mode="json")["stages"])
    assert [one["name"] for one in written if one["who"] != "baseline"] == [
        one.name for one in ladder
    ]


@pytest.mark.parametrize(
    ("key", "found", "words"),
    [
        ("finetune", [{"at": 1.0, "keep": 0.5}], "rungs[0].at"),
        ("finetune", [{"at": 0.0, "keep": 0.5}], "rungs[0].at"),
        ("finetune", [{"at": 0.5, "keep": 0.0}], "rungs[0].keep"),
        ("finetune", [{"at": 0.5}], "rungs[0].keep is missing"),
        ("finetune", [{"at": 0.5, "keep": 0.5, "share": 1}], "rungs[0].share"),
        ("finetune", [*HALF, *HALF], "rungs must rise: 0.5 does not lie behind 0.5"),
        ("evaluate", HALF, "rungs stand only where candidates train"),
        ("pretrain_head", HALF, "rungs stand only where candidates train"),
    ],
)
def test_a_rung_that_cannot_be_is_refused_with_its_key(key, found, words):
    with pytest.raises(NasdError) as caught:
        parse(small_dict(**{f"stages__{key}__rungs": found}), "c.toml")
    sentence = str(caught.value)
    assert sentence.startswith(f"c.toml: {'unknown key ' * ('share' in words)}")
    assert f"stages.{key}" in sentence
    assert words in sentence


# -- steps ---------------------------------------------------------------------------------------

SHARES = st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(sorted)


@given(
    SHARES, st.floats(0.05, 5), st.integers(1, 300), st.integers(1, 40), st.integers(1, 7),
    st.floats(0, 1),
)  # fmt: skip
def test_parts_have_the_steps_the_rates_and_the_evaluations_of_their_stage(
    at, epochs, examples, batch, evaluations, warmup
):
    whole = stage(
        CONFIG, "finetune", epochs=epochs, batch=batch, evaluations=evaluations, warmup=warmup
    )
    cut = Stage.model_validate(
        {**whole.model_dump(), "rungs": [{"at": one, "keep": 0.5} for one in at]}
    )
    known = Schedule.of(whole, examples)
    parts = [Schedule.of(one, examples) for one in cut.parts]
    assert sum(one.steps for one in parts) == known.steps
    rates = [one.learning_rate(step) for one in parts for step in range(one.steps)]
    assert rates == [known.learning_rate(step) for step in range(known.steps)]
    looks = {
        one.before + step for one in parts for step in one.evaluation_steps(evaluations) if step
    }
    rests = {one.before + one.steps for one in parts if one.steps}
    assert looks == {*known.evaluation_steps(evaluations)} | rests
    for one in parts:
        assert [*one.evaluation_steps(evaluations)] == [
            step + 1 for step in range(one.steps) if one.evaluates_after(step, evaluations)
        ] or not one.steps


# -- a search ------------------------------------------------------------------------------------

TASK_ALONE = {
    "data__mlm": None,
    "variation__inherit_from": "task",
    "population__lambda": 6,
}
RUNGS = [{"at": 0.25, "keep": 0.5}, {"at": 0.5, "keep": 0.7}]


def searched(state: StateFolder, alone: bool = False) -> Tick:
    """Of questions alone, or behind masked language modelling, with rungs in the fine-tuning."""
    data = small_dict(stages__finetune__rungs=RUNGS, **(TASK_ALONE if alone else {}))
    if alone:
        data["stages"] = [one for one in data["stages"] if one["task"] != "mlm"]
    tick = make_tick(state, parse(data, "small.toml"))
    assert drive(tick).experiment.state == "complete"
    return tick


@pytest.mark.parametrize("alone", [True, False])
def test_at_a_rung_the_best_share_goes_on_and_the_first_generation_goes_through(state, alone):
    tick = searched(state, alone)
    found = tick.store.read()
    for number in (1, 2):
        made = {one.stage: one.promotion for one in found.cutoffs if one.generation == number}
        first, second = made["finetune@0.25"], made["finetune@0.5"]
        assert len(first.kept) == math.ceil(0.5 * first.reached)
        assert {*second.kept, *second.cut} == {*first.kept}
        assert max(first.losses[one] for one in first.kept) <= first.threshold
        assert min(first.losses[one] for one in first.cut) >= first.threshold
        assert {one.id for one in found.born_in(number) if one.state is State.SCORED} == {
            *second.kept
        }
    for one in found.born_in(0):
        path = [stage for event, stage in path_of(tick.store, one.id) if event == Event.START]
        assert path[-4:] == ["finetune@0.25", "finetune@0.5", "finetune", "evaluate"]
        assert one.state is State.SCORED
    tick.store.close()


@pytest.mark.parametrize("alone", [True, False])
def test_rungs_are_told_by_report_pictures_and_dossiers(state, alone):
    tick = searched(state, alone)
    found = tick.store.read()
    findings = Findings(found, tick.clock())
    assert {row.stage for row in findings.correlations} >= {"finetune@0.25", "finetune@0.5"}
    assert {row.stage for row in findings.cutoffs} >= {"finetune@0.25", "finetune@0.5"}
    by_key = {one.name: one for one in drawings(findings)}
    assert by_key["curves"].figure is not None
    assert by_key["correlation"].figure is not None
    assert by_key["curves"].title.startswith("Learning" if alone else "MLM learning")
    events = dict(generation_events(found, 2))
    levels = {
        value.tag
        for event in events["gen02/cutoff"]
        for value in event.summary.value
        if "evaluation_loss" in value.tag
    }
    assert levels == {"qa/evaluation_loss"}
    stopped = next(one for one in found.born_in(2) if one.stage == "finetune@0.25")
    assert "cutoff after finetune@0.25" in _decisions(found, stopped)
    assert "finetune@0.25 loss" in stopped.reason
    tick.store.close()


@pytest.mark.parametrize("rule", ["halving", "asha", "curve"])
def test_every_rule_decides_a_search_to_its_end_and_is_told(state, rule):
    tick = make_tick(
        state,
        small_config(
            promotion__rule=rule,
            stages__pretrain_0__evaluations=3,
            stages__finetune__evaluations=12,
            stages__finetune__rungs=RUNGS,
            population__lambda=8,
        ),
    )
    found = drive(tick)
    assert found.experiment.state == "complete"
    assert {one.promotion.name for one in found.cutoffs} == {rule}
    for number in (1, 2):
        born = {one.id for one in found.born_in(number)}
        for name in ("pretrain_0", "finetune@0.25", "finetune@0.5"):
            made = [
                one.promotion
                for one in found.cutoffs
                if (one.generation, one.stage) == (number, name)
            ]
            kept = [one for promotion in made for one in promotion.kept]
            cut = [one for promotion in made for one in promotion.cut]
            assert {*kept, *cut} == born
            assert len(kept) <= math.ceil(made[-1].keep * len(born))
            born = {*kept}
        assert born == {one.id for one in found.born_in(number) if one.state is State.SCORED}
    findings = Findings(found, tick.clock())
    assert all(one.figure is not None or one.missing for one in drawings(findings))
    texts = [
        event
        for event in dict(generation_events(found, 1))["gen01/cutoff"]
        for value in event.summary.value
        if value.tag.startswith("cutoff_after_")
    ]
    assert len(texts) == 3  # a card a stage, however many decisions
    tick.store.close()
    kept = next(one for one in found.cutoffs if one.promotion.kept).promotion.kept[0]
    told = compile_dossier(state.path, str(kept), tick.clock()).decisions
    assert any(rule in one.text for one in told if one.kind == "cutoff")


def test_under_hyperband_each_generation_goes_past_one_more_rung_until_none_is_left(state):
    tick = make_tick(
        state,
        small_config(
            promotion__rule="hyperband",
            stages__finetune__rungs=RUNGS,
            population__lambda=6,
            experiment__generations=5,
        ),
    )
    found = drive(tick)
    assert found.experiment.state == "complete"
    rungs = ["pretrain_0", "finetune@0.25", "finetune@0.5"]
    for number, met in enumerate((rungs, rungs[1:], rungs[2:], [], rungs), 1):
        made = [one for one in found.cutoffs if one.generation == number]
        assert [one.stage for one in made] == met
        waits = [
            event.stage
            for one in found.born_in(number)
            for event in history.read(state.path, str(one.id), 50)
            if event.event == "hold"
        ]
        assert {*waits} == {*met}
        scored = sum(one.state is State.SCORED for one in found.born_in(number))
        assert scored == (6 if not met else made[-1].promotion.places)
    assert all(one.promotion.name == "hyperband" for one in found.cutoffs)
    tick.store.close()


def test_asha_starts_who_is_promoted_while_others_have_yet_to_come(state):
    """On four slots, ten candidates: nobody waits for the last of them."""
    config = small_config(
        promotion__rule="asha",
        stages__pretrain_0__keep=None,
        stages__finetune__rungs=RUNGS,
        population__lambda=10,
    )
    tick = make_tick(state, config)
    found = drive(tick)
    starts = [
        (row[0], row[1])
        for row in tick.store._db.execute(
            "SELECT candidate, stage FROM event WHERE event = 'start' ORDER BY id"
        )
        if row[0] in {one.id for one in found.born_in(2)}
    ]
    first = config.ladder("candidates")[0].name
    below = [candidate for candidate, stage in starts if stage == first]
    fresh = [replace(found.candidates[one], stage=first) for one in below]
    work = [work_ahead(found, config, one) for one in fresh]
    assert work == sorted(work)  # the shortest first
    first_promoted = next(n for n, (_, stage) in enumerate(starts) if stage == "finetune@0.5")
    last_below = max(n for n, (_, stage) in enumerate(starts) if stage == "finetune@0.25")
    assert first_promoted < last_below
    tick.store.close()


def test_somebody_pauses_is_promoted_late_and_survives_and_events_tell_why(state):
    config = small_config(
        experiment__seed=3,
        promotion__rule="asha",
        stages__pretrain_0__keep=None,
        stages__finetune__rungs=[*RUNGS[:1], {"at": 0.5, "keep": 0.5}],
        population__lambda=10,
    )
    tick = make_tick(state, config)
    found = drive(tick)
    made = [
        one.promotion
        for one in found.cutoffs
        if (one.generation, one.stage) == (1, "finetune@0.25")
    ]
    late = [one for one in made[1:] for kept in one.kept if kept in found.survivors(1)][-1]
    (who,) = late.kept
    assert late.reached > made[0].reached
    told = history.read(state.path, str(who), 50)
    path = [one.event for one in told if one.stage in ("finetune@0.25", "finetune@0.5")]
    assert path == ["advance", "start", "hold", "keep", "start", "hold"]
    promoted = next(one for one in told if one.event == "keep")
    assert f"of the first {late.reached}" in promoted.detail
    waits_since = next(one.at for one in told if one.event == "hold")
    assert promoted.at > waits_since
    tick.store.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"promotion__rule": "luck"}, "promotion.rule: input should be 'share'"),
        ({"promotion__probability": 0.4}, "promotion.probability"),
        (
            {"promotion__rule": "asha", "stages__pretrain_0__keep": None},
            'promotion.rule: "asha" has nothing to decide, as no stage has rungs or keep',
        ),
        (
            {"promotion__rule": "curve"},
            'promotion.rule: "curve" extrapolates learning curves of 2 points or more, and up to'
            " pretrain_0 there are 1: raise stages.pretrain_0.evaluations",
        ),
    ],
)
def test_a_rule_that_cannot_decide_is_refused_with_its_key(changes, words):
    with pytest.raises(NasdError, match=re.escape(words)):
        parse(small_dict(**changes), "c.toml")


def test_a_config_from_before_means_what_it_meant():
    data = small_config().model_dump(mode="json", by_alias=True)
    del data["promotion"]
    for one in data["stages"]:
        del one["rungs"]
    again = parse(data, "before")
    assert again == small_config()
    assert again.promotion.rule == "share"
    assert again.parts == again.stages


def test_who_waits_at_a_rung_is_told_to_be_paused(state):
    tick = make_tick(state, small_config(stages__finetune__rungs=RUNGS, population__lambda=10))

    def paused(found: Snapshot) -> bool:
        return any(c.state is State.WAITING and "@" in c.stage for c in found.candidates.values())

    found = drive(tick, until=paused)
    one = next(c for c in found.candidates.values() if c.state is State.WAITING and "@" in c.stage)
    told = waits(found, tick.config, 4, tick.clock())
    assert told[one.id].startswith("paused, cutoff waits for ")
    subject = Subject(found, state, tick.config, one, tick.clock())
    assert why(subject).startswith("paused at a checkpoint: the cutoff behind finetune@0.25 waits")
    tick.store.close()


# -- weights -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def worked(spec: Spec, path: Path, ranks: Ranks, stop: Any = None) -> tuple[Path, Outcome]:
    folder = AttemptFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    spec = spec.model_copy(update={"tensorboard": str(path / "tensorboard")})
    return folder.result, run_stage(spec, folder, ranks, stop or Never())


class Behind:
    """A stop request that comes behind the first steps that an attempt has recorded."""

    def __init__(self, path: Path, lines: int) -> None:
        self.metrics, self.lines = AttemptFolder(path).metrics, lines

    @property
    def asked(self) -> bool:
        found = self.metrics
        return found.exists() and found.read_text().count("\n") >= self.lines


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("finetune", {"epochs": 0.2, "evaluations": 9, "warmup": 0.3}),
        ("pretrain_1", {"epochs": 0.5, "evaluations": 4}),
    ],
)
def test_who_passes_all_rungs_has_the_weights_of_one_that_met_none(
    shop: Workshop, tmp_path: Path, alone: Ranks, name: str, changes: dict[str, Any]
):
    spec = shop.spec(stage(CONFIG, name, **changes), dropout=0.1)
    straight, told = worked(spec, tmp_path / "whole", alone)
    left, curve, before = None, [], 0
    parts = with_rungs(name, 0.3, 0.55, **changes).parts
    for number, part in enumerate(parts):
        here = shop.spec(part, left, dropout=0.1)
        if number == 1:  # it is stopped on its way, and goes on from its checkpoint
            _, stopped = worked(here, tmp_path / "stopped", alone, Behind(tmp_path / "stopped", 1))
            assert stopped.verdict is Verdict.STOPPED
            before_it = AttemptFolder(tmp_path / "stopped")
            assert before_it.newest_step() > 0
            here = here.model_copy(update={"resume": (str(before_it.checkpoints),)})
        left, outcome = worked(here, tmp_path / part.name, alone)
        assert outcome.verdict is Verdict.SUCCEEDED, outcome.message
        curve += [(before + step, loss) for step, loss in outcome.curve]
        before += outcome.steps
    assert left is not None
    one, other = weights(straight), weights(left)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert before == told.steps
    assert {*told.curve} <= {*curve}
    assert outcome.metrics == told.metrics
    assert not (left / "optimizer.pt").exists()  # nobody goes on from there


@given(st.integers(1, 100), st.integers(1, 1000))
def test_a_share_that_is_a_whole_number_of_candidates_is_that_number(percent: int, reached: int):
    exact = -(-percent * reached // 100)
    assert rungs.places(percent / 100, reached) == exact
    assert Budget(percent / 100).places(reached) == exact
