"""What `bin/bench quality` concludes from the losses it has found."""

import pytest
import torch

from nasd.worker.model import phenotype
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.qa import QaTask
from tests.bench.quality import dense, judge, kept
from tests.test_phenotype import built
from tests.test_sparse import STILL, corpus, features


def found(shift: float, fast: list[list[float]] | None = None) -> dict[str, dict[str, list]]:
    slow = [[1.0, 1.2], [2.0, 2.2], [3.0, 3.2]]
    moved = [[loss + shift for loss in seeds] for seeds in slow]
    return {"pretrain_0": {"slow": slow, "fast": moved if fast is None else fast}}


def test_a_difference_is_told_with_the_noise_between_seeds() -> None:
    one = judge(found(0.5))["pretrain_0"]
    assert one["difference"] == pytest.approx(0.5)
    assert one["noise"] == pytest.approx(0.02**0.5)
    assert one["standard_error"] == pytest.approx((0.02 * 2 / 2 / 3) ** 0.5)


def test_halves_are_compared_by_the_means_of_the_seeds() -> None:
    assert kept([3.0, 1.0, 2.0]) == {1, 2}
    assert judge(found(0.5))["cutoff"]["same"]
    other = judge(found(0.0, [[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]]))["cutoff"]
    assert not other["same"]
    assert other["kept"] == {"slow": [0, 1], "fast": [1, 2]}


def test_candidates_that_noise_leaves_apart_are_ordered_alike_or_not() -> None:
    """The noise is 0.14: 0.2 apart is too close to tell, 1 and more is not."""
    slow = [[1.0, 1.2], [1.2, 1.4], [2.2, 2.4]]

    def ordered(*fast: float) -> tuple[int, int, int]:
        way = [[loss, loss + 0.2] for loss in fast]
        cut = judge({"pretrain_0": {"slow": slow, "fast": way}})["cutoff"]
        return cut["pairs"], cut["pairs_apart"], cut["ordered_alike"]

    assert ordered(1.2, 1.0, 2.0) == (3, 2, 2)
    assert ordered(1.0, 1.5, 1.2) == (3, 2, 1)


def test_fine_tuning_alone_has_no_cutoff() -> None:
    alone = judge({"finetune": {"slow": [[3.0, 3.2]], "fast": [[3.1, 3.3]]}})
    assert "cutoff" not in alone
    assert alone["finetune"]["difference"] == pytest.approx(0.1)


def test_the_slow_way_has_the_same_loss() -> None:
    """So the two differ in how they compute it, and in nothing they are after."""
    model = built(phenotype.MaskedLM, arch=STILL)
    task = MlmTask(model, corpus(), 0.15, set())
    indices = torch.arange(4).numpy()
    batch = task.batch(indices, 0)
    torch.testing.assert_close(
        dense(model, batch, 0), task.loss(task.outputs(model, batch), batch) / 4
    )
    answering = built(phenotype.QuestionAnswering, arch=STILL)
    questions = QaTask(answering, features(), features())
    batch = questions.batch(indices, 0)
    torch.testing.assert_close(
        dense(answering, batch, 12),
        questions.loss(questions.outputs(answering, batch), batch) / 4,
        rtol=1e-5,
        atol=1e-5,
    )
