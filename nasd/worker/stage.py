"""From a spec to an outcome: what each kind of stage does with its model and its task."""

import json
import math
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nasd.contract import digests
from nasd.contract.config import Stage
from nasd.contract.genotype import BlockLineage, Genotype, ranks_any
from nasd.contract.protocol import AttemptFolder, Outcome, Prepared, Spec, write_atomically
from nasd.contract.ranks import RENDEZVOUS_VARIABLE
from nasd.contract.schedule import halved, share_of
from nasd.contract.streams import stream_seed
from nasd.worker import inputs
from nasd.worker.model import phenotype
from nasd.worker.tasks.task import EVALUATION_BATCH, Ranks, Task, autocast
from nasd.worker.training.allocator import keep_freed_memory
from nasd.worker.training.compilation import Compilation, why_not
from nasd.worker.training.micro_batch import Memory, TrialGpu, Trials, no_memory
from nasd.worker.training.progress import DOWNLOAD, LONG, Pulse
from nasd.worker.training.stop import Stopped, StopRequest
from nasd.worker.training.train import (
    Curves,
    Diverged,
    MetricsFile,
    NoMetrics,
    Recorder,
    Run,
    freeze,
    train,
)

# A peer that hangs must not hang the others for the library's default of up to half an hour. The
# longest that they wait for rank 0 while it works alone is a checkpoint, or decoding and scoring:
# seconds for the 17,500 test questions of SQuAD.
LEAST_GROUP_MINUTES = 10.0
LOOK_SECONDS = 0.02  # between two looks at whether the first rank is done
HEAD_WIDTH = 8  # of which fused attention on variable lengths takes multiples


def join(spec: Spec) -> Ranks:
    """Takes this rank's place, on the device that the launcher left visible."""
    torch.set_num_threads(spec.threads)
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), _device(spec))
    if ranks.world > 1:  # one alone needs no group, which opens a socket
        _meet(ranks, timedelta(minutes=max(LEAST_GROUP_MINUTES, spec.stall_minutes)))
    return ranks


def _device(spec: Spec) -> torch.device:
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = spec.precision != "float32"
        return device
    keep_freed_memory()
    return torch.device("cpu")


def _meet(ranks: Ranks, timeout: timedelta) -> None:
    """Joins the attempt's process group. All that goes through it is numbers: whoever comes to
    answer for a peer can spoil them, and run nothing."""
    store = dist.FileStore(os.environ[RENDEZVOUS_VARIABLE], ranks.world)  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    on_gpu = ranks.device.type == "cuda"
    dist.init_process_group(
        # Flags and counts travel through the CPU, gradients through NCCL.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        timeout=timeout,
        store=store,
        rank=ranks.rank,
        world_size=ranks.world,
        device_id=ranks.device if on_gpu else None,
    )


def _with_precision(spec: Spec, ranks: Ranks) -> Spec:
    """The spec with a precision that the device computes in, and a line where it is another."""
    if spec.precision == "bfloat16" and not has_bfloat16(ranks.device):
        if ranks.first:
            print(
                f'slots.precision: "bfloat16" would only be emulated on this {ranks.device.type},'
                " so this attempt computes in float32",
                flush=True,
            )
        return spec.model_copy(update={"precision": "float32"})
    return spec


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself; emulated, they take many times as
    long as float32's."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # avx512_bf16, amx_bf16, sve_bf16 and the like
    return any("bf16" in name and has for name, has in torch.cpu.get_capabilities().items())


def run(spec: Spec, folder: AttemptFolder, ranks: Ranks, stop: StopRequest) -> Outcome:
    """Does the attempt. A fault of the candidate is an outcome, any other raises."""
    trains = spec.stage is not None and spec.stage.train != "none"
    pulse = Pulse(folder.heartbeat, ranks.first, None if trains else stop)
    spec = _with_precision(spec, ranks)
    began = time.monotonic()
    result = folder.result
    try:
        pulse("starting")
        if spec.stage is not None:
            _check_inputs(spec, folder, ranks, stop, pulse)
        if spec.stage is None:
            outcome = _prepare(spec, result, pulse)
        elif spec.stage.train == "none":
            outcome = _evaluate(spec, spec.stage, result, ranks, pulse)
        else:
            outcome = _train(spec, spec.stage, folder, ranks, stop, pulse)
        if ranks.first and outcome.has_result and not digests.sealed(result):
            digests.seal(result)
    except Diverged as reason:
        outcome = Outcome(verdict="diverged", message=str(reason))
    except Stopped as reason:
        outcome = Outcome(verdict="stopped", message=str(reason))
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if spec.stage is None or not no_memory(error):
            raise
        message = f"{_size(spec, spec.stage, ranks)}: {error}".splitlines()[0][:500]
        outcome = Outcome(verdict="out_of_memory", message=message)
    return outcome.model_copy(update={"seconds": time.monotonic() - began})


def _check_inputs(
    spec: Spec, folder: AttemptFolder, ranks: Ranks, stop: StopRequest, pulse: Pulse
) -> None:
    """The first rank looks, and the others wait for its word by no collective's time-out: what is
    damaged may take as long to make again as it took to make."""

    def progress(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
        if stop.asked:
            raise Stopped("asked to stop before the first step")
        pulse(doing, step, steps, patience=patience)

    if ranks.first:
        inputs.check(spec, progress)
        folder.checked.touch()
    while not folder.checked.exists():
        progress("waiting")
        time.sleep(LOOK_SECONDS)


def _size(spec: Spec, stage: Stage, ranks: Ranks) -> str:
    """How much was worked on at a time when memory ran out."""
    evaluation = halved(EVALUATION_BATCH, spec.halvings)
    if stage.train == "none":
        return f"at a batch of {evaluation}"
    micro = halved(share_of(stage, ranks.world), spec.halvings)
    return f"at a micro-batch of {micro} at most (in evaluations {evaluation})"


def _prepare(spec: Spec, result: Path, pulse: Pulse) -> Outcome:
    from nasd.worker import prepare
    from nasd.worker.model import seed

    base = Path(spec.config_folder)
    pulse("downloading", patience=DOWNLOAD)
    tokenizer = seed.load_tokenizer(spec.source, base)
    mlm, qa = prepare.caches(spec.data, base, tokenizer, Path(spec.cache), spec.seed, pulse)
    model, has_head = prepare.convert_seed(
        spec.source, base, spec.dropout, tokenizer, result, pulse
    )
    counts = prepare.counts(mlm, qa)
    prepared = Prepared(
        mlm_cache=str(mlm),
        qa_cache=str(qa),
        has_mlm_head=has_head,
        parameters=sum(p.numel() for p in model.encoder.parameters()),
        fixed_masks=_fixes_masks(spec, counts["mlm_train_sequences"], model.architecture.width),
        **counts,
    )
    return Outcome(verdict="succeeded", has_result=True, prepared=prepared)


def _fixes_masks(spec: Spec, sequences: int, width: int) -> bool:
    """Whether each sequence keeps its masks while only new modules train, so that the activations
    below them can be kept. Decided once, as it changes what is learned."""
    from nasd.worker.training.activations import GB, size_of

    wanted = spec.data.mlm.fixed_masks
    size = size_of(sequences, spec.data.mlm.tokens, width) / GB
    fits = size <= spec.activation_cache_gb
    fixed = fits if wanted == "auto" else wanted
    why = f"as data.mlm.fixed_masks says: {'yes' if wanted else 'no'}"
    if wanted == "auto":
        why = (
            f"as the corpus's activations, {size:.2f} GB, {'' if fits else 'do not '}fit into"
            f" daemon.activation_cache_gb, {spec.activation_cache_gb:g} GB"
        )
    kept = "are drawn once a sequence" if fixed else "are drawn anew in every epoch"
    print(f"masks {kept} where only new modules train, {why}", flush=True)
    return fixed


def _train(
    spec: Spec, stage: Stage, folder: AttemptFolder, ranks: Ranks, stop: StopRequest, pulse: Pulse
) -> Outcome:
    pulse("loading", patience=LONG)
    task = _task(spec, stage, ranks)
    _share_activations(task, spec, stage, ranks, stop, pulse)

    def open_recorder(step: int) -> Recorder:
        if not ranks.first:
            return NoMetrics()
        curves = Curves(Path(spec.tensorboard), stage.task, spec.first_step, spec.shared_curve)
        return MetricsFile(folder.metrics, curves, step)

    cache = Path(spec.cache)
    gpu = ranks.device.type == "cuda"
    settings = Run(
        seed=spec.seed,
        candidate=spec.candidate,
        precision=spec.precision,
        checkpoint_seconds=60 * spec.checkpoint_minutes,
        log_steps=spec.log_steps,
        halvings=spec.halvings,
        checkpoints=folder.checkpoints,
        resume=tuple(map(Path, spec.resume)),
        open_recorder=open_recorder,
        stop=stop,
        progress=pulse,
        trials=Trials(TrialGpu(ranks.device), Memory(cache)) if gpu else None,
        compilation=_compilation(task, spec, stage, ranks, cache),
    )
    try:
        result = train(task, stage, ranks, settings)
    except RuntimeError as error:
        if settings.trials is not None and no_memory(error):
            settings.trials.too_large(settings.say)
        raise
    if ranks.first:
        pulse("saving", result.steps, result.steps, patience=LONG)
        phenotype.save(task.model, folder.result)
    return Outcome(
        verdict="succeeded",
        metrics=result.metrics,
        curve=result.curve,
        steps=result.steps,
        has_result=True,
    )


def _compilation(
    task: Task, spec: Spec, stage: Stage, ranks: Ranks, cache: Path
) -> Compilation | None:
    """Left to itself, only where a GPU sees the same shape at every step: on a CPU it gains little,
    and questions differ in length, for which there is packing."""
    fits = ranks.device.type == "cuda" and stage.task == "mlm"
    if spec.compile is False or (spec.compile == "auto" and not fits):
        return None
    reason = why_not(ranks.device, task.model.encoder)
    if reason is not None:
        if ranks.first:
            print(f"slots.compile: not compiled, as {reason}", flush=True)
        return None
    return Compilation(task.model.encoder, cache, forced=spec.compile is True)


def _share_activations(
    task: Task, spec: Spec, stage: Stage, ranks: Ranks, stop: StopRequest, pulse: Pulse
) -> None:
    from nasd.worker.tasks.mlm import MlmTask
    from nasd.worker.training import activations

    assert stage.epochs is not None
    if not isinstance(task, MlmTask) or task.mask_seed is None:
        return
    task.model.to(ranks.device)
    freeze(task)
    task.known = activations.known(
        task,
        corpus=Path(spec.mlm_cache).name,
        epochs=stage.epochs,
        precision=spec.precision,
        shelf=activations.Shelf(
            Path(spec.cache), spec.activation_cache_gb * activations.GB, spec.attempt
        ),
        ranks=ranks,
        stop=stop,
        progress=pulse,
        say=lambda text: print(text, flush=True),
    )


def _task(spec: Spec, stage: Stage, ranks: Ranks) -> Task:
    from nasd.worker.tasks.corpus import MlmCorpus
    from nasd.worker.tasks.mlm import MlmTask
    from nasd.worker.tasks.qa import QaTask

    assert spec.weights is not None
    weights = Path(spec.weights)
    # Named by the architecture's place in the search, so that a retry draws the same weights.
    fresh = torch.Generator().manual_seed(
        stream_seed(spec.seed, spec.candidate, f"initialise/{stage.name}")
    )
    if stage.task == "qa":
        if spec.inherits:
            answering = _born(spec, phenotype.QuestionAnswering, fresh)
        else:
            with inputs.reading(weights):
                answering = phenotype.load_for_answering(weights, fresh, spec.dropout)
        packs = _packs(spec, answering.architecture, ranks)
        return QaTask.load(answering, Path(spec.qa_cache), packs)
    lineage = tuple(BlockLineage.from_json(block) for block in spec.lineage)
    if spec.inherits:
        model = _born(spec, phenotype.MaskedLM, fresh)
    else:
        with inputs.reading(weights):
            model = phenotype.load(phenotype.MaskedLM, weights, spec.dropout)
    match stage.train:
        case "all":
            trains = {name for name, _ in model.named_parameters()}
        case "head":
            trains = {name for name, _ in model.named_parameters() if name.startswith("head.")}
        case _:
            from nasd.worker.model.inherit import new_parameters

            trains = new_parameters(model, lineage)
    corpus = MlmCorpus.load(Path(spec.mlm_cache))
    fixed = stream_seed(spec.seed, 0, "masks") if spec.fixed_masks else None
    return MlmTask(model, corpus, spec.data.mlm.mask_share, trains, fixed)


def _born(spec: Spec, kind: type[phenotype.Model], fresh: torch.Generator) -> phenotype.Model:
    """The child, from its parents' weights; what does not go as one would wish is said."""
    from nasd.worker.model.inherit import born
    from nasd.worker.tasks.windows import for_language, for_questions

    lineage = tuple(BlockLineage.from_json(block) for block in spec.lineage)
    folders = [Path(one) for one in (spec.weights, spec.second_weights) if one is not None]
    parents = []
    for folder in folders:
        with inputs.reading(folder):
            parents.append(phenotype.load(kind, folder, spec.dropout))
    seen = None
    if ranks_any(lineage):
        if kind is phenotype.QuestionAnswering:
            seen = for_questions(Path(spec.qa_cache), spec.seed)
        else:
            seen = for_language(Path(spec.mlm_cache), spec.seed)
    began = time.monotonic()
    model = born(Genotype.from_json(spec.genotype), lineage, parents, fresh, seen, print)
    if seen is not None:
        tokens = int(seen.attention_mask.sum())
        taken = time.monotonic() - began
        print(f"born of {len(parents)}, refitted by {tokens} tokens, in {taken:.1f} s", flush=True)
    return model


def _packs(spec: Spec, arch: phenotype.Architecture, ranks: Ranks) -> bool:
    """Whether questions go without padding; says it in a line."""
    if spec.packing == "auto":
        reason = _why_padded(spec, arch, ranks)
        packs = reason is None
    else:
        packs, reason = spec.packing, "slots.packing says so"
    if ranks.first:
        how = "packed, so that nothing is computed for padding" if packs else "padded"
        print(f"questions are {how}" + (f": {reason}" if reason else ""), flush=True)
    return packs


def _why_padded(spec: Spec, arch: phenotype.Architecture, ranks: Ranks) -> str | None:
    """A CPU attends to one example after the other, and loses nothing by it. What is fast without
    padding on a GPU knows no float32, and only heads of some widths; else torch would take example
    by example there, and wait for each."""
    if ranks.device.type != "cuda":
        return None
    if spec.precision != "bfloat16":
        return f"there is no fast attention without it in {spec.precision}"
    widths = {arch.width // block.heads for block in arch.blocks}
    unfit = sorted(width for width in widths if width % HEAD_WIDTH)
    if unfit:
        return f"there are attention heads {unfit[0]} wide, which is no multiple of {HEAD_WIDTH}"
    return None


def _evaluate(spec: Spec, stage: Stage, result: Path, ranks: Ranks, pulse: Pulse) -> Outcome:
    from nasd.worker.prepare import test_questions
    from nasd.worker.tasks.metrics import squad_scores
    from nasd.worker.tasks.qa import QaTask

    assert spec.weights is not None and stage.task == "qa"
    pulse("loading", patience=LONG)
    with inputs.reading(Path(spec.weights)):
        model = phenotype.load(phenotype.QuestionAnswering, Path(spec.weights), spec.dropout)
    model.to(ranks.device).eval()
    task = QaTask.load(model, Path(spec.qa_cache), _packs(spec, model.architecture, ranks))
    questions = test_questions(Path(spec.qa_cache))
    batch = halved(EVALUATION_BATCH, spec.halvings)
    with autocast(spec.precision, ranks.device):
        # In this order: the other ranks do not wait while the first one decodes.
        loss = task.evaluate(ranks, batch, pulse)["loss"]
        answers = task.predict(questions, spec.data.qa, ranks, batch, pulse)
    if not math.isfinite(loss):
        raise Diverged(f"the evaluation loss is {loss}")
    if not ranks.first:
        return Outcome(verdict="succeeded")
    result.mkdir(exist_ok=True)

    write_atomically(result / "predictions.json", json.dumps(answers, indent=0).encode())
    pulse("scoring", patience=LONG)  # a slow import, and nothing to be heard of the rest
    scores = squad_scores(answers, questions)
    return Outcome(
        verdict="succeeded",
        metrics={"loss": loss, "exact_match": scores["exact_match"], "f1": scores["f1"]},
        has_result=True,
    )
