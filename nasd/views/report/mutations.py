"""What mutation did to those that it made: a pure function of a snapshot."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from nasd.contract.genotype import Genotype, Lineage
from nasd.record.lifecycle import Phase
from nasd.record.state import Candidate, Snapshot
from nasd.views.report import statistics
from nasd.views.report.rows import MutationRow
from nasd.views.report.statistics import Estimate

# How often each kind made each candidate out of its parent.
Mutated = Mapping[int, Counter[str]]
# What mutation can do (thesis 4.2.1), in the order in which it is shown.
MUTATIONS = ("block added", "block removed", "FFN added", "FFN altered", "attention altered")


def table(snapshot: Snapshot, mutated: Mutated, injected: Set[int]) -> tuple[MutationRow, ...]:
    """One row a kind, and one for all offspring."""
    born = [
        one for one in snapshot.individuals if one.parent is not None and one.id not in injected
    ]
    each = _each(snapshot, mutated, born)
    rows = [
        _row(snapshot, mutated, kind, [one for one in born if mutated[one.id][kind]], each[kind])
        for kind in MUTATIONS
    ]
    return (*rows, _row(snapshot, mutated, "any", born, None))


def _change(snapshot: Snapshot, one: Candidate) -> float | None:
    """Of quality, against the parent."""
    assert one.parent is not None
    here, there = snapshot.quality(one.id), snapshot.quality(one.parent)
    return None if here is None or there is None else here - there


def _each(
    snapshot: Snapshot, mutated: Mutated, born: Sequence[Candidate]
) -> Mapping[str, Estimate | None]:
    changes = {one.id: change for one in born if (change := _change(snapshot, one)) is not None}
    kinds = [kind for kind in MUTATIONS if any(mutated[one][kind] for one in changes)]
    rows = [[float(mutated[one][kind]) for kind in kinds] for one in changes]
    found = statistics.least_squares(rows, list(changes.values())) if kinds else None
    return {**dict.fromkeys(MUTATIONS), **dict(zip(kinds, found or (), strict=bool(found)))}


def _row(
    snapshot: Snapshot,
    mutated: Mutated,
    kind: str,
    found: Sequence[Candidate],
    each: Estimate | None,
) -> MutationRow:
    selected = {g.number for g in snapshot.generations if g.phase is Phase.COMPLETE}
    survivors = {(m.generation, m.candidate) for m in snapshot.members if m.survives}
    changes = [change for one in found if (change := _change(snapshot, one)) is not None]
    sizes = [
        snapshot.size(one.id) - snapshot.size(one.parent) for one in found if one.parent is not None
    ]
    changes_of_parameters = [
        100 * (one.parameters / snapshot.candidates[one.parent].parameters - 1)
        for one in found
        if one.parent is not None
    ]
    judged = [one for one in found if one.generation in selected]
    lasting = sum((one.generation, one.id) in survivors for one in judged)
    return MutationRow(
        kind,
        len(found),
        sum(mutated[one.id].total() if kind == "any" else mutated[one.id][kind] for one in found),
        len(changes),
        *statistics.ends(statistics.mean(changes)),
        *statistics.ends(each),
        len(sizes),
        *statistics.ends(statistics.mean(sizes)),
        *statistics.ends(statistics.mean(changes_of_parameters)),
        len(judged),
        *statistics.ends(statistics.share(lasting, len(judged))),
    )


def between(lineage: Lineage, parent: Genotype) -> Counter[str]:
    """How often each of MUTATIONS turned the parent into a candidate of this lineage. What a new
    block brings along belongs to its being added."""
    found: Counter[str] = Counter()
    sources = {block.source for block in lineage}
    found["block removed"] = sum(index not in sources for index in range(len(parent.blocks)))
    for block in lineage:
        if block.source is None:
            found["block added"] += 1
            continue
        found["attention altered"] += block.attention_new
        for origin in block.origins:
            if origin != "kept":
                found[f"FFN {origin}"] += 1
    return +found


def in_words(found: Mapping[str, int]) -> str:
    """`FFN added 2x, attention altered`."""
    return ", ".join(
        kind if found[kind] == 1 else f"{kind} {found[kind]}x"
        for kind in MUTATIONS
        if found.get(kind)
    )
