"""`bin/bench quality`: whether speed costs quality.

The same candidates are trained in two ways, each from several seeds. The slow way is what anyone
would write: every logit, float32, dropout everywhere, masks drawn anew, every gradient (of which
phase 0 then applies a part), questions in random order and padded to the full length. The fast way
is nasd's. Then the evaluation losses of both are compared with the noise between seeds, and the
cutoffs with each other.

Before that the seed is trained as a masked language model for a while: a search starts from one
that is, and only there do candidates differ by what was done to them.
"""

import argparse
import itertools
import json
import platform
import random
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nasd.contract import tasks
from nasd.contract.config import Config, Stage, parse
from nasd.contract.genotype import Genotype, Lineage
from nasd.contract.schedule import Schedule
from nasd.contract.streams import stream_seed
from nasd.presets import preset_text
from nasd.search.variation.breeding import mutate
from nasd.worker import prepare
from nasd.worker.model import phenotype, seed
from nasd.worker.model.inherit import inherit, new_parameters
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks, Task
from nasd.worker.training import activations
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import Run, freeze, train

DROPOUT = 0.1
EVALUATION_BATCH = 32
SEQUENCES = 2048
WARM_BATCH = 32
WARM_RATE = 5e-4
Losses = dict[str, float]  # by stage
ALONE = Ranks(0, 1, torch.device("cpu"))


class Never:
    asked = False


class Silent:
    def line(self, **values: Any) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Candidate:
    genotype: Genotype
    lineage: Lineage


@dataclass
class Laboratory:
    """Prepared data, the seed as a trained masked language model, and the stages to compare."""

    config: Config
    folder: Path
    mlm: Path
    qa: Path
    start: Path  # the seed's weights

    def corpus(self) -> MlmCorpus:
        """What candidates are trained on: so much that the fast way can cache it all."""
        whole = MlmCorpus.load(self.mlm)
        return replace(whole, train=whole.train[:SEQUENCES])

    def stage(self, name: str, steps: int, examples: int, batch: int) -> Stage:
        """The preset's, but that its rate of learning follows the batch (Goyal et al. 2017)."""
        found = next(stage for stage in self.config.stages if stage.name == name)
        assert found.learning_rate is not None
        update = {
            "epochs": steps / (examples // batch),
            "batch": batch,
            "learning_rate": found.learning_rate * batch / found.batch,
            "evaluations": 1,
        }
        return found.model_copy(update=update)


def laboratory(options: argparse.Namespace, folder: Path) -> Laboratory:
    data = tomllib.loads(preset_text("minilm-thesis"))
    data["data"]["mlm"] |= {
        "corpora": [{"files": [str(path) for path in options.corpus]}],
        "tokens": options.tokens,
        "max_sequences": options.sequences,
        "evaluation_sequences": 128,
    }
    data["data"]["qa"]["files"] = [str(options.questions)]
    config = parse(data, "minilm")
    source = config.seed_model.source
    tokenizer = seed.load_tokenizer(source, folder)
    made = prepare.caches(config.data, folder, tokenizer, folder, 1, quiet)
    mlm, questions = made.mlm, made.qa
    assert mlm is not None and questions is not None
    model, _ = seed.load_seed(source, folder, DROPOUT)
    one = Laboratory(config, folder, mlm, questions, folder / "start")
    if one.start.exists():
        return one
    every = {name for name, _ in model.named_parameters()}
    head = {name for name in every if name.startswith("head.")}
    for name, names, steps, rate in (
        ("pretrain_head", head, options.head_steps, None),
        ("pretrain_1", every, options.warm_steps, WARM_RATE),
    ):
        task = MlmTask(model, MlmCorpus.load(mlm), config.data.mlm.mask_share, names)
        stage = one.stage(name, steps, task.train_size, WARM_BATCH)
        stage = stage.model_copy(update={"learning_rate": rate or stage.learning_rate})
        train(task, stage, ALONE, _run(folder / name, 0, "bfloat16"))
        print(f"the seed behind {steps} steps of {name}: {loss_of(task):.4f}", file=sys.stderr)
    phenotype.save(model, one.start)
    return one


def _run(folder: Path, number: int, precision: str) -> Run:
    return Run(
        seed=number,
        candidate=0,
        precision=precision,
        checkpoint_seconds=1e9,
        log_steps=10,
        checkpoints=folder / "checkpoints",
        resume=(),
        open_recorder=lambda step: Silent(),
        stop=Never(),  # type: ignore[arg-type]
        progress=quiet,
        say=lambda text: None,
    )


def candidates(lab: Laboratory, count: int) -> list[Candidate]:
    baseline = seed.describe(lab.config.seed_model.source, lab.folder).baseline
    draw = random.Random(7)
    found: dict[str, Candidate] = {}
    while len(found) < count:
        rates = lab.config.variation.offspring  # cutoffs are for those
        genotype, lineage = mutate(baseline, baseline, lab.config.search_space, rates, draw)
        if genotype.hash != baseline.hash:
            found[genotype.hash] = Candidate(genotype, lineage)
    return list(found.values())


# --- the two ways ---------------------------------------------------------------------------


def fast(task: Task, stage: Stage, lab: Laboratory, number: int) -> None:
    """As an attempt of nasd's does it, with everything that makes it fast."""
    folder = lab.folder / "fast"
    if isinstance(task, MlmTask) and stage.train == "new":
        freeze(task)
        task.known = activations.known(
            task,
            corpus=f"{lab.mlm.name}-{SEQUENCES}",
            epochs=2.0,  # worth it or not: what is compared is its result
            precision="bfloat16",
            shelf=activations.Shelf(lab.folder, 4 * activations.GB, 1),
            ranks=ALONE,
            stop=Never(),  # type: ignore[arg-type]
            progress=quiet,
            say=lambda text: None,
        )
    train(task, stage, ALONE, _run(folder, number, "bfloat16"))


def slow(task: Task, stage: Stage, lab: Laboratory, number: int) -> None:
    """As anyone would write it."""
    model, names = task.model.train(), task.trainable()
    schedule = Schedule.of(stage, task.train_size)
    moved = [p for name, p in model.named_parameters() if name in names]
    groups = [
        {"params": [p for p in moved if p.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in moved if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    order = np.random.default_rng(stream_seed(number, 0, f"order/{stage.name}"))
    torch.manual_seed(stream_seed(number, 0, f"dropout/{stage.name}"))
    queue = np.empty(0, dtype=np.int64)
    for step in range(schedule.steps):
        if len(queue) < schedule.batch:
            queue = order.permutation(task.train_size)
        indices, queue = queue[: schedule.batch], queue[schedule.batch :]
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        model.zero_grad()
        batch = task.batch(indices, stream_seed(number, step, f"masks/{stage.name}"))
        loss = dense(model, batch, lab.config.data.qa.tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(moved, stage.max_grad_norm)
        optimizer.step()


def dense(model: nn.Module, batch: dict[str, Tensor], tokens: int) -> Tensor:
    """The mean loss of a batch, of all logits, and of questions padded to all `tokens`."""
    if "positions" in batch:
        labels = torch.full(batch["input_ids"].shape, -100)
        labels.scatter_(1, batch["positions"], batch["targets"])
        return F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), labels.flatten())
    space = (0, tokens - batch["input_ids"].shape[1])
    mask = F.pad(batch["attention_mask"], space)
    start, end = model(F.pad(batch["input_ids"], space), mask)
    ends = ((start, batch["start"]), (end, batch["end"]))
    losses = [F.cross_entropy(one.masked_fill(mask == 0, -torch.inf), at) for one, at in ends]
    return (losses[0] + losses[1]) / 2


WAYS = {"slow": slow, "fast": fast}


def climb(
    lab: Laboratory, one: Candidate, way: str, number: int, options: argparse.Namespace
) -> Losses:
    """The evaluation loss behind each stage of pre-training, in float32."""
    fresh = torch.Generator().manual_seed(number)
    model = inherit(one.genotype, one.lineage, lab.start, fresh, DROPOUT)
    losses: Losses = {}
    every = {name for name, _ in model.named_parameters()}
    for name, names, steps in (
        ("pretrain_0", new_parameters(model, one.lineage), options.steps),
        ("pretrain_1", every, options.steps // 2),
    ):
        # Fixed masks are part of the fast way, and only where new modules train.
        masks = 11 if (way, name) == ("fast", "pretrain_0") else None
        task = MlmTask(model, lab.corpus(), lab.config.data.mlm.mask_share, names, masks)
        WAYS[way](task, lab.stage(name, steps, task.train_size, options.batch), lab, number)
        losses[name] = loss_of(task)
    return losses


def tune(lab: Laboratory, way: str, number: int, options: argparse.Namespace) -> Losses:
    """The evaluation loss of the seed itself behind fine-tuning, in float32."""
    fresh = torch.Generator().manual_seed(number)
    model = phenotype.load_for_answering(lab.start, fresh, DROPOUT)
    task = QaTask.load(model, lab.qa, packs=way == "fast")
    stage = lab.stage("finetune", options.finetune_steps, task.train_size, options.finetune_batch)
    WAYS[way](task, stage, lab, number)
    return {"finetune": loss_of(task)}


def loss_of(task: Task) -> float:
    task.model.eval()
    known, fixed = getattr(task, "known", None), getattr(task, "mask_seed", None)
    if isinstance(task, MlmTask):
        task.known = task.mask_seed = None
    found = task.evaluate(ALONE, EVALUATION_BATCH, quiet)["loss"]
    if isinstance(task, MlmTask):
        task.known, task.mask_seed = known, fixed
    return found


# --- what came of it ------------------------------------------------------------------------

Found = dict[str, dict[str, list[list[float]]]]  # stage, way: [candidates][seeds]


def noise(slow_losses: list[list[float]], fast_losses: list[list[float]]) -> float:
    """The standard deviation between seeds of one candidate's loss, pooled over all."""
    variances = [statistics.variance(seeds) for seeds in (*slow_losses, *fast_losses)]
    return statistics.mean(variances) ** 0.5


def kept(losses: list[float]) -> set[int]:
    """The half that a cutoff keeps."""
    order = sorted(range(len(losses)), key=lambda index: losses[index])
    return set(order[: (len(losses) + 1) // 2])


def judge(found: Found) -> dict[str, Any]:
    """For each stage the mean difference (fast - slow) with its standard error and the noise, and
    for the cutoff behind pretrain_0 which halves are kept."""
    verdict: dict[str, Any] = {}
    for stage, ways in found.items():
        differences = [
            statistics.mean(fast_) - statistics.mean(slow_)
            for slow_, fast_ in zip(ways["slow"], ways["fast"], strict=True)
        ]
        spread = noise(ways["slow"], ways["fast"])
        seeds = len(ways["slow"][0])
        verdict[stage] = {
            "difference": statistics.mean(differences),
            "standard_error": spread * (2 / seeds / len(differences)) ** 0.5,
            "noise": spread,
        }
    if "pretrain_0" in found:
        verdict["cutoff"] = judge_cutoff(found["pretrain_0"], verdict["pretrain_0"]["noise"])
    return verdict


def judge_cutoff(losses: dict[str, list[list[float]]], spread: float) -> dict[str, Any]:
    """Which half each way keeps, and in which order the ways put those pairs of candidates that
    the noise leaves apart: by the slow way further than twice its standard deviation."""
    means = {way: [statistics.mean(seeds) for seeds in losses[way]] for way in WAYS}
    halves = {way: kept(means[way]) for way in WAYS}
    numbers = range(len(losses["slow"][0]))
    by_seed = {way: [kept([one[n] for one in losses[way]]) for n in numbers] for way in WAYS}
    pairs = list(itertools.combinations(range(len(means["slow"])), 2))
    gaps = [[means[way][one] - means[way][other] for way in WAYS] for one, other in pairs]
    apart = [(slow_, fast_) for slow_, fast_ in gaps if abs(slow_) > 2 * spread]
    return {
        "kept": {way: sorted(half) for way, half in halves.items()},
        "same": halves["slow"] == halves["fast"],
        "by_seed": {way: [sorted(half) for half in found] for way, found in by_seed.items()},
        "pairs": len(pairs),
        "pairs_apart": len(apart),
        "ordered_alike": sum(slow_ * fast_ > 0 for slow_, fast_ in apart),
    }


def show(found: Found, verdict: dict[str, Any], seconds: dict[str, float]) -> None:
    console = Console()
    table = Table(title="evaluation loss, mean (standard deviation between seeds)")
    for name in ("stage", "candidate", "slow", "fast", "fast - slow"):
        table.add_column(name, justify="right" if name != "stage" else "left")
    for stage, ways in found.items():
        for index, (slow_, fast_) in enumerate(zip(ways["slow"], ways["fast"], strict=True)):
            cells = [
                f"{statistics.mean(x):.4f} ({statistics.stdev(x):.4f})" for x in (slow_, fast_)
            ]
            gap = statistics.mean(fast_) - statistics.mean(slow_)
            who = "seed" if stage == "finetune" else str(index)
            table.add_row(stage, who, *cells, f"{gap:+.4f}")
    console.print(table)
    for stage in found:
        one = verdict[stage]
        console.print(
            f"{stage}: fast - slow = {one['difference']:+.4f} ± {one['standard_error']:.4f}"
            f" (noise between seeds {one['noise']:.4f})"
        )
    if (cut := verdict.get("cutoff")) is not None:
        same = "the same half" if cut["same"] else "not the same half"
        console.print(
            f"cutoff keeps {same}: slow {cut['kept']['slow']}, fast {cut['kept']['fast']}"
        )
        for way, sets in cut["by_seed"].items():
            console.print(f"  by seed, {way}: {sets}")
        console.print(
            f"of {cut['pairs']} pairs of candidates the noise leaves {cut['pairs_apart']} apart;"
            f" both ways order {cut['ordered_alike']} of them alike"
        )
    console.print(f"seconds in all: slow {seconds['slow']:.0f}, fast {seconds['fast']:.0f}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench quality", description=__doc__)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--questions", type=Path, required=True, help="in SQuAD's JSON form")
    parser.add_argument("--candidates", type=int, default=6, help="0: only fine-tune the seed")
    parser.add_argument("--seeds", type=int, default=2, help="of each candidate and way")
    parser.add_argument("--steps", type=int, default=60, help="of pretrain_0; half in pretrain_1")
    parser.add_argument("--head-steps", type=int, default=60, help="before all, of the MLM head")
    parser.add_argument("--warm-steps", type=int, default=600, help="then, of the whole seed")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=40_000, help="that the seed is shown")
    parser.add_argument("--finetune-steps", type=int, default=75, help="0: no fine-tuning")
    parser.add_argument("--finetune-batch", type=int, default=16, help="questions of a step")
    parser.add_argument("--finetune-seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps the data and the trained seed here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if min(options.seeds, options.finetune_seeds) < 2 or options.candidates == 1:
        sys.exit("bin/bench quality: noise takes 2 seeds or more, a cutoff 2 candidates or more")
    torch.set_num_threads(options.threads)
    tasks.SAMPLED = 192  # of the test part, for the time it takes
    seconds = dict.fromkeys(WAYS, 0.0)
    found: Found = {}

    def note(what: str, way: str, index: int, number: int, do: Callable[[], Losses]) -> None:
        began = time.perf_counter()
        losses = do()
        seconds[way] += time.perf_counter() - began
        for stage, loss in losses.items():
            ways = found.setdefault(stage, {way: [] for way in WAYS})
            if number == 0:
                ways[way].append([])
            ways[way][index].append(loss)
        shown = "  ".join(f"{stage} {loss:.4f}" for stage, loss in losses.items())
        print(f"{what}, random seed {number}, {way}: {shown}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        if options.folder is not None:
            options.folder.mkdir(parents=True, exist_ok=True)
        lab = laboratory(options, options.folder or Path(name))
        for index, one in enumerate(candidates(lab, options.candidates)):
            for number, way in itertools.product(range(options.seeds), WAYS):
                do = partial(climb, lab, one, way, number, options)
                note(f"candidate {index}", way, index, number, do)
        if options.finetune_steps:
            for number, way in itertools.product(range(options.finetune_seeds), WAYS):
                note("the seed", way, 0, number, partial(tune, lab, way, number, options))
    verdict = judge(found)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads; torch"
          f" {torch.__version__}")  # fmt: skip
    show(found, verdict, seconds)
    if options.json is not None:
        content = {"found": found, "verdict": verdict, "seconds": seconds}
        options.json.write_text(json.dumps(content, indent=1))
