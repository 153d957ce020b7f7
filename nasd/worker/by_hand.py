"""`python -m nasd.worker.by_hand`: scores a model of a search by hand, or a child that it makes.

Reads one JSON object from standard input: {"spec", "folder", "born", "scores"}: the spec of the
stage that scores, where the answers go, whether its weights are the parent's, of which the child is
made and left in "model" below that folder, and whether it is scored. Prints one JSON line:
{"metrics"}, or {"error": a sentence}.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasd.contract.errors import NasdError
from nasd.contract.leash import die_with_parent
from nasd.contract.protocol import Spec
from nasd.contract.schedule import EVALUATION_BATCH

if TYPE_CHECKING:
    from nasd.worker.model.pretrained import NasdPreTrainedModel

MODEL = "model"


def main() -> None:
    die_with_parent(os.getppid())
    asked = json.load(sys.stdin)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            told = answer_to(asked)
    except NasdError as error:
        told = {"error": str(error)}
    print(json.dumps(told))


def answer_to(asked: dict[str, Any]) -> dict[str, Any]:
    import torch

    from nasd.worker.model import phenotype
    from nasd.worker.tasks import beginning, registry
    from nasd.worker.tasks.task import Ranks
    from nasd.worker.training.divergence import Diverged
    from nasd.worker.training.progress import quiet

    spec = Spec.model_validate(asked["spec"])
    folder = Path(asked["folder"])
    stage = spec.stage
    assert stage is not None
    entry = registry.of(stage)
    assert entry.score is not None, "of a search that scores"
    torch.set_num_threads(spec.threads)
    if asked["born"]:
        fresh = beginning.drawing(spec, stage)
        child = beginning.born(spec, entry.model, fresh, lambda: entry.windows(spec))
        phenotype.save(child, folder / MODEL)
        spec = spec.model_copy(update={"weights": str(folder / MODEL), "inherits": False})
    if not asked["scores"]:
        return {"metrics": {}}
    device = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
    ranks = Ranks(0, 1, torch.device(device))
    try:
        metrics = entry.score(spec, stage, folder / "answers", ranks, EVALUATION_BATCH, quiet)
    except Diverged as error:
        raise NasdError(f"it gives no score: {error}") from error
    return {"metrics": metrics}


def loaded(folder: Path, task: str) -> "NasdPreTrainedModel":
    """A trained model of a search, as the class of transformers' that it is exported as."""
    from nasd.worker.model import phenotype, pretrained
    from nasd.worker.model.pretrained import NasdConfig
    from nasd.worker.model.seed_heads import model_of
    from nasd.worker.tasks.beginning import reading

    kind = model_of(task)
    with reading(folder):
        source: phenotype.AnyModel = phenotype.load(kind, folder)
    config = NasdConfig(**source.architecture.to_json())
    model: NasdPreTrainedModel = getattr(pretrained, f"NasdFor{kind.__name__}")(config)
    model.load_state_dict(source.state_dict())
    model.train(False)
    return model


if __name__ == "__main__":
    main()
