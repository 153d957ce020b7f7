"""`bin/bench recipe`: by which training a fine-tuned model becomes smaller and stays good. It is
made smaller step by step, each the best by zero-step loss of some mutants (networks narrowed, or a
block dropped), trained, and the next one made of it; beside it the model itself, trained as often.

Quality is (EM + F1) / 2 on the questions of articles that nobody trains on. One process, so that a
GPU shows in minutes what takes a search hours.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nasd.contract.config import Config, Stage, Teacher, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.schedule import EVALUATION_BATCH
from nasd.contract.tasks import questions
from nasd.presets import preset_text
from nasd.search.variation.keeping import informed
from nasd.search.variation.operators import Draft, block_removed, grown_or_shrunk
from nasd.worker import prepare
from nasd.worker.model import seed
from nasd.worker.model.inherit import Trace, born
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks, autocast
from nasd.worker.tasks.taught import Along, Taught, watched
from nasd.worker.tasks.windows import held_out, of_batches
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import train
from tests.bench.laboratory import in_this_process, quality
from tests.bench.search import say
from tests.bench.standing import share_of_blocks

SHARES = (0.9, 0.75, 0.64, 0.52)  # of the blocks' parameters, at most
NEAR = 0.04  # below such a share a mutant may be
DROPS = 0.15  # of the small steps drop a block, the others narrow a network
SEED, DRAWS = 1, 100_000


@dataclass(frozen=True)
class Row:
    name: str
    share: float
    before: float
    after: float
    seconds: float


class Silence:
    def line(self, **values: Any) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Bench:
    """The data, the model, and how children of it are trained."""

    options: argparse.Namespace
    folder: Path
    config: Config = field(init=False)

    def __post_init__(self) -> None:
        given = self.options
        self.config = _config(given)
        self.device = torch.device(given.device)
        self.ranks = Ranks(0, 1, self.device)
        source = self.config.seed_model.source
        tokenizer = seed.load_tokenizer(source, self.folder)
        made = prepare.caches(self.config.data, self.folder, tokenizer, self.folder, SEED, quiet)
        assert made.qa is not None
        self.cache = Path(made.qa)
        self.train = QaFeatures.load(self.cache / "train")
        self.test = QaFeatures.load(self.cache / "test")
        self.unseen = held_out(len(self.train), SEED)
        self.windows = of_batches(self.train, SEED, self.unseen)
        self.asked = prepare.test_questions(self.cache)
        described = seed.describe(source, self.folder)
        self.baseline, self.backbone = described.baseline, described.backbone

    def model(self) -> QuestionAnswering:
        return seed.load_with_head(
            QuestionAnswering, self.config.seed_model.source, self.folder, dropout=0.0
        )

    def share(self, genotype: Genotype) -> float:
        return share_of_blocks(genotype, self.baseline, self.backbone)

    def quality(self, model: QuestionAnswering) -> float:
        task = QaTask(model.to(self.device).eval(), self.test, self.test, packs=True)
        data = questions(self.config.data)
        return quality(task, self.asked, data, self.ranks, self.options.precision)

    def trained(self, name: str, model: QuestionAnswering, share: float, rounds: int) -> Row:
        """rounds: how often its ancestors were trained before."""
        before, began = self.quality(model), time.monotonic()
        task: Any = QaTask.load(model.train(), self.cache, packs=True, without=self.unseen)
        teacher = Teacher(share=self.options.teacher, match=tuple(self.options.match))
        if teacher.share:
            along = Along(self.model().to(self.device), watched(teacher))
            task = Taught(task, teacher, along)
        run = in_this_process(
            *(self.folder, Silence()),
            seed=SEED,
            precision=self.options.precision,
            rounds=rounds,
        )
        train(task, self.stage, self.ranks, run)
        seconds = time.monotonic() - began
        row = Row(name, share, before, self.quality(model), seconds)
        say(f"  {name}, {share:.2f} of the blocks: {row.before:.1f} to {row.after:.1f}")
        return row

    @property
    def stage(self) -> Stage:
        found = next(stage for stage in self.config.stages if stage.name == "finetune")
        given = self.options
        return found.model_copy(
            update={
                "epochs": given.epochs,
                "learning_rate": given.learning_rate,
                "batch": given.batch,
                "evaluations": 1,
            }
        )

    def smaller(
        self, parent: QuestionAnswering, genotype: Genotype, most: float, rng: random.Random
    ) -> tuple[QuestionAnswering, Genotype]:
        """Of some mutants with about that share of the blocks, the one that loses least."""
        trace = Trace(parent.cpu().eval().encoder, self.windows)
        unseen = self.train.take(self.unseen)
        best: tuple[float, QuestionAnswering, Genotype] | None = None
        for draft in self._drafts(genotype, most, rng):
            child = draft.genotype
            lineage = informed(child, draft.lineage, [genotype])
            still = torch.Generator().manual_seed(SEED)
            model = born(child, lineage, [parent], still, self.windows, traces=[trace])
            task = QaTask(model.to(self.device).eval(), unseen, unseen, packs=True)
            with torch.no_grad(), autocast(self.options.precision, self.device):
                loss = task.evaluate(self.ranks, EVALUATION_BATCH, quiet)["loss"]
            if best is None or loss < best[0]:
                best = loss, model.cpu(), child
        assert best is not None
        return best[1], best[2]

    def _drafts(self, genotype: Genotype, most: float, rng: random.Random) -> list[Draft]:
        """Raises NasdError where small steps do not lead there."""
        found: list[Draft] = []
        for _ in range(DRAWS):
            draft = Draft.of([genotype])
            while self.share(draft.genotype) > most:
                if rng.random() < DROPS:
                    done = block_removed(draft, self.config.search_space, rng)
                else:
                    done = grown_or_shrunk(draft, self.config.search_space, rng, up=False)
                if not done:
                    break
            if most - NEAR <= self.share(draft.genotype) <= most:
                found.append(draft)
                if len(found) == self.options.mutants:
                    return found
        raise NasdError(f"--shares {most:g}: too few mutants of {genotype} are so large")

    def through(self) -> list[Row]:
        rows, rng = [], random.Random(SEED)
        control = self.model()
        for rounds, _ in enumerate(self.options.shares):
            rows.append(self.trained(f"control, {rounds + 1} x", control, 1.0, rounds))
        model, genotype = self.model(), self.baseline
        for rounds, most in enumerate(self.options.shares):
            model, genotype = self.smaller(model, genotype, most, rng)
            name = f"step {rounds + 1}"
            rows.append(self.trained(name, model, self.share(genotype), rounds))
        return rows


def _config(given: argparse.Namespace) -> Config:
    import tomllib

    data = tomllib.loads(preset_text("minilm"))
    data["seed_model"]["source"] = str(given.model.resolve())
    data["data"]["qa"]["files"] = [str(given.questions.resolve())]
    return parse(data, "recipe")


def table(rows: Sequence[Row], title: str) -> Table:
    made = Table(title=title)
    for name in ("", "of the blocks", "untrained", "quality", "against the control", "seconds"):
        made.add_column(name, justify="right" if name else "left")
    bar = max(row.after for row in rows if row.share == 1.0)
    for row in rows:
        apart = f"{row.after - bar:+.1f}"
        figures = (f"{row.share:.2f}", f"{row.before:.1f}", f"{row.after:.1f}", apart)
        made.add_row(row.name, *figures, f"{row.seconds:.0f}")
    return made


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench recipe", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a fine-tuned model's folder")
    parser.add_argument("--questions", type=Path, required=True, help="a file as SQuAD's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--mutants", type=int, default=10, help="that are tried for each step")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=float, default=1.0, help="of each step")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--teacher", type=float, default=0.5, help="the model's share of the loss")
    parser.add_argument("--match", nargs="+", default=["logits"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    # As in a worker: cuDNN's attention plans anew for each shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as folder:
        try:
            rows = Bench(options, Path(folder)).through()
        except NasdError as error:
            sys.exit(f"bin/bench recipe: {error}")
    title = f"{options.epochs:g} epochs at {options.learning_rate:g}, batches of {options.batch}"
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows, title))
