"""The heads of fine-tuned seeds: which tasks a checkpoint was trained for, and what its labels are.
How a family calls its heads' weights stands in nasd.worker.model.families."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from nasd.contract import tasks
from nasd.contract.labelled import Labels
from nasd.worker.model import phenotype
from nasd.worker.model.families import Family

KINDS: Mapping[str, type[Any]] = {
    tasks.QA.name: phenotype.QuestionAnswering,
    tasks.CLASSIFY.name: phenotype.SequenceClassification,
    tasks.REGRESS.name: phenotype.SequenceClassification,
    tasks.TAG.name: phenotype.TokenClassification,
}
UNNAMED = "LABEL_"  # how transformers calls a label that nobody has named


def model_of(task: str) -> type[Any]:
    """The class of ours that is a model of the task."""
    return KINDS[tasks.kind_of(task)]


def parameters(task: str) -> list[str]:
    """Our names of the head's; those of its last layer stand last."""
    kind = model_of(task)
    last = [kind.head_name]
    if kind is phenotype.SequenceClassification:
        last = [f"{kind.head_name}.{part}" for part in ("transform", "out")]
    return [f"{module}.{part}" for module in last for part in ("weight", "bias")]


def found(there: Collection[str], family: Family, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks for which a checkpoint has a head. there: names of its weights. What a classifier
    is for its `architectures` say, as its weights may be those of another's."""
    told = config.get("architectures") or [""]
    kind = str(told[0]) if isinstance(told, list) and told else ""
    one = len(labels_of(config)) == 1 or config.get("problem_type") == "regression"
    suits = {
        tasks.CLASSIFY.name: "SequenceClassification" in kind and not one,
        tasks.REGRESS.name: "SequenceClassification" in kind and one,
        tasks.TAG.name: "TokenClassification" in kind,
    }
    classifiers = tuple(
        task
        for task, suiting in suits.items()
        if suiting and all(family.theirs(name) in there for name in parameters(task))
    )
    return (*(tasks.QA.name,) * family.answers(there, config), *classifiers)


def dropout_of(config: Mapping[str, Any], usual: float) -> float:
    """Of a classifier's head: DistilBERT has one of its own, BERT that of all layers, unless it
    says so."""
    own = config.get("seq_classif_dropout", config.get("classifier_dropout"))
    return usual if own is None else float(own)


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the outputs of a checkpoint's classifier mean, in their order."""
    own = config.get("labels")
    if isinstance(own, list) and own:
        return tuple(map(str, own))
    told = config.get("id2label")
    if not isinstance(told, Mapping) or not told:
        return (f"{UNNAMED}0", f"{UNNAMED}1")  # transformers writes no others down
    return tuple(str(told[key]) for key in sorted(told, key=int))


def misfit(theirs: Sequence[str], ours: Labels) -> str:
    """Why a head with their labels cannot be kept for ours; "" where it can."""
    if len(theirs) != len(ours.names):
        return f"it tells {len(theirs)} labels and the data has {len(ours.names)}"
    if places(theirs, ours.names) is None:
        return "its labels are other ones than the data's"
    if len(theirs) > 1 and _unnamed(theirs) and not ours.ordered:
        return (
            "its labels have no names (LABEL_0 and so on), so that which is which of the data's is"
            " not known (id2label in its config.json names them)"
        )
    return ""


def _unnamed(theirs: Sequence[str]) -> bool:
    return all(one.startswith(UNNAMED) for one in theirs)


def places(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Where each of our labels stands among theirs; None where one does not. Those that nobody has
    named, and a single one, are taken in their order. Upper and lower case are the same only where
    no two labels are so."""
    if len(theirs) == 1 == len(ours):
        return [0]
    for alike in (str, str.casefold):
        known = {alike(one): place for place, one in enumerate(theirs)}
        wanted = [alike(one) for one in ours]
        if len({*wanted}) == len(ours) and len(known) == len(theirs) and known.keys() >= {*wanted}:
            return [known[one] for one in wanted]
    return list(range(len(ours))) if _unnamed(theirs) else None


def in_order(
    weights: Mapping[str, torch.Tensor],
    kind: type[Any],
    family: Family,
    theirs: Sequence[str],
    ours: Sequence[str],
) -> dict[str, torch.Tensor]:
    """The weights with the rows of the head's last layer in the order of our labels."""
    order = places(theirs, ours)
    assert order is not None, "such a head is not kept"
    task = next(name for name, one in KINDS.items() if one is kind)
    last = [family.theirs(name) for name in parameters(task)[-2:]]
    return {**weights, **{name: weights[name][order] for name in last}}
