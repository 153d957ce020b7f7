"""What an attempt reads of earlier steps, checked by its digests before the first of it is read.

What can be made again is: a cache from its sources, the seed's weights from the seed. Any other
damage is the machine's fault: Damaged names the file, and the search halts if it stays.
"""

import os
import shutil
from pathlib import Path

from nasd.contract import digests
from nasd.contract.config import PREPARE
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Spec, sync_folder
from nasd.worker import caches, prepare
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import CONFIG
from nasd.worker.tasks import registry, teachers
from nasd.worker.tasks.beginning import reading
from nasd.worker.training.progress import Progress

WEIGHTS = (CONFIG, phenotype.WEIGHTS)
REMEDY = "put it back from a copy, or take a backup of the database from before it was made"


def check(spec: Spec, progress: Progress) -> None:
    """Raises Damaged where something is damaged that cannot be made again; says what was."""
    assert spec.stage is not None and spec.weights is not None
    task = registry.of(spec.stage)
    cache = task.cache(spec)
    try:
        caches.check(task.kind, cache, progress)
    except Damaged as damage:
        _cache_again(spec, cache, damage, progress)
    teacher = None if spec.teacher is None else spec.teacher.weights
    if spec.teacher is not None and spec.teacher.settings.outside:
        teachers.check(spec, progress)
        teacher = None
    seconds = [spec.second_weights, *(one.second_weights for one in spec.mutants)]
    read = [spec.weights, spec.head_weights, *seconds, teacher]
    for weights in map(Path, filter(None, dict.fromkeys(read))):
        try:
            digests.check(weights, WEIGHTS, lambda: progress("checking"), _readable)
        except Damaged as damage:
            if weights.name != PREPARE:
                raise Damaged(damage.path, f"{damage.what}: {REMEDY}") from damage
            _seed_again(spec, weights, damage, progress)


def _readable(weights: Path) -> None:
    with reading(weights):
        phenotype.load_architecture(weights)
        phenotype.load_state(weights)


def _cache_again(spec: Spec, cache: Path, damage: Damaged, progress: Progress) -> None:
    from nasd.worker import trimming

    print(f"{damage}; it is made again", flush=True)
    base = Path(spec.config_folder)
    try:
        tokenizer = trimming.words(spec, progress).tokenizer
        made = prepare.caches(spec.data, base, tokenizer, Path(spec.cache), spec.seed, progress)
        fault = "what it was made of has changed since" if cache not in made else ""
    except NasdError as error:
        fault = str(error)
    if fault:
        what = f"{damage.what}, and cannot be made again: {fault}"
        raise Damaged(damage.path, what) from damage


def _seed_again(spec: Spec, weights: Path, damage: Damaged, progress: Progress) -> None:
    """The seed's weights as they were; they are not replaced by what differs from them."""
    from nasd.worker import trimming

    print(f"{damage}; it is made again from the seed", flush=True)
    made = weights.with_name(f".{weights.name}.{os.getpid()}.tmp")
    damaged = weights.with_name(f".{weights.name}.{os.getpid()}.gone")
    try:
        words = trimming.words(spec, progress)
        labels = prepare.labels_of(spec)
        prepare.convert_seed(spec, words.tokenizer, made, progress, words.kept, labels)
        if not _same(made, weights):
            raise NasdError(f"the seed {spec.source} has changed since")
        if weights.exists():
            weights.rename(damaged)
        made.rename(weights)
        sync_folder(weights.parent)
    except (NasdError, OSError) as error:
        what = f"{damage.what}, and cannot be made again from the seed ({error}): {REMEDY}"
        raise Damaged(damage.path, what) from damage
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


def _same(made: Path, weights: Path) -> bool:
    """Whether the model is the one that was there, as far as its digests are known."""
    try:
        known = digests.noted(weights)
    except Damaged:
        return True
    now = digests.noted(made)
    return all(known.get(name, now[name]) == now[name] for name in WEIGHTS)
