"""SQuAD 2.0: questions that have no answer, read, scored, and told from those that have one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import squad
from nasd.contract.errors import NasdError
from nasd.contract.squad import Judged, Question
from nasd.worker.model import spans
from nasd.worker.tasks.passages import QaFeatures, build_features, judge
from tests.training import SOURCE

CONTEXT = "Mara keeps a red kite in the old mill."


def question(name: str, *answers: str) -> Question:
    placed = tuple((one, CONTEXT.find(one)) for one in answers)
    return Question(name, "Mara", CONTEXT, "Where is the kite?", placed)


def put(path: Path, **entry: Any) -> Path:
    qas = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Mara", "answer_start": 0}]},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True, **entry},
    ]
    paragraphs = [{"context": CONTEXT, "qas": qas}]
    path.write_text(
        json.dumps({"version": "v2.0", "data": [{"title": "a", "paragraphs": paragraphs}]})
    )
    return path


def test_questions_without_an_answer_are_taken_where_a_config_asks_for_them(tmp_path: Path) -> None:
    plausible = [{"text": "red", "answer_start": 13}]
    path = put(tmp_path / "squad.json", plausible_answers=plausible)
    found = squad.read_all([path], no_answer=True).sound
    assert [one.answers for one in found] == [(("Mara", 0),), ()]
    with pytest.raises(NasdError, match=r"qas\[1\]\.answers is empty.*data\.qa\.no_answer = true"):
        squad.read_all([path])
    assert len(squad.read_all([path], skip_faulty=True).sound) == 1


# (prediction, gold answers, exact, F1), as evaluate-v2.0.py gives them: compute_exact and
# compute_f1, the best over the answers that are not empty once normalised, or over "".
OFFICIAL = [
    ("", (), True, 1.0),
    ("the", (), True, 1.0),
    ("a kite", (), False, 0.0),
    ("", ("red kite",), False, 0.0),
    ("a Red Kite!", ("red kite",), True, 1.0),
    ("kite", ("red kite",), False, 2 / 3),
    ("old mill", ("red kite", "the old mill"), True, 1.0),
    ("in the mill", ("the old mill",), False, 0.5),
]


@pytest.mark.parametrize(("said", "gold", "exact", "overlap"), OFFICIAL)
def test_a_prediction_is_marked_as_the_official_script_marks_it(
    said: str, gold: tuple[str, ...], exact: bool, overlap: float
) -> None:
    assert squad.marks(said, question("1", *gold)) == (exact, pytest.approx(overlap))


def test_a_score_is_of_version_2_where_there_are_questions_without_an_answer() -> None:
    asked = [question("1", "red kite"), question("2")]
    assert squad.score({"1": "kite", "2": ""}, asked) == {
        "exact_match": 50.0,
        "f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        "total": 2,
    }
    assert squad.score({"1": ""}, asked[:1])["f1"] == 0.0  # of version 1.1, as it was


judged = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["", "red kite", "kite", "mill"]), st.integers(-5, 5)),
    min_size=1,
    max_size=12,
)


@given(judged)
def test_no_other_threshold_gives_a_higher_f1(rows: list[tuple[bool, str, int]]) -> None:
    asked = [
        question(str(n), *(("red kite",) if has else ())) for n, (has, _, _) in enumerate(rows)
    ]
    # Doubts all differ: the official script tries a threshold behind each question.
    said = {str(n): Judged(text, doubt + n / 100) for n, (_, text, doubt) in enumerate(rows)}

    def f1(most: float) -> float:
        answers = squad.answered(said, most)
        return sum(squad.marks(answers[one.id], one)[1] for one in asked)

    found = squad.threshold(said, asked)
    every = [min(one.doubt for one in said.values()) - 1, *(one.doubt for one in said.values())]
    assert f1(found) == pytest.approx(max(map(f1, every)))


@pytest.fixture(scope="module")
def features() -> tuple[list[Question], QaFeatures]:
    from nasd.worker.model import seed

    asked = [question("1", "red kite"), question("2")]
    return asked, build_features(asked, seed.load_tokenizer(SOURCE, Path()), 64, 16)


def test_a_question_without_an_answer_points_at_the_first_token(
    features: tuple[list[Question], QaFeatures],
) -> None:
    _, made = features
    assert made.start[0] > 0
    assert (made.start[1], made.end[1]) == (0, 0)


def test_doubt_is_how_much_surer_the_model_is_of_no_answer(
    features: tuple[list[Question], QaFeatures],
) -> None:
    asked, made = features
    logits = [np.zeros(length, dtype=np.float32) for length in made.lengths]
    inside = int(np.flatnonzero(made.characters[: made.bounds[1], 0] != spans.NO_CHARACTERS)[2])
    logits[0][inside] = 4.0
    logits[1][0] = 6.0
    told = judge(made, asked, logits, logits, 20, 8)
    assert told["1"].doubt == pytest.approx(-4.0)
    assert told["2"].doubt == pytest.approx(6.0)
    assert squad.answered(told, 0.0) == {"1": told["1"].answer, "2": ""}
    assert told["1"].answer
