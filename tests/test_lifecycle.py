"""The life of a candidate, an attempt and a generation, as tables."""

import json
from itertools import product

import pytest
from pydantic import ValidationError

from nasd.contract.protocol import Outcome, Verdict
from nasd.record.lifecycle import (
    ATTEMPT_TRANSITIONS,
    FINAL,
    LIVE_ATTEMPT,
    NEXT_PHASE,
    TRANSITIONS,
    AttemptState,
    AttemptVerdict,
    Event,
    ImpossibleTransition,
    Phase,
    State,
    diagram,
    target,
)

KNOWN = {(edge.source, edge.event): edge.target for edge in TRANSITIONS}
EVERY = list(product([None, *State], Event))


def test_no_event_leads_from_one_state_to_two():
    assert len(KNOWN) == len(TRANSITIONS)


def test_every_state_can_be_reached_from_birth():
    reached: set[State | None] = {None}
    while more := {edge.target for edge in TRANSITIONS if edge.source in reached} - reached:
        reached |= more
    assert reached == {None, *State}


def test_every_event_is_used():
    assert {edge.event for edge in TRANSITIONS} == set(Event)


def test_final_states_have_no_way_out_but_by_request_or_for_another_seed_and_others_have_one():
    again = (Event.RETRY, Event.REVIVE, Event.REPEAT)
    unasked = [edge for edge in TRANSITIONS if edge.event not in again]
    assert {edge.source for edge in unasked} - {None} == set(State) - FINAL


def test_from_every_state_an_end_can_be_reached():
    ending: set[State | None] = set(FINAL)
    while more := {edge.source for edge in TRANSITIONS if edge.target in ending} - ending:
        ending |= more
    assert ending == {None, *State}


def test_every_edge_says_why_in_a_few_words():
    for edge in TRANSITIONS:
        assert 10 < len(edge.why) < 60
    assert len({edge.why for edge in TRANSITIONS}) == len(TRANSITIONS)


@pytest.mark.parametrize(("source", "event"), EVERY)
def test_a_transition_leads_where_the_table_says_and_any_other_raises(source, event):
    if (source, event) in KNOWN:
        assert target(source, event) is KNOWN[source, event]
    else:
        with pytest.raises(ImpossibleTransition, match=str(event)):
            target(source, event)


def test_states_read_from_the_database_as_text_find_their_edges():
    assert target("pending", "start") is State.RUNNING


def test_a_dead_attempt_stays_dead_and_a_live_one_never_starts_again():
    for source, to in ATTEMPT_TRANSITIONS:
        assert source in LIVE_ATTEMPT
        assert to is not AttemptState.STARTING
    assert (AttemptState.RUNNING, AttemptState.RUNNING) not in ATTEMPT_TRANSITIONS


def test_a_live_attempt_can_end_in_every_way_from_both_live_states():
    ends = set(AttemptState) - LIVE_ATTEMPT
    for source in LIVE_ATTEMPT:
        assert {to for one, to in ATTEMPT_TRANSITIONS if one is source} - LIVE_ATTEMPT == ends


def test_a_generation_passes_through_all_phases_once_and_stays_complete():
    phase, seen = Phase.BREEDING, [Phase.BREEDING]
    while phase in NEXT_PHASE:
        phase = NEXT_PHASE[phase]
        seen.append(phase)
    assert seen == list(Phase)
    assert seen[-1] is Phase.COMPLETE


def test_the_diagram_shows_every_edge_once_and_nothing_else():
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    for edge in TRANSITIONS:
        line = f"    {edge.source or '[*]'} --> {edge.target}: {edge.event} ({edge.why})"
        assert lines.count(line) == 1
    ends = {f"    {state} --> [*]" for state in FINAL}
    assert ends <= set(lines)
    assert len(lines) == 1 + len(TRANSITIONS) + len(ends)


def test_whatever_a_worker_says_of_its_attempt_can_be_recorded():
    assert {str(one) for one in Verdict} < {str(verdict) for verdict in AttemptVerdict}


def test_a_verdict_is_written_down_as_its_word_and_read_again():
    for verdict in Verdict:
        text = Outcome(verdict=verdict).model_dump_json()
        assert json.loads(text)["verdict"] == verdict.value
        assert Outcome.model_validate_json(text).verdict is verdict
    with pytest.raises(ValidationError):
        Outcome.model_validate_json('{"verdict": "won"}')
