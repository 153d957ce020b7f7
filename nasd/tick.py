"""One turn of the daemon: look at what runs, decide what follows, start what fits.

Everything here may be killed between any two lines. What stands in the database is true; what
does not is done again: results are moved by rename before their row is written, specs are written
before their worker starts, rows before their process.
"""

import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nasd import policy
from nasd.config import Config
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.lifecycle import AttemptState, Event
from nasd.pareto import hypervolume
from nasd.protocol import (
    AttemptFolder,
    Heartbeat,
    Outcome,
    Spec,
    read,
    sync_folder,
    write,
    write_atomically,
)
from nasd.slots import Launcher, wait_until
from nasd.snapshot import Attempt, Candidate, Snapshot
from nasd.store import StageRecord, Store
from nasd.summaries import Summaries

log = logging.getLogger("nasd")

EXIT_SECONDS = 30.0  # for a worker that has written its outcome to be gone


@dataclass
class Tick:
    """What a turn needs. `config_folder`: where relative data paths start."""

    store: Store
    config: Config
    config_folder: Path
    state: StateFolder
    slots: tuple[str, ...]
    launcher: Launcher
    clock: Callable[[], float] = time.time

    def __call__(self) -> None:
        self.observe()
        self.decide()
        self.start()

    # -- observe -------------------------------------------------------------------------------

    def observe(self) -> None:
        """Ends every attempt whose process is gone, by the outcome it left behind."""
        for attempt in self.store.read().live_attempts:
            folder = self.state.attempt(attempt.id)
            if attempt.process is not None and self.launcher.alive(attempt.process):
                late = folder.outcome.exists() and (
                    self.clock() - folder.outcome.stat().st_mtime > EXIT_SECONDS
                )
                if not late:
                    continue
            try:
                self._end(attempt, folder)
            except NasdError as error:  # it keeps its slots, the others go on
                log.error("attempt %d cannot be ended yet: %s", attempt.id, error)

    def _end(self, attempt: Attempt, folder: AttemptFolder, asked: bool = False) -> None:
        """Ends an attempt. asked: the daemon itself wanted it to stop, so it is not lost."""
        # No slot is free before nothing of ours is left on it.
        left = self.launcher.clear(attempt.token)
        if left:
            log.warning("attempt %d: ended %d processes left behind", attempt.id, left)
        outcome = None
        if folder.outcome.exists():
            try:
                outcome = read(Outcome, folder.outcome)
            except NasdError as error:
                log.warning("%s", error)
        final = self.state.result(attempt.candidate, attempt.stage)
        if (
            outcome is not None
            and outcome.has_result
            and not (folder.result.exists() or final.exists())
        ):
            log.warning("attempt %d: its result is gone, so it counts as lost", attempt.id)
            outcome = None
        if outcome is None and asked:
            outcome = Outcome(verdict="stopped", message="ended with the daemon")
        snapshot = self.store.read()
        end = policy.ending(snapshot, self.config, attempt, outcome)
        record = None
        if end.state is AttemptState.SUCCEEDED:
            assert outcome is not None
            if outcome.has_result:
                self._publish(folder.result, final)
            record = StageRecord(outcome.metrics, outcome.curve, outcome.steps, outcome.seconds)
        now = self.clock()
        self.store.end_attempt(
            attempt.id,
            end.state,
            end.event,
            ended_at=_ended_at(folder, attempt, now),
            now=now,
            verdict="" if outcome is None else outcome.verdict,
            message=end.message,
            next_stage=end.next_stage,
            record=record,
            prepared=outcome.prepared.model_dump() if outcome and outcome.prepared else None,
        )
        log.info(
            "candidate %d %s: attempt %d %s%s",
            attempt.candidate,
            attempt.stage,
            attempt.id,
            end.state,
            f" ({end.message})" if end.message else "",
        )
        if end.event is not Event.INTERRUPT:  # the candidate has left this stage for good
            for other in self._attempts_at(snapshot, attempt.candidate, attempt.stage):
                shutil.rmtree(self.state.attempt(other.id).checkpoints, ignore_errors=True)

    def _publish(self, source: Path, final: Path) -> None:
        """Moves a result to its candidate. Done before, if a kill came just behind the rename."""
        if not source.exists():
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            shutil.rmtree(final)
        source.rename(final)
        sync_folder(final.parent)

    # -- decide --------------------------------------------------------------------------------

    def decide(self) -> None:
        """Applies decisions until nothing more follows from what is recorded."""
        while (decision := policy.next_decision(self.store.read(), self.config)) is not None:
            self._apply(decision)

    def _apply(self, decision: policy.Decision) -> None:
        now = self.clock()
        match decision:
            case policy.OpenGeneration(number, parents):
                self.store.open_generation(number, parents, now)
                log.info("generation %d opens with %d parents", number, len(parents))
            case policy.Breed(generation, births, first_stage, payload):
                born = self.store.record_births(generation, births, payload, first_stage, now)
                log.info(
                    "generation %d: candidates %d to %d are born", generation, born[0], born[-1]
                )
            case policy.Cutoff(generation, stage, next_stage, kept, cut, payload):
                self.store.record_cutoff(generation, stage, next_stage, kept, cut, payload, now)
                self._show(lambda: self._show_cutoff(decision))
                log.info("generation %d: cutoff after %s keeps %s", generation, stage, list(kept))
            case policy.StartSelecting(generation):
                self.store.start_selecting(generation, now)
            case policy.Select(generation, members, payload):
                self.store.record_selection(generation, members, payload, now)
                self._show(lambda: self._show_selection(decision))
                log.info("generation %d: survivors %s", generation, payload["survivors"])
            case policy.Complete():
                self.store.complete(now)
                log.info("the search is complete")
            case policy.Halt(reason):
                self.store.halt(reason, now)
                log.error("halted: %s", reason)

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        snapshot = self.store.read()
        if policy.budget_spent(snapshot, self.config, self.clock()):
            for attempt in snapshot.live_attempts:
                self.launcher.stop(attempt.token)  # at a checkpoint; asking again does no harm
            return
        free = [slot for slot in self.slots if slot not in snapshot.leases]
        for one in policy.starts(snapshot, self.config, free, self.clock()):
            self._start(snapshot, one)

    def _start(self, snapshot: Snapshot, one: policy.Start) -> None:
        token = secrets.token_hex(16)
        candidate = snapshot.candidates[one.candidate]
        attempt = self.store.start_attempt(candidate.id, one.stage, one.slots, token, self.clock())
        folder = self.state.attempt(attempt)
        folder.path.mkdir(parents=True, exist_ok=True)
        write(self._spec(snapshot, candidate, attempt), folder.spec)
        home = self.state.candidate(candidate.id)
        if not (home / "genotype.json").exists():
            home.mkdir(parents=True, exist_ok=True)
            text = json.dumps(candidate.genotype.to_json(), indent=1)
            write_atomically(home / "genotype.json", text.encode())
        self.store.attempt_runs(attempt, self.launcher.start(folder, one.slots, token))
        log.info(
            "candidate %d %s: attempt %d starts on %s",
            candidate.id,
            one.stage,
            attempt,
            " ".join(one.slots),
        )

    def _spec(self, snapshot: Snapshot, candidate: Candidate, attempt: int) -> Spec:
        prepared = snapshot.experiment.prepared or {}
        origin, inherits = policy.weights_of(snapshot, self.config, candidate)
        earlier = self._attempts_at(snapshot, candidate.id, candidate.stage)
        return Spec(
            attempt=attempt,
            candidate=candidate.id,
            generation=candidate.generation,
            stage=policy.stage_named(self.config, candidate.stage),
            seed=snapshot.experiment.seed,
            dropout=self.config.seed_model.dropout,
            source=self.config.seed_model.source,
            data=self.config.data,
            config_folder=str(self.config_folder),
            genotype=candidate.genotype.to_json(),
            lineage=[block.to_json() for block in candidate.lineage],
            weights=None if origin is None else str(self.state.result(*origin)),
            inherits=inherits,
            cache=str(self.state.cache),
            mlm_cache=prepared.get("mlm_cache", ""),
            qa_cache=prepared.get("qa_cache", ""),
            tensorboard=str(self.state.curves(candidate.generation, candidate.id, candidate.stage)),
            precision=self.config.slots.precision,
            threads=self.config.slots.threads,
            checkpoint_minutes=self.config.daemon.checkpoint_minutes,
            log_steps=self.config.daemon.log_steps,
            stall_minutes=self.config.daemon.stall_minutes,
            resume=tuple(str(self.state.attempt(a.id).checkpoints) for a in reversed(earlier)),
        )

    def _attempts_at(self, snapshot: Snapshot, candidate: int, stage: str) -> list[Attempt]:
        return [a for a in snapshot.attempts if (a.candidate, a.stage) == (candidate, stage)]

    # -- stop ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Asks every running attempt for a checkpoint, waits for the grace period, ends the rest.

        Nothing is lost but the steps since the last checkpoint of an attempt that did not answer.
        """
        live = self.store.read().live_attempts
        for attempt in live:
            self.launcher.stop(attempt.token)
        wait_until(
            lambda: not any(a.process and self.launcher.alive(a.process) for a in live),
            self.config.daemon.stop_grace_seconds,
        )
        for attempt in live:
            try:
                self._end(attempt, self.state.attempt(attempt.id), asked=True)
            except NasdError as error:
                log.error("attempt %d cannot be ended yet: %s", attempt.id, error)

    # -- TensorBoard ---------------------------------------------------------------------------

    def _show(self, write: Callable[[], None]) -> None:
        """Behind the decision, which stands: a kill in between costs a picture, and no more."""
        try:
            write()
        except OSError as error:
            log.warning("TensorBoard could not be written: %s", error)

    def _show_cutoff(self, cutoff: policy.Cutoff) -> None:
        """The decision where the curves are: a card, and each candidate's loss and fate."""
        losses = cutoff.payload["losses"]
        assert isinstance(losses, dict)
        rows = "\n".join(
            f"| {c} | {loss:.4f} | {'kept' if int(c) in cutoff.kept else 'cut'} |"
            for c, loss in losses.items()
        )
        card = f"{cutoff.payload['rule']}\n\n| candidate | loss | |\n|---|---|---|\n{rows}"
        with Summaries(self.state.search_curves) as summaries:
            summaries.text(f"cutoff/{cutoff.stage}", card, cutoff.generation)
            summaries.scalars(
                {
                    f"cutoff/{cutoff.stage}_threshold": max(losses[str(c)] for c in cutoff.kept),
                    f"cutoff/{cutoff.stage}_best": min(losses.values()),
                },
                cutoff.generation,
            )
        for candidate, loss in losses.items():
            folder = self.state.curves(cutoff.generation, int(candidate), cutoff.stage)
            with Summaries(folder) as summaries:
                kept = float(int(candidate) in cutoff.kept)
                summaries.scalars({"cutoff/loss": loss, "cutoff/kept": kept}, cutoff.generation)

    def _show_selection(self, selection: policy.Select) -> None:
        points = selection.payload["points"]
        assert isinstance(points, dict)
        with Summaries(self.state.search_curves) as summaries:
            summaries.scalars(
                {
                    "search/hypervolume": hypervolume(list(points.values()), policy.REFERENCE),
                    "search/best_quality": max((p[0] for p in points.values()), default=0.0),
                    "search/gpu_hours": self.store.read().gpu_hours(self.clock()),
                },
                selection.generation,
            )


def _ended_at(folder: AttemptFolder, attempt: Attempt, now: float) -> float:
    """When an attempt last held its slots: not while the box was off, whoever finds it later."""
    if folder.outcome.exists():
        return min(now, max(attempt.started_at, folder.outcome.stat().st_mtime + EXIT_SECONDS))
    try:
        return min(now, max(attempt.started_at, read(Heartbeat, folder.heartbeat).at))
    except NasdError:
        return attempt.started_at
