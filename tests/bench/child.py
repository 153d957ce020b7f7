"""`bin/bench child`: what one child is worth at the same seconds of training, with two FFNs halved
and half the heads in one block: drawn anew where it differs, as the thesis does it, or with what
its parent knows. Beside them the parent itself, trained as long.

Seconds are the processor's, of the workers; those of the parent's own fine-tuning, which the
thesis's way makes no use of, stand in a row of their own.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, BlockLineage, Genotype, Lineage, unchanged
from nasd.search.variation.keeping import informed
from nasd.worker.model import phenotype
from nasd.worker.model.inherit import born
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.windows import of_batches
from tests.bench.laboratory import Judge, Laboratory, overhead, pace_of
from tests.bench.search import say
from tests.bench.standing import share_of_blocks
from tests.bench.worlds import WORLDS

PARTS = (1.0, 1 / 3)  # of the seconds that the thesis's way takes


@dataclass(frozen=True)
class Row:
    name: str
    seconds: float
    quality: float


def changed(baseline: Genotype) -> tuple[Genotype, Lineage]:
    """The child, with its lineage as the thesis has it: two FFNs halved around a block with half
    the heads."""
    middle = max(1, len(baseline.blocks) // 2 - 1)
    blocks, lines = list(baseline.blocks), list(unchanged(baseline))
    for index in (middle - 1, middle + 1):
        blocks[index] = _halved(blocks[index])
        lines[index] = BlockLineage.of(index, False, ["altered"] * len(blocks[index].ffns))
    blocks[middle] = replace(blocks[middle], heads=blocks[middle].heads // 2)
    lines[middle] = BlockLineage.of(middle, True, ["kept"] * len(blocks[middle].ffns))
    return Genotype(tuple(blocks)), tuple(lines)


def _halved(block: Block) -> Block:
    ffns = [replace(ffn, sizes=tuple(size // 2 for size in ffn.sizes)) for ffn in block.ffns]
    return replace(block, ffns=tuple(ffns))


def fresh(lab: Laboratory, judge: Judge, genotype: Genotype, lineage: Lineage) -> Row:
    """Through the whole ladder of the preset, from the seed as a masked language model."""
    weights = lab.seed_weights
    if not lab.prepared.has_mlm_head:
        weights = lab.attempt(lab.stage("pretrain_head"), weights).result
    first = lab.attempt(
        *(lab.stage("pretrain_0"), weights, genotype, lineage),
        candidate=1,
        fixed_masks=lab.prepared.fixed_masks,
    )
    second = lab.attempt(lab.stage("pretrain_1"), first.result, genotype, candidate=1)
    last = lab.attempt(lab.stage("finetune"), second.result, genotype, candidate=1)
    seconds = first.seconds + second.seconds + last.seconds
    return Row("drawn anew, the preset's ladder", seconds, judge(last.result))


def rows(lab: Laboratory, judge: Judge) -> list[Row]:
    genotype, drawn = changed(lab.baseline)
    found = [Row("the parent", lab.begin.seconds, judge(lab.begin.result))]
    told(found)
    found.append(fresh(lab, judge, genotype, drawn))
    told(found)
    lineage = informed(genotype, drawn, [lab.baseline])
    windows = of_batches(QaFeatures.load(Path(lab.prepared.qa_cache) / "train"), lab.number)
    model = born(genotype, lineage, [lab.answering()], torch.Generator().manual_seed(0), windows)
    phenotype.save(model, lab.folder / "born")
    found.append(Row("with what its parent knows, untrained", 0.0, judge(lab.folder / "born")))
    told(found)
    stage, beside = lab.stage("train_on"), overhead(lab)
    paces = {"child": pace_of(lab, model, stage), "parent": pace_of(lab, lab.answering(), stage)}
    for name, part in [("child", part) for part in PARTS] + [("parent", 1.0)]:
        seconds = part * found[1].seconds
        epochs = paces[name].epochs(seconds - beside, stage, lab.examples)
        longer = stage.model_copy(update={"epochs": epochs})
        if name == "child":
            done = lab.attempt(longer, lab.begin.result, genotype, lineage, candidate=2)
            called = f"with what its parent knows, {part:.2f} of those seconds"
        else:
            done = lab.attempt(longer, lab.begin.result, candidate=2)
            called = "the parent, trained on for those seconds"
        found.append(Row(called, done.seconds, judge(done.result)))
        told(found)
    return found


def told(found: list[Row]) -> None:
    say(f"  {found[-1].name}: {found[-1].quality:.1f} after {found[-1].seconds:.0f} s")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench child", description=__doc__)
    parser.add_argument("--world", choices=tuple(WORLDS), default="minilm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", type=Path, help="a folder with questions (.json) and corpus/")
    parser.add_argument("--folder", type=Path, help="where all of it is kept; else it is removed")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    record: list[dict[str, Any]] = []
    console = Console(width=None if sys.stdout.isatty() else 120)
    with ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="nasd-bench-"))
        )
        try:
            for number in options.seeds:
                say(f"seed {number}")
                place = folder / f"seed-{number}"
                lab = Laboratory(WORLDS[options.world], number, place, options.data)
                found = rows(lab, Judge(lab))
                record.append({"seed": number, "rows": [vars(one) for one in found]})
                share = share_of_blocks(changed(lab.baseline)[0], lab.baseline, lab.backbone)
                made = Table(title=f"{options.world}, seed {number}: {share:.2f} of the blocks")
                for name in ("", "seconds of training", "quality"):
                    made.add_column(name, justify="right" if name else "left")
                for one in found:
                    made.add_row(one.name, f"{one.seconds:.0f}", f"{one.quality:.1f}")
                console.print(made)
        except NasdError as error:
            sys.exit(f"bin/bench child: {error}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))
