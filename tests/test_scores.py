"""The scores of labels, numbers and entities against scikit-learn's, scipy's and seqeval's."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from nasd.worker.tasks import scores

two_lists = st.integers(1, 4).flatmap(
    lambda labels: st.lists(
        st.tuples(st.integers(0, labels), st.integers(0, labels)), min_size=1, max_size=40
    )
)
floats = st.floats(-1e3, 1e3).map(lambda value: round(value, 2))
tags = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B", "I-x-y"])
texts = st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=12), min_size=1, max_size=6)


@given(two_lists)
def test_labels_are_scored_as_scikit_learn_scores_them(pairs: list[tuple[int, int]]) -> None:
    wanted, told = (np.array(one) for one in zip(*pairs, strict=True))
    found = scores.of_labels(wanted, told)
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, told))
    assert found["f1"] == pytest.approx(f1_score(wanted, told, average="macro"))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(wanted, told))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_the_f1_of_one_label_is_glues(pairs: list[tuple[int, int]]) -> None:
    wanted, told = (np.array(one) for one in zip(*pairs, strict=True))
    expected = f1_score(wanted, told, pos_label=1, average="binary", zero_division=0.0)
    assert scores.of_labels(wanted, told, 1)["f1"] == pytest.approx(expected)


@given(st.lists(st.tuples(floats, floats), min_size=3, max_size=40))
def test_numbers_correlate_as_scipy_says(pairs: list[tuple[float, float]]) -> None:
    wanted, told = (np.array(one) for one in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is constant
        expected = stats.pearsonr(wanted, told)[0], stats.spearmanr(wanted, told)[0]
    found = scores.pearson(wanted, told), scores.spearman(wanted, told)
    if min(wanted.std(), told.std()) > 1e-3:
        assert found == pytest.approx(expected, abs=1e-6)
    if not told.std():
        assert found[1] == pytest.approx(0.0, abs=1e-9)


@given(st.lists(st.sampled_from(["O", "A", "NOUN", "B-A", "I-", "B"]), min_size=1))
def test_tags_without_a_dash_are_read_as_seqeval_reads_them(one: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [*scores.entities(one)] == get_entities(one)


@given(texts)
def test_entities_are_scored_as_seqeval_scores_them(
    examples: list[list[tuple[str, str]]],
) -> None:
    wanted, told = ([[pair[side] for pair in one] for one in examples] for side in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that are none, and of nothing to divide by
        for one in wanted:
            assert [*scores.entities(one)] == get_entities(one)
        found = scores.of_counts(*scores.counts_of_entities(wanted, told).sum(0).tolist())
        assert found["f1"] == pytest.approx(entity_f1(wanted, told))
        assert found["precision"] == pytest.approx(precision_score(wanted, told))
        assert found["recall"] == pytest.approx(recall_score(wanted, told))
