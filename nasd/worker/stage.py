"""From a spec to an outcome: what each kind of stage does with its model and its task."""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nasd.contract import digests, tasks, variables
from nasd.contract.config import Stage
from nasd.contract.labelled import NO_LABELS
from nasd.contract.protocol import AttemptFolder, Outcome, Prepared, Spec, Verdict
from nasd.contract.schedule import EVALUATION_BATCH, halved, share_of
from nasd.worker import inputs
from nasd.worker.devices import has_bfloat16
from nasd.worker.model import phenotype
from nasd.worker.tasks import registry, teachers
from nasd.worker.tasks.task import Ranks, Task
from nasd.worker.tasks.taught import watched
from nasd.worker.training import checkpoint
from nasd.worker.training.allocator import bound_programs, keep_freed_memory, keep_to_share
from nasd.worker.training.compilation import Compilation, why_not
from nasd.worker.training.divergence import Diverged
from nasd.worker.training.micro_batch import Memory, TrialGpu, Trials, no_memory
from nasd.worker.training.progress import LONG, Pulse
from nasd.worker.training.recording import Curves, MetricsFile, NoMetrics, Recorder
from nasd.worker.training.stop import Stopped, StopRequest
from nasd.worker.training.train import (
    Run,
    freeze,
    train,
)

# A peer that hangs must not hang the others for the library's default of up to half an hour. The
# longest that they wait for rank 0 while it works alone is a checkpoint, or decoding and scoring:
# seconds for the 17,500 test questions of SQuAD.
LEAST_GROUP_MINUTES = 10.0
LOOK_SECONDS = 0.02  # between two looks at whether the first rank is done


def join(spec: Spec) -> Ranks:
    """Takes this rank's place, on the device that the launcher left visible."""
    torch.set_num_threads(spec.threads)
    varies = spec.stage is not None and tasks.of(spec.stage.task).varies
    device = device_for(spec.precision, varies, spec.share)
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)
    if ranks.world > 1:  # one alone needs no group, which opens a socket
        _meet(ranks, timedelta(minutes=max(LEAST_GROUP_MINUTES, spec.stall_minutes)))
    return ranks


def device_for(precision: str, varies: bool, share: int = 1) -> torch.device:
    """What the launcher left visible, set up for the work. varies: examples differ in length.
    share: attempts on each GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        if share > 1:
            keep_to_share(device, share)
        torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
        if varies:
            # cuDNN's attention plans anew for each shape: 0.1 s for nearly every batch (H100).
            torch.backends.cuda.enable_cudnn_sdp(False)
        return device
    keep_freed_memory()
    if varies:
        bound_programs()
    return torch.device("cpu")


def _meet(ranks: Ranks, timeout: timedelta) -> None:
    """Joins the attempt's process group. All that goes through it is numbers: whoever comes to
    answer for a peer can spoil them, and run nothing."""
    store = dist.FileStore(os.environ[variables.RENDEZVOUS], ranks.world)  # type: ignore[attr-defined]
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


def run(spec: Spec, folder: AttemptFolder, ranks: Ranks, stop: StopRequest) -> Outcome:
    """Does the attempt. A fault of the candidate is an outcome, any other raises."""
    trains = spec.stage is not None and spec.stage.train != "none" and not spec.mutants
    pulse = Pulse(folder.heartbeat, ranks.first, None if trains else stop)
    spec = _with_precision(spec, ranks)
    began, worked = time.monotonic(), time.process_time()
    result = folder.result
    try:
        pulse("starting")
        if spec.stage is not None:
            _check_inputs(spec, folder, ranks, stop, pulse)
            spec = focused(spec)
        if spec.stage is None:
            outcome = _prepare(spec, result, pulse)
        elif spec.mutants:
            outcome = _screen(spec, spec.stage, ranks, pulse)
        elif spec.stage.train == "none":
            outcome = _evaluate(spec, spec.stage, result, ranks, pulse)
        else:
            outcome = _train(spec, spec.stage, folder, ranks, stop, pulse)
        if ranks.first and outcome.has_result and not digests.sealed(result):
            digests.seal(result)
    except Diverged as reason:
        outcome = Outcome(verdict=Verdict.DIVERGED, message=str(reason))
    except Stopped as reason:
        outcome = Outcome(verdict=Verdict.STOPPED, message=str(reason))
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if spec.stage is None or not no_memory(error):
            raise
        message = f"{_size(spec, spec.stage, ranks)}: {error}".splitlines()[0][:500]
        outcome = Outcome(verdict=Verdict.OUT_OF_MEMORY, message=message)
    seconds, worked = time.monotonic() - began, time.process_time() - worked
    if ranks.first:  # on a busy machine the two are far apart
        print(
            f"{outcome.verdict} after {seconds:.1f} s, {worked:.2f} s of the processor's",
            flush=True,
        )
    return outcome.model_copy(update={"seconds": seconds})


def focused(spec: Spec) -> Spec:
    """The spec with the data of its stage's task alone, where a search has several tasks."""
    assert spec.stage is not None
    return spec.model_copy(update={"data": tasks.focused(spec.data, spec.stage.task)})


def _check_inputs(
    spec: Spec, folder: AttemptFolder, ranks: Ranks, stop: StopRequest, pulse: Pulse
) -> None:
    """The first rank looks, and asks a teacher; the others wait for its word by no collective's
    time-out: what is damaged may take as long to make again as it took to make."""

    def progress(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
        if stop.asked:
            raise Stopped("asked to stop before the first step")
        pulse(doing, step, steps, patience=patience)

    if ranks.first:
        inputs.check(spec, progress)
        assert spec.stage is not None
        registry.ask(focused(spec), spec.stage, ranks, progress)
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
    from nasd.worker import prepare, trimming
    from nasd.worker.tasks.mlm import fixes_masks

    base = Path(spec.config_folder)
    words = trimming.words(spec, pulse)
    made = prepare.caches(spec.data, base, words.tokenizer, Path(spec.cache), spec.seed, pulse)
    counts = prepare.counts(*made)
    labels = prepare.labels_in(next(iter(made.labelled.values()))) if made.labelled else NO_LABELS
    model, has_head = prepare.convert_seed(spec, words.tokenizer, result, pulse, words.kept, labels)
    taught = ""
    if spec.teacher is not None:
        taught = str(teachers.fetch(spec, words.tokenizer, pulse, labels))
    latency = {}
    if spec.profiled is not None:
        from nasd.worker.measure import table

        found = table.known(
            model.architecture, spec.profiled, spec.measure, Path(spec.cache), pulse
        )
        latency = found.to_json()
    prepared = Prepared(
        mlm_cache=str(made.mlm or ""),
        qa_cache=str(made.qa or ""),
        labelled_cache=str(next(iter(made.labelled.values()), "")),
        has_mlm_head=has_head,
        keeps_qa_head=not isinstance(model, phenotype.MaskedLM),
        parameters=(parameters := sum(p.numel() for p in model.encoder.parameters())),
        seed_parameters=parameters
        + (words.known - model.architecture.vocab_size) * model.architecture.width,
        words_lost=words.lost,
        teacher=taught,
        latency=latency,
        fixed_masks=fixes_masks(spec, counts["mlm_train_sequences"], model.architecture.width),
        **counts,
    )
    return Outcome(verdict=Verdict.SUCCEEDED, has_result=True, prepared=prepared)


def _screen(spec: Spec, stage: Stage, ranks: Ranks, pulse: Pulse) -> Outcome:
    from nasd.worker import screening

    pulse("loading", patience=LONG)
    metrics = screening.losses(spec, stage, ranks, pulse)
    return Outcome(verdict=Verdict.SUCCEEDED, metrics=metrics)


def _train(
    spec: Spec, stage: Stage, folder: AttemptFolder, ranks: Ranks, stop: StopRequest, pulse: Pulse
) -> Outcome:
    pulse("loading", patience=LONG)
    task = registry.begin(spec, stage, ranks)
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
        rounds=spec.rounds,
        checkpoints=folder.checkpoints,
        resume=tuple(map(Path, spec.resume)),
        open_recorder=open_recorder,
        stop=stop,
        progress=pulse,
        trials=Trials(TrialGpu(ranks.device, spec.share), Memory(cache)) if gpu else None,
        compilation=_compilation(task, spec, stage, ranks, cache),
        paused=Path(spec.weights) if stage.span[0] and spec.weights else None,
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
        if stage.span[1] < 1 and result.paused is not None:
            checkpoint.pause(folder.result, result.paused)
    return Outcome(
        verdict=Verdict.SUCCEEDED,
        metrics=result.metrics,
        curve=result.curve,
        steps=result.steps,
        has_result=True,
    )


def _compilation(
    task: Task, spec: Spec, stage: Stage, ranks: Ranks, cache: Path
) -> Compilation | None:
    """Left to itself, only where a GPU sees the same shape at every step: on a CPU it gains little,
    and of a task whose examples differ in length each shape would be compiled."""
    fits = ranks.device.type == "cuda" and task.uniform
    if spec.compile is False or (spec.compile == "auto" and not fits):
        return None
    reason = why_not(ranks.device, task.model.encoder)
    if spec.teacher is not None and watched(spec.teacher.settings):
        reason = "a teacher's hidden states and relations are compared"
    if reason is not None:
        if ranks.first:
            print(f"slots.compile: not compiled, as {reason}", flush=True)
        return None
    return Compilation(task.model.encoder, cache, forced=spec.compile is True)


def _share_activations(
    task: Task, spec: Spec, stage: Stage, ranks: Ranks, stop: StopRequest, pulse: Pulse
) -> None:
    from nasd.worker.training import activations

    assert stage.epochs is not None
    if task.fixed is None:
        return
    task.model.to(ranks.device)
    freeze(task)
    states = activations.known(
        task,
        corpus=registry.of(stage).cache(spec).name,
        epochs=stage.epochs * stage.soup,
        precision=spec.precision,
        shelf=activations.Shelf(
            Path(spec.cache), spec.activation_cache_gb * activations.GB, spec.attempt
        ),
        ranks=ranks,
        stop=stop,
        progress=pulse,
        say=lambda text: print(text, flush=True),
    )
    task.know(states)


def _evaluate(spec: Spec, stage: Stage, result: Path, ranks: Ranks, pulse: Pulse) -> Outcome:
    score = registry.of(stage).score
    assert score is not None, "a config has no such stage"
    pulse("loading", patience=LONG)
    batch = halved(EVALUATION_BATCH, spec.halvings)
    metrics = score(spec, stage, result, ranks, batch, pulse)
    if stage.measure:
        from nasd.worker.measure.stage import measured

        metrics = {**metrics, **measured(spec, result, pulse)}
    return Outcome(verdict=Verdict.SUCCEEDED, metrics=metrics, has_result=ranks.first)
