"""A search without training: workers that are nothing but the files that real ones would write.

A launcher whose attempts pass in virtual time, with learning curves and scores from
nasd.estimate.surrogate and hours from nasd.estimate.cost; nasd.views.forecast.virtual_time drives a
search with it. All else is the real thing: tick, policy, store, protocol. So a search of weeks
passes in seconds, and every fault can be had at will.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nasd.contract import digests, seeds, tasks
from nasd.contract.config import Config, Stage
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, BlockLineage, Genotype, parameters
from nasd.contract.protocol import (
    IGNORANCE,
    PARENT,
    AttemptFolder,
    Heartbeat,
    Outcome,
    Prepared,
    Spec,
    Verdict,
    checkpoints_below,
    read,
    read_metrics,
    sync_folder,
    write,
    write_atomically,
)
from nasd.contract.slots import Slot, SlotKind, divided, free
from nasd.contract.volumes import LABELLED, Volumes
from nasd.estimate.cost import (
    Machine,
    Timeline,
    Work,
    memory_gb,
    prepare_seconds,
    screening,
    work,
)
from nasd.estimate.latency import measurements, supposed
from nasd.estimate.recorded import Recorded, Table
from nasd.estimate.surrogate import Surrogate, Trained
from nasd.launch.launcher import Entry, Launcher

Kind = Literal["succeed", "lost", "stall", "diverge", "out_of_memory", "error", "machine"]
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
KEPT_CHECKPOINTS = 2
IGNORANT = 5.0  # the loss of who knows nothing of windows of 150 tokens
TRAIN_LINES = 200  # of a stage in metrics.jsonl, at most: less than a real worker writes
AUTO_SLOTS = 4  # where slots.devices is "auto": the reference box
MARKER = "simulated.json"  # in an attempt's folder, once it has ended


@dataclass(frozen=True)
class Fate:
    """How an attempt ends, and at which share of its work.

    lost: gone without an outcome. stall: the heartbeat stops, and it never ends by itself.
    machine: lost, with the machine's word for it in worker.log. out_of_memory comes at once.
    """

    kind: Kind = "succeed"
    at: float = 0.5


def all_succeed(spec: Spec, before: int) -> Fate:
    return Fate()


@dataclass
class _Job:
    """One attempt, all of it from its note and its spec. ends: when its fate strikes."""

    note: Mapping[str, Any]
    spec: Spec
    folder: AttemptFolder
    asked: Work
    timeline: Timeline
    surrogate: Surrogate
    ends: float
    logged: int  # the last step that metrics.jsonl tells of

    @property
    def began(self) -> float:
        return float(self.note["began"])

    @property
    def kind(self) -> Kind:
        kind: Kind = self.note["fate"]
        return kind

    @cached_property
    def genotype(self) -> Genotype:
        return Genotype.from_json(self.spec.genotype)

    @property
    def trained(self) -> Trained:
        """Before this stage."""
        return Trained(**self.note["trained"])

    def trained_after(self, steps: int) -> Trained:
        stage = self.spec.stage
        if stage is None or not tasks.of(stage.task).ranks:
            return self.trained
        return self.trained.after(stage.train, steps)


class SimulatedLauncher(Launcher):
    """A launcher whose workers leave the files of real ones, and take the time of real ones.

    Nothing runs. Whenever somebody looks, what should have happened up to now is written: the
    heartbeat, metrics.jsonl, checkpoints (a directory with a progress.json and a manifest.json of
    checksums), result/ and outcome.json. What will happen follows from the note that `start`
    returns, the files in the attempt's folder, and the clock; so another instance takes over what
    an earlier one has started (a killed daemon's, with a cluster's queue behind it). With
    `leashed`, attempts die with the instance that started them, as they do with the
    local launcher: they leave no outcome, and their progress up to the last look.

    fate: what becomes of an attempt, given its spec and how many came before it at this stage.
    Asked once, when it starts. Candidates that diverge (`diverging`, see Surrogate) or do not fit
    into `machine.memory_gb` do so whatever their fate, whenever they are tried. metrics: whether
    metrics.jsonl is written, which takes half of the time that a simulation takes. wall: what the
    clock on the wall shows, where that is not `clock`: workers write it down, and no more. curves:
    recorded ones, in the place of those that the surrogate makes up.

    Raises AssertionError where a slot would be used twice at once.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        backbone: Backbone,
        baseline: Genotype,
        volumes: Volumes,
        machine: Machine | None = None,
        fate: Callable[[Spec, int], Fate] = all_succeed,
        *,
        has_mlm_head: bool = True,
        diverging: float = 0.0,
        leashed: bool = False,
        metrics: bool = True,
        wall: Callable[[], float] | None = None,
        curves: Table | None = None,
    ) -> None:
        self.clock = clock
        self._wall = wall or clock
        self.volumes = volumes
        self.machine = machine or Machine()
        self._surrogate = (
            Surrogate(backbone, baseline, 0, diverging)
            if curves is None
            else Recorded(backbone, baseline, 0, diverging, table=curves)
        )
        self._fate = fate
        self._has_mlm_head = has_mlm_head
        self._leashed = leashed
        self._metrics = metrics
        self._asked: set[str] = set()  # to stop, before their notes were seen
        self._jobs: dict[str, _Job] = {}  # that have not ended, by token

    # -- what every launcher does --------------------------------------------------------------

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        spec = read(Spec, folder.spec)
        now = self.clock()
        trained = self._trained(spec)
        first = newest_checkpoint((folder.checkpoints, *map(Path, spec.resume))) or 0
        note: dict[str, Any] = {
            "token": token,
            "folder": str(folder.path),
            "slots": list(slots),
            "began": now,
            "first": first,
            "trained": asdict(trained),
            "fate": "succeed",
            "strikes": 0.0,
        }
        job = self._job(note)
        kind, strikes = self._strike(job, self._fate(spec, len(spec.resume)))
        note |= {"fate": kind, "strikes": strikes}
        self._hold(self._job(note))
        return note

    def alive(self, process: Mapping[str, Any]) -> bool:
        token = process["token"]
        if token not in self._jobs:
            if self._leashed or self._ended(process):
                return False
            try:
                self._hold(self._job(process))
            except NasdError:  # its folder is gone, and so is all that it was
                return False
            if token in self._asked:
                self.stop(token)
        return token in self._jobs and self._look(self._jobs[token])

    def stop(self, token: str) -> None:
        job = self._jobs.get(token)
        if job is None:
            self._asked.add(token)
            return
        if not self._look(job) or self._stalled(job):
            return
        now = self.clock()
        stage = job.spec.stage
        if stage is None or not job.timeline.steps:
            outcome = Outcome(
                verdict=Verdict.STOPPED, message="asked to stop; this stage begins anew"
            )
        else:
            step = job.timeline.done(now - job.began)
            if step > job.timeline.first:
                save_checkpoint(job.folder.checkpoints, step)
            of = f"after step {step} of {job.timeline.steps}"
            outcome = Outcome(verdict=Verdict.STOPPED, message=f"asked to stop {of}")
        self._leave(job, outcome, now)
        self._end(job, now)

    def owns(self, pid: int) -> bool | None:
        return None  # there is no process

    def clear(self, token: str) -> int:
        job = self._jobs.get(token)
        if job is None or not self._look(job):
            return 0
        self._end(job, self.clock())
        return 1

    # -- for the loop --------------------------------------------------------------------------

    def look(self) -> None:
        """Brings about what should have happened up to now."""
        for job in list(self._jobs.values()):
            self._look(job)

    def next_event(self) -> float | None:
        """When the next of the attempts ends or stalls; None: never."""
        ends = [job.ends for job in self._jobs.values() if not self._stalled(job)]
        return min(ends, default=None)

    @property
    def running(self) -> int:
        """How many attempts have not ended."""
        return len(self._jobs)

    def stalls(self) -> bool:
        """Whether there is an attempt that has to be noticed as stalled."""
        return any(self._stalled(job) for job in self._jobs.values())

    # -- inside --------------------------------------------------------------------------------

    def _job(self, note: Mapping[str, Any]) -> _Job:
        folder = AttemptFolder(Path(note["folder"]))
        spec = read(Spec, folder.spec)
        surrogate = replace(self._surrogate, seed=spec.seed)
        slots = len(note["slots"])
        if spec.stage is None:
            asked = Work(0, 0.0, 0.0, (), 0.0)
            seconds = prepare_seconds(self.machine, spec.data.mlm, self.volumes)
            start = self.machine.start_seconds
            timeline = Timeline(start, 0.0, 0, 0, max(0.0, seconds - start), 1.0, 0.0)
        elif spec.mutants:
            tried = [Genotype.from_json(one.genotype) for one in spec.mutants]
            asked = screening(spec.stage, tried, surrogate.backbone, spec.data, self.volumes)
            timeline = Timeline.of(
                *(asked, self.machine, spec.stage.name, slots, spec.checkpoint_minutes),
                share=spec.share,
            )
        else:
            genotype = Genotype.from_json(spec.genotype)
            lineage = tuple(BlockLineage.from_json(block) for block in spec.lineage)
            teacher = spec.teacher
            asked = work(
                spec.stage,
                genotype,
                lineage,
                surrogate.backbone,
                spec.data,
                self.volumes,
                teacher is not None and teacher.settings.runs_along(spec.stage.task),
            )
            timeline = Timeline.of(
                asked,
                self.machine,
                spec.stage.name,
                slots,
                spec.checkpoint_minutes,
                note["first"],
                spec.share,
            )
        lines, read_upto = read_metrics(folder.metrics)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(folder.metrics, read_upto)  # half a line, of a kill
        return _Job(
            note=note,
            spec=spec,
            folder=folder,
            asked=asked,
            timeline=timeline,
            surrogate=surrogate,
            ends=note["began"] + note["strikes"],
            logged=max((line["step"] for line in lines), default=timeline.first),
        )

    def _strike(self, job: _Job, fate: Fate) -> tuple[Kind, float]:
        """What ends the attempt, and how many seconds after its beginning."""
        spec, stage, timeline = job.spec, job.spec.stage, job.timeline
        if stage is not None and not spec.mutants and self.machine.memory_gb is not None:
            lineage = tuple(BlockLineage.from_json(block) for block in spec.lineage)
            need = memory_gb(
                stage,
                job.genotype,
                lineage,
                job.surrogate.backbone,
                tasks.of(stage.task).limit(spec.data),
                len(job.note["slots"]),
                spec.precision,
                spec.halvings,
            )
            if need > self.machine.memory_gb / spec.share:
                fate = Fate("out_of_memory")
        if fate.kind == "succeed" and stage is not None and timeline.steps:
            share = job.surrogate.diverges(job.genotype)
            ranks = tasks.of(stage.task).ranks
            if share is not None and ranks and not job.trained.new + job.trained.all:
                step = max(1, round(share * timeline.steps))
                if step > timeline.first:
                    return "diverge", timeline.when(step)
        if fate.kind == "succeed":
            return fate.kind, timeline.end
        share = 0.0 if fate.kind == "out_of_memory" else fate.at
        return fate.kind, timeline.start + share * (timeline.end - timeline.start)

    def _trained(self, spec: Spec) -> Trained:
        """How far the weights that an attempt starts from have trained for this candidate: what
        is inherited from a parent is measured by its distance from the baseline instead."""
        if spec.weights is None or spec.inherits:
            return Trained()
        try:
            said = json.loads((Path(spec.weights) / "model.json").read_text())
            return Trained(**said["trained"])
        except (OSError, ValueError, KeyError, TypeError):
            return Trained()

    def _hold(self, job: _Job) -> None:
        now = self.clock()
        for other in self._jobs.values():
            held = other.note["slots"]
            shared = set(job.note["slots"]) - set(free(job.note["slots"], held))
            over = now >= other.ends and other.kind != "stall"
            assert not shared or over, f"{job.folder.path} and {other.folder.path} share {shared}"
        self._jobs[job.note["token"]] = job

    def _stalled(self, job: _Job) -> bool:
        return job.kind == "stall" and self.clock() >= job.ends

    def _look(self, job: _Job) -> bool:
        """Writes what the attempt should have written by now; whether it still runs."""
        now = self.clock()
        at = min(now, job.ends)
        elapsed = at - job.began
        step = job.timeline.done(elapsed)
        for reached in job.timeline.checkpoints(elapsed):
            if not (job.folder.checkpoints / f"step-{reached:09d}").exists():
                save_checkpoint(job.folder.checkpoints, reached)
        self._tell(job, step)
        if elapsed < job.timeline.start:
            doing = "starting"
        elif job.spec.stage is None:
            doing = "tokenising"
        else:
            doing = "training" if job.timeline.steps else "evaluating"
        beat = Heartbeat(
            doing=doing, step=step, steps=job.timeline.steps, at=self._shown(at), age=elapsed
        )
        temporary = job.folder.heartbeat.with_name(".heartbeat.tmp")
        temporary.write_text(beat.model_dump_json())
        temporary.replace(job.folder.heartbeat)
        if now < job.ends or job.kind == "stall":
            return True
        if job.kind == "machine":
            with job.folder.log.open("a", encoding="utf-8") as log:
                log.write(f"{ECC}\n")
        elif job.kind != "lost":
            self._leave(job, self._outcome(job), job.ends)
        self._end(job, job.ends)
        return False

    def _tell(self, job: _Job, upto: int) -> None:
        """The lines of metrics.jsonl behind the last one written, up to a step."""
        stage = job.spec.stage
        if stage is None or upto <= job.logged or not self._metrics:
            return
        thinned = job.spec.log_steps * math.ceil(
            job.timeline.steps / (job.spec.log_steps * TRAIN_LINES)
        )
        lines: list[tuple[int, str, dict[str, Any]]] = []
        for step in range(job.logged // thinned * thinned + thinned, upto + 1, thinned):
            said = {
                "loss": self._loss(job, stage, step, evaluation=False),
                "gradient_norm": 1.0,
                "learning_rate": stage.learning_rate,
                "tokens_per_second": job.asked.tokens / job.timeline.per_step,
            }
            lines.append((step, "train", said))
        for step in job.asked.evaluations:
            if job.logged < step <= upto:
                loss = self._loss(job, stage, step, evaluation=True)
                lines.append((step, "evaluation", {"loss": loss}))
        lines.sort(key=lambda line: (line[0], line[1] == "evaluation"))
        with job.folder.metrics.open("a", encoding="utf-8") as file:
            for step, kind, said in lines:
                at = self._shown(job.began + job.timeline.when(step))
                file.write(json.dumps({"kind": kind, "step": step, **said, "at": at}) + "\n")
        job.logged = upto

    def _loss(self, job: _Job, stage: Stage, step: int, evaluation: bool) -> float:
        at = job.asked.before + step
        if tasks.of(stage.task).scores:
            return job.surrogate.answer_loss(job.genotype, stage.whole, at, job.trained)
        shown = job.surrogate.evaluation_loss if evaluation else job.surrogate.step_loss
        trained = job.trained_after(step)
        return shown(job.genotype, stage.whole, at, trained, stage.train == "head")

    def _outcome(self, job: _Job) -> Outcome:
        stage, steps = job.spec.stage, job.timeline.steps
        match job.kind:
            case "diverge":
                step = job.timeline.done(job.ends - job.began)
                return Outcome(verdict=Verdict.DIVERGED, message=f"the loss is nan at step {step}")
            case "out_of_memory":
                return Outcome(
                    verdict=Verdict.OUT_OF_MEMORY, message="CUDA out of memory (simulated)"
                )
            case "error":
                return Outcome(verdict=Verdict.ERROR, message="RuntimeError: simulated")
        if job.spec.mutants:
            assert stage is not None
            tried = [(one.id, Genotype.from_json(one.genotype)) for one in job.spec.mutants]
            told = job.surrogate.answer_loss
            losses = {str(number): told(one, stage.name, None, Trained()) for number, one in tried}
            parent = told(job.genotype, stage.name, None, job.trained)
            metrics = {**losses, PARENT: parent, IGNORANCE: IGNORANT}
            return Outcome(verdict=Verdict.SUCCEEDED, metrics=metrics)
        said = {
            "candidate": job.spec.candidate,
            "hash": job.genotype.hash,
            "trained": asdict(job.trained_after(steps)),
        }
        job.folder.result.mkdir(exist_ok=True)
        write_atomically(job.folder.result / "model.json", json.dumps(said).encode())
        if stage is None:
            volumes = asdict(self.volumes)
            del volumes["qa_tokens"], volumes["by_task"]
            scored = tasks.all_scored(job.spec.data)
            caches = {
                one.name: str(Path(job.spec.cache) / f"labelled-simulated-{one.name}")
                for one in scored
                if one is not tasks.QA
            }
            if len(caches) == 1:
                caches = dict.fromkeys(caches, str(Path(job.spec.cache) / "labelled-simulated"))
            prepared = Prepared(
                mlm_cache=str(Path(job.spec.cache) / "mlm-simulated") if job.spec.data.mlm else "",
                qa_cache=str(Path(job.spec.cache) / "qa-simulated") if tasks.QA in scored else "",
                labelled_cache=next(iter(caches.values()), ""),
                labelled_tasks=_each(caches, self.volumes),
                has_mlm_head=self._has_mlm_head,
                parameters=parameters(job.genotype, job.surrogate.backbone),
                latency={}
                if job.spec.profiled is None
                else supposed(
                    job.spec.profiled, job.surrogate.backbone, job.spec.measure
                ).to_json(),
                **volumes,
            )
            return Outcome(verdict=Verdict.SUCCEEDED, has_result=True, prepared=prepared)
        if stage.train == "none":
            loss = job.surrogate.answer_loss(job.genotype, stage.name, None, job.trained)
            task = tasks.of(stage.task)
            scores = job.surrogate.scores(job.genotype, job.trained, task, seeds.nth_of(stage.name))
            share = job.surrogate.quality(job.genotype, job.trained) / 100
            tested = max(1, task.tested(self.volumes))
            scores["quality_error"] = 100 * math.sqrt(share * (1 - share) / tested)
            if stage.measure:
                scores |= measurements(job.genotype, job.surrogate.backbone, job.spec.measure)
            return Outcome(
                verdict=Verdict.SUCCEEDED, metrics={"loss": loss, **scores}, has_result=True
            )
        curve = [
            (step, self._loss(job, stage, step, evaluation=True))
            for step in job.asked.evaluations or (0,)  # nothing to train: evaluated once
        ]
        return Outcome(
            verdict=Verdict.SUCCEEDED,
            metrics={"loss": curve[-1][1]},
            curve=curve,
            steps=steps,
            has_result=True,
        )

    def _leave(self, job: _Job, outcome: Outcome, at: float) -> None:
        """Writes the outcome, as of a virtual instant."""
        seconds = max(0.0, at - job.began - job.timeline.start)  # a worker counts from there on
        outcome = outcome.model_copy(update={"token": job.note["token"], "seconds": seconds})
        write(outcome, job.folder.outcome)
        os.utime(job.folder.outcome, (self._shown(at), self._shown(at)))

    def _shown(self, at: float) -> float:
        """An instant as it is written down."""
        return at + self._wall() - self.clock()

    def _end(self, job: _Job, at: float) -> None:
        said = json.dumps({"token": job.note["token"], "ended": at})
        write_atomically(job.folder.path / MARKER, said.encode())
        del self._jobs[job.note["token"]]

    def _ended(self, process: Mapping[str, Any]) -> bool:
        """Whether the attempt of a note has ended, by this instance's doing or another's."""
        try:
            said = json.loads((Path(process["folder"]) / MARKER).read_text())
            return bool(said["token"] == process["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _each(caches: Mapping[str, str], volumes: Volumes) -> dict[str, dict[str, Any]]:
    """As prepare tells of several tasks that learn labels."""
    if len(caches) < 2:
        return {}
    return {
        task: {
            "labelled_cache": cache,
            **{name: getattr(volumes.of_task(task), name) for name in LABELLED},
        }
        for task, cache in caches.items()
    }


def devices(config: Config, begun: bool) -> tuple[Slot, ...]:
    """As listed, as none of them has to be there; in place of all there are, the reference box."""
    listed = config.slots.devices
    if listed == "auto":
        listed = tuple(str(Slot.of(SlotKind.CUDA, number)) for number in range(AUTO_SLOTS))
    return tuple(map(Slot.parse, divided(listed, config.slots.share)))


ENTRY = Entry(devices=devices, open=None, health=lambda names: nullcontext(dict), leashed=False)


def save_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint as nasd.worker.training.checkpoint lays it out, without any weights; keeps
    two."""
    final, temporary = folder / f"step-{step:09d}", folder / f".step-{step:09d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "progress.json").write_text(json.dumps({"step": step}))
    (temporary / "manifest.json").write_text(json.dumps(digests.of_files(temporary)))
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync_folder(folder)
    for old in checkpoints_below([folder])[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest_checkpoint(folders: Iterable[Path]) -> int | None:
    """The step of the newest whole checkpoint below any of the folders."""
    for path in checkpoints_below(folders):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, Damaged):
            manifest = json.loads((path / "manifest.json").read_text())
            digests.vouch(path, manifest, ["progress.json"])
            return int(json.loads((path / "progress.json").read_text())["step"])
    return None
