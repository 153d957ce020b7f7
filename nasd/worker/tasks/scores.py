"""The scores of labels, numbers and entities, from 0 to 1 (correlations from -1), as scikit-learn,
scipy and seqeval work them out. What they call undefined is 0 here: it tells nothing."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]
Doubles = NDArray[np.float64]
ALONE = "_"  # the kind of a tag without one


def of_labels(wanted: Longs, told: Longs, positive: int | None = None) -> dict[str, float]:
    """accuracy; f1, of the positive label, or the mean over all that are wanted or told (macro);
    matthews, of any number of labels (Gorodkin 2004)."""
    present = np.union1d(wanted, told)
    counts = np.zeros((len(present), len(present)))
    np.add.at(counts, (np.searchsorted(present, wanted), np.searchsorted(present, told)), 1)
    right, those, these = counts.diagonal(), counts.sum(1), counts.sum(0)
    each = 2 * right / (those + these)
    f1 = float(each.mean()) if positive is None else float(each[present == positive].sum())
    total = counts.sum()
    together = right.sum() * total - those @ these
    apart = np.sqrt((total**2 - these @ these) * (total**2 - those @ those))
    return {
        "accuracy": float(right.sum() / total),
        "f1": f1,
        "matthews": float(together / apart) if apart else 0.0,
    }


def pearson(wanted: Doubles, told: Doubles) -> float:
    one, other = wanted - wanted.mean(), told - told.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


def spearman(wanted: Doubles, told: Doubles) -> float:
    return pearson(_ranks(wanted), _ranks(told))


def _ranks(values: Doubles) -> Doubles:
    """From 1; equals share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def counts_of_entities(wanted: Sequence[Sequence[str]], told: Sequence[Sequence[str]]) -> Longs:
    """[texts, 3]: how many entities are told rightly, told, and wanted in each text."""
    rows = []
    for tags, names in zip(wanted, told, strict=True):
        there, found = {*entities(tags)}, {*entities(names)}
        rows.append((len(there & found), len(found), len(there)))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def of_counts(right: int, found: int, there: int) -> dict[str, float]:
    """precision, recall and f1 over all entities (micro), from how many are told rightly, told, and
    wanted; one counts where its kind and both its ends are right."""
    precision = right / found if found else 0.0
    recall = right / there if there else 0.0
    both = precision + recall
    return {
        "f1": 2 * precision * recall / both if both else 0.0,
        "precision": precision,
        "recall": recall,
    }


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(kind, first word, last word) of each, as seqeval reads tags by default: B and S begin one,
    E and S end one, and so does a change of kind; I or E where none is begins one as well, and so
    does a tag without a dash, as a kind of its own."""
    kind, begin, before = "", 0, "O"
    for place, tag in enumerate([*tags, "O"]):
        now, what = tag[:1], tag[1:].split("-", 1)[-1] or ALONE
        if _ends(before, now, kind, what):
            yield kind, begin, place - 1
        if _begins(before, now, kind, what):
            begin = place
        before, kind = now, what


def _ends(before: str, now: str, kind: str, what: str) -> bool:
    if before in ("E", "S"):
        return True
    if before in ("B", "I") and now in ("B", "S", "O"):
        return True
    return before not in ("O", ".") and kind != what


def _begins(before: str, now: str, kind: str, what: str) -> bool:
    if now in ("B", "S"):
        return True
    if before in ("E", "S", "O") and now in ("E", "I"):
        return True
    return now not in ("O", ".") and kind != what
