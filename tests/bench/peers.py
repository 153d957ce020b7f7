"""The peers: how each turns seconds of training into models.

Searches run in the real daemon until their time is up. All others are trained by the same workers,
beside it. Every peer starts from the same fine-tuned baseline, to the last bit, and its training is
charged to each.
"""

import itertools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace

from nasd.contract.genotype import Genotype
from nasd.search.variation.breeding import initial_population
from nasd.worker.model import phenotype
from tests.bench.contest import Contest
from tests.bench.following import searched
from tests.bench.laboratory import Diverged, overhead, pace_of
from tests.bench.pruned import narrowed, pruned, without_top
from tests.bench.standing import SHARES, Standing, front
from tests.bench.worlds import OURS, RANDOM, THESIS, unknown

LENGTHS = (0.25, 0.75)  # of what a model has, for the two trainings of those without a search
WORTH = 4.0  # times what an attempt takes beside its training, or there is no short one
OVER = 0.1  # of the time: what a plan may be wrong by, as it is made before the training


def ours(contest: Contest) -> Standing:
    found = searched(contest, "ours", OURS)
    contest.depth = found.depth
    return found


def thesis(contest: Contest) -> Standing:
    return searched(contest, "thesis", THESIS)


# -- peers without a search ----------------------------------------------------------------------


def at_random(contest: Contest) -> Standing:
    """Mutants of the baseline, many steps away, in the order in which they are drawn; the transfers
    and the ladder are ours."""
    lab = contest.lab
    config = lab.config
    models = [contest.baseline()]
    spent, scoring = contest.start, lab.scored.seconds
    stage, scores = lab.stage("train_on"), lab.stage("evaluate")
    for number in itertools.count():
        if spent >= contest.seconds:
            break
        if number in DRAWN:
            drawn = initial_population(
                *(lab.baseline, config.search_space, config.variation, DRAWN[number], lab.number)
            )
        mutant = drawn[number]
        try:
            trained = lab.attempt(
                stage, lab.begin.result, mutant.genotype, mutant.lineage, candidate=number + 1
            )
        except Diverged as lost:
            spent += lost.seconds
            continue
        scored = lab.attempt(scores, trained.result, mutant.genotype, candidate=number + 1)
        spent += trained.seconds + (scored.seconds if contest.charges_scoring else 0.0)
        scoring += scored.seconds
        one = lab.model(str(number + 1), mutant.genotype, spent, scored.quality)
        if one in front([*models, one]):
            one = replace(one, quality=contest.judge(trained.result))
        shutil.rmtree(trained.result)
        models.append(one)
        contest.say(
            f"  {spent:6.0f} s: mutant {number + 1}, {one.share:.2f} of the blocks, sees"
            f" {one.seen:.1f}" + ("" if one.quality is None else f", is worth {one.quality:.1f}")
        )
    notes = [f"not there yet: {key}" for key in unknown(RANDOM)]
    return Standing("random", tuple(models), spent, scoring, 1, tuple(notes))


# At that number, so many are drawn: the first of them are always the same.
DRAWN = {0: 32, 32: 128, 128: 512, 512: 2048}


def planned(contest: Contest, name: str, smaller: Mapping[str, Genotype]) -> Standing:
    """Each of these models of the fine-tuned baseline is trained on for the same share of what the
    peer has left of its time: all for a short part of that, and then all anew for the long part, as
    much training can be too much. The largest first."""
    lab = contest.lab
    models = [contest.baseline()]
    spent, scoring, notes = contest.start, lab.scored.seconds, list[str]()
    beside = overhead(lab) + (lab.scored.seconds if contest.charges_scoring else 0.0)
    each = (contest.seconds - contest.start) / len(smaller)
    stage, examples = lab.stage("train_on"), lab.examples
    pieces = LENGTHS if min(LENGTHS) * each >= WORTH * beside else (1.0,)
    for number, (part, called) in enumerate(itertools.product(pieces, smaller), start=1):
        genotype = smaller[called]
        made = pruned(lab.answering(), genotype)
        folder = lab.folder / f"{name}-{number}"
        phenotype.save(made, folder)
        epochs = pace_of(lab, made, stage).epochs(part * each - beside, stage, examples)
        longer = stage.model_copy(update={"epochs": epochs})
        trained = lab.attempt(longer, folder, genotype, candidate=number)
        scored = lab.attempt(lab.stage("evaluate"), trained.result, genotype, candidate=number)
        spent += trained.seconds + (scored.seconds if contest.charges_scoring else 0.0)
        scoring += scored.seconds
        fits = spent <= (1 + OVER) * contest.seconds
        at = min(spent, contest.seconds) if fits else spent
        told = contest.judge(trained.result)
        called = f"{called}, {epochs:.1f} epochs"
        models.append(lab.model(called, genotype, at, scored.quality, told))
        shutil.rmtree(folder)
        shutil.rmtree(trained.result)
        losses = [loss for _, loss in trained.outcome.curve]
        notes.append(
            f"{called}: evaluation loss {losses[-1]:.3f}, at its best {min(losses):.3f};"
            f" {trained.seconds:.0f} s"
        )
        contest.say(
            f"  {spent:6.0f} s: {called}, {models[-1].share:.2f} of the blocks, sees"
            f" {scored.quality:.1f}, is worth {told:.1f}"
        )
    return Standing(name, tuple(models), spent, scoring, 1, tuple(notes))


def top_dropped(contest: Contest) -> Standing:
    baseline = contest.lab.baseline
    left = range(len(baseline.blocks) - 1, 0, -1)
    smaller = {f"{count} blocks": without_top(baseline, count) for count in left}
    return planned(contest, "drop_top", smaller)


def narrow(contest: Contest) -> Standing:
    """At the shares that the table tells of, as far as FFNs alone can be that much smaller."""
    lab = contest.lab
    found = {share: narrowed(lab.baseline, lab.backbone, share) for share in SHARES[1:]}
    smaller = {f"{share:g} of the blocks": one for share, one in found.items() if one is not None}
    return planned(contest, "narrow", smaller)


def control(contest: Contest) -> Standing:
    """With as much training as a child of our search's last generation has had in its line, in one
    schedule: so many times its epochs."""
    lab = contest.lab
    stage = lab.stage("train_on")
    assert stage.epochs is not None
    stage = stage.model_copy(update={"epochs": contest.depth * stage.epochs})
    trained = lab.attempt(stage, lab.begin.result, candidate=1)
    scored = lab.attempt(lab.stage("evaluate"), trained.result, candidate=1)
    spent = contest.start + trained.seconds
    spent += scored.seconds if contest.charges_scoring else 0.0
    told = contest.judge(trained.result)
    contest.say(f"  {spent:6.0f} s: the control, {contest.depth} trainings, is worth {told:.1f}")
    shutil.rmtree(trained.result)
    one = lab.model("control", lab.baseline, spent, scored.quality, told)
    scoring = lab.scored.seconds + scored.seconds
    notes = (f"{contest.depth} trainings of a child's length in one schedule",)
    return Standing("control", (contest.baseline(), one), spent, scoring, contest.depth, notes)


def control_all(contest: Contest) -> Standing:
    smaller = {"the baseline": contest.lab.baseline}
    return planned(contest, "control_all", smaller)


PEERS: Mapping[str, tuple[str, Callable[[Contest], Standing]]] = {
    "ours": ("task lineage, informed transfers, small steps", ours),
    "thesis": ("(a) fresh transfers, MLM lineage, the preset's ladder", thesis),
    "random": ("(b) many-step mutants of the baseline, our transfers", at_random),
    "drop_top": ("(c) blocks dropped from the top", top_dropped),
    "narrow": ("(d) FFNs narrowed by magnitude", narrow),
    "control": ("(e) the baseline, trained as our last children's line", control),
    "control_all": ("(e) the baseline, trained for all the time", control_all),
}
