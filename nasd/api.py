"""A search from Python: `from nasd import Search`.

Reads what stands in a state folder, whether a daemon serves it or not, and asks that daemon what
the commands ask. Tables are pandas' DataFrames where pandas can be imported, and lists of dicts
where not. Nothing here imports torch before a model is loaded; what is scored by hand is so in a
process of its own. A person's mistakes raise nasd.contract.errors.NasdError, as one sentence.
"""

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from nasd.cli.options import state_folder
from nasd.contract import config as config_module
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype, Lineage, parameters
from nasd.control import specs
from nasd.control.retention import answering_stage
from nasd.export import export as exporting
from nasd.launch import child, interpreter
from nasd.record import daemon_lock, lookup, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import ExperimentState
from nasd.record.state import Candidate, LoggedEvent, Snapshot
from nasd.search.variation.breeding import check_genotype
from nasd.search.variation.keeping import informed
from nasd.search.variation.operators import OPERATORS, Draft
from nasd.views.status import as_json

if TYPE_CHECKING:
    from nasd.views.report.findings import Findings
    from nasd.worker.model.pretrained import NasdPreTrainedModel

ENDED = frozenset({ExperimentState.COMPLETE, ExperimentState.HALTED})
BEGIN_SECONDS = 1800.0  # the seed may have to be fetched first
LOG = "nasd-run.log"

Row = dict[str, Any]
Table = Any  # a pandas.DataFrame, or list[Row]


def table(rows: Sequence[Row]) -> Table:
    """A DataFrame of the rows, or themselves where there is no pandas."""
    try:
        import pandas  # type: ignore[import-untyped]
    except ImportError:
        return list(rows)
    return pandas.DataFrame.from_records(list(rows))


class Search:
    """A search, by its state folder or by its config.

    Everything is read anew at each call: a search goes on meanwhile.
    """

    def __init__(self, where: str | Path = "config.toml") -> None:
        """where: a state folder, or a config whose state folder is meant. Raises NasdError if no
        search has begun there."""
        path = Path(where)
        if path.is_dir():
            self.path = path.resolve()
        else:
            self.path = state_folder(path, None).resolve()
        self._snapshot()

    @classmethod
    def begin(cls, config: str | Path = "config.toml", fresh: bool = False) -> "Search":
        """Begins the search of a config, or goes on with it, by a daemon of its own that outlives
        this process; what it says stands in nasd-run.log beside the config.

        fresh: sets a search that is there aside first. Raises NasdError, with the daemon's own
        sentence, where it does not come up.
        """
        path = Path(config).resolve()
        state = StateFolder(state_folder(path, None).resolve())
        if daemon_lock.held(state.lock):
            return cls(state.path)
        words = ["run", "--config", str(path), *(["--fresh"] if fresh else [])]
        with (path.parent / LOG).open("ab") as log:
            daemon = subprocess.Popen(
                interpreter.command("nasd", *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=interpreter.environment(),
                start_new_session=True,
            )
        end = time.monotonic() + BEGIN_SECONDS
        while time.monotonic() < end:
            if daemon.poll() not in (None, 0):
                lines = (path.parent / LOG).read_text(errors="replace").strip().splitlines()
                raise NasdError(
                    (lines or ["nasd run left without a word"])[-1].removeprefix("nasd: ")
                )
            served = daemon_lock.held(state.lock) or daemon.poll() == 0
            with suppress(NasdError):
                if served:
                    return cls(state.path)
            time.sleep(0.2)
        raise NasdError(
            f"nasd run has not begun within {BEGIN_SECONDS:g} s: see {path.parent / LOG}"
        )

    def __repr__(self) -> str:
        found = self._snapshot()
        return f"Search({found.experiment.name!r}, {found.experiment.state}, {str(self.path)!r})"

    # -- how it is ------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """`running`, `complete` or `halted`."""
        return str(self._snapshot(whole=False).experiment.state)

    @property
    def served(self) -> bool:
        """Whether a daemon is at work on it."""
        return daemon_lock.held(StateFolder(self.path).lock)

    @property
    def config(self) -> Config:
        """As the search was begun with."""
        return config_module.parse(self._snapshot(whole=False).experiment.config, str(self.path))

    def status(self) -> dict[str, Any]:
        """All that `nasd status --json` tells."""
        return as_json.report(self.path)

    def wait(self, seconds: float | None = None, poll: float = 1.0) -> str:
        """Until it has ended, nobody serves it, or so many seconds have passed; its state then."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.served and ExperimentState(self.state) not in ENDED:
            if end is not None and time.monotonic() >= end:
                break
            time.sleep(poll)
        return self.state

    def follow(self, poll: float = 1.0) -> Iterator[Row]:
        """Its events from here on, as they come, until it has ended or nobody serves it."""
        seen = self._newest_event()
        while True:
            goes_on = self.served and ExperimentState(self.state) not in ENDED
            for number, row in self._events_after(seen):
                seen = number
                yield row
            if not goes_on:
                return
            time.sleep(poll)

    # -- tables ---------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """A table of the report's, by its name: candidates, generations, members, progress, curves,
        cutoffs, losses, correlations, missed, mutations, costs, fates or attempts."""
        from nasd.views.report.findings import TABLES

        if name not in TABLES:
            raise NasdError(f"there is no table {name}: take of {', '.join(TABLES)}")
        rows = getattr(_findings(self.path), name)
        return table([_row(one) for one in rows])

    def candidates(self) -> Table:
        """Everybody, the baseline first, with architecture, scores and what it cost."""
        return self.table("candidates")

    def scores(self) -> Table:
        """Who is scored: every objective of the search in its unit, and the task's metrics."""
        found = self._snapshot()
        names = found.experiment.objectives
        rows = []
        for one in found.individuals:
            if (metrics := found.scores(one.id)) is not None:
                told = {name: found.value(one.id, name) for name in names}
                rows.append({"candidate": one.id, "generation": one.generation, **told, **metrics})
        return table(rows)

    def front(self) -> Table:
        """Whom nobody that was ever scored dominates."""
        rows = [_row(one) for one in _findings(self.path).candidates if one.front]
        return table(rows)

    def curves(self) -> Table:
        """The evaluation losses of each candidate's MLM stages, all stages in a row."""
        return self.table("curves")

    def events(self, last: int = 100) -> Table:
        """The newest ones, oldest first."""
        with snapshot.opened(self.path) as connection:
            return table([_event(one) for one in snapshot.events(connection, last)])

    # -- candidates -----------------------------------------------------------------------------

    def __getitem__(self, name: int | str) -> "Individual":
        """A candidate by its number, or `best`, or `baseline`; raises NasdError without one."""
        return Individual(self, lookup.find(self._snapshot(), str(name)).id)

    def breed(self, parent: "int | str | Individual", *operators: str, seed: int = 0) -> "Child":
        """A child of a candidate by these small steps, one after the other, as
        `search.breed("best", "narrow", "drop_ffn")`; it stands nowhere in the search.

        Raises NasdError where there is no such operator, or no room in the search space for it.
        """
        above = parent if isinstance(parent, Individual) else self[parent]
        config = self.config
        draft = Draft.of([above.genotype], [above.candidate.ancestry])
        rng = random.Random(seed)
        for name in operators:
            known = [one for one in OPERATORS if OPERATORS[one].parents == 1]
            if name not in known:
                raise NasdError(
                    f"there is no operator {name} of one parent: take of {', '.join(known)}"
                )
            if not OPERATORS[name].apply(draft, config.search_space, rng):
                raise NasdError(f"{name}: the search space has no room for that step")
        lineage = informed(draft.genotype, draft.lineage, [above.genotype])
        check_genotype(
            draft.genotype, config.search_space, self._snapshot().experiment.backbone.width
        )
        return Child(self, above.id, draft.genotype, lineage, seed)

    def score(self, one: "int | str | Individual | Child", folder: str | Path | None = None) -> Row:
        """What the task's test data say of a model, in percent where its metrics are so: of a
        candidate as it is fine-tuned, or of a child untrained, with what it has of its parent.

        folder: where the child's model and its answers are left. It is worked out on the CPU, in a
        process of its own; with CUDA_VISIBLE_DEVICES set, on that GPU.
        """
        asked = one if isinstance(one, Individual | Child) else self[one]
        with tempfile.TemporaryDirectory(prefix="nasd-") as name:
            place = Path(name) if folder is None else Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            return dict(self._by_hand(asked, place, scores=True)["metrics"])

    def _by_hand(self, asked: "Individual | Child", place: Path, scores: bool) -> dict[str, Any]:
        """What a process says that makes a child below a folder, or takes a candidate's model, and
        scores it where it is to; raises NasdError."""
        found = self._snapshot()
        parent = asked.parent if isinstance(asked, Child) else asked.id
        candidate = found.candidates[parent]
        config = self.config
        state = StateFolder(self.path)
        trained = _trained(self.path, config, candidate)
        stage = config.ladder(_who(candidate))[-1].model_copy(update={"measure": False})
        at = replace(candidate, stage=stage.name)
        base = Path(exporting.config_folder(self.path, found))
        spec = specs.spec(found, config, base, state, at, 0, 1)
        changes: dict[str, Any] = {"stage": stage, "weights": str(trained), "teacher": None}
        if isinstance(asked, Child):
            changes |= {
                "genotype": asked.genotype.to_json(),
                "lineage": [block.to_json() for block in asked.lineage],
                "inherits": True,
                "seed": asked.seed,
            }
        spec = spec.model_copy(update=changes)
        question = {
            "spec": spec.model_dump(mode="json"),
            "folder": str(place.resolve()),
            "born": isinstance(asked, Child),
            "scores": scores,
        }
        try:
            return child.ask("nasd.worker.by_hand", question)
        except child.NoAnswer as error:
            what = "scored" if scores else "made"
            raise NasdError(f"it cannot be {what}: {error}") from None

    # -- asking the daemon ----------------------------------------------------------------------

    def ask(self, action: str, why: str = "", **arguments: Any) -> str:
        """As the commands do: pause, drain, resume, stop, budget, retry, cut; what came of it."""
        from nasd.cli.asking import ask

        return ask(self.path, cast(Any, action), why, **arguments)

    def pause(self, why: str = "") -> str:
        """Attempts write a checkpoint and rest."""
        return self.ask("pause", why)

    def resume(self, why: str = "") -> str:
        return self.ask("resume", why)

    def stop(self, why: str = "") -> str:
        """The daemon leaves; `Search.begin` goes on from there."""
        return self.ask("stop", why)

    def inject(self, one: "Child | Genotype", why: str = "") -> str:
        """Asks for a child to be born into the next generation, and be trained."""
        genotype = one.genotype if isinstance(one, Child) else one
        return self.ask("inject", why, genotype=genotype.to_json())

    # -- inside ---------------------------------------------------------------------------------

    def _snapshot(self, whole: bool = True) -> Snapshot:
        with snapshot.opened(self.path) as connection:
            return snapshot.read(connection, whole)

    def _newest_event(self) -> int:
        with snapshot.opened(self.path) as connection:
            return int(connection.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0])

    def _events_after(self, number: int) -> list[tuple[int, Row]]:
        with snapshot.opened(self.path) as connection:
            rows = connection.execute(
                "SELECT id, at, candidate, attempt, event, source, target, stage, detail FROM event"
                " WHERE id > ? ORDER BY id",
                (number,),
            ).fetchall()
        return [(row[0], _event(LoggedEvent(*row[1:]))) for row in rows]


@dataclass(frozen=True)
class Individual:
    """A candidate of a search, as it is when it is asked."""

    search: Search
    id: int

    def __repr__(self) -> str:
        return f"<candidate {self.id}: {self.genotype}>"

    @property
    def candidate(self) -> Candidate:
        return self.search._snapshot().candidates[self.id]

    @property
    def genotype(self) -> Genotype:
        return self.candidate.genotype

    @property
    def parameters(self) -> int:
        """Of the encoder."""
        return self.candidate.parameters

    @property
    def scores(self) -> dict[str, float] | None:
        """The task's metrics; None before it is scored."""
        return self.search._snapshot().scores(self.id)

    @property
    def quality(self) -> float | None:
        return self.search._snapshot().quality(self.id)

    def model(self) -> "NasdPreTrainedModel":
        """Its fine-tuned model on the CPU, in evaluation mode, as a class of transformers'. This
        imports torch. Raises NasdError where its weights are not kept, or not there yet."""
        from nasd.worker.by_hand import loaded

        config = self.search.config
        folder = _trained(self.search.path, config, self.candidate)
        return loaded(folder, config.ladder("candidates")[-1].task)

    def export(
        self, folder: str | Path, onnx: bool = False, force: bool = False, native: bool = False
    ) -> Path:
        """As `nasd export`: a folder that transformers loads by itself."""
        done = exporting.export(
            self.search.path, str(self.id), Path(folder), onnx, force, native=native
        )
        return done.folder


@dataclass(frozen=True)
class Child:
    """A genotype that was bred by hand, and where its modules' weights come from."""

    search: Search
    parent: int
    genotype: Genotype
    lineage: Lineage
    seed: int = 0

    def __repr__(self) -> str:
        return f"<child of candidate {self.parent}: {self.genotype}>"

    @cached_property
    def parameters(self) -> int:
        """Of the encoder."""
        return parameters(self.genotype, self.search._snapshot().experiment.backbone)

    def model(self) -> "NasdPreTrainedModel":
        """The untrained child, with what it has of its parent: on the CPU, in evaluation mode, as a
        class of transformers'. This imports torch. Raises NasdError where the parent's weights are
        not kept, or not there yet."""
        from nasd.worker.by_hand import MODEL, loaded

        with tempfile.TemporaryDirectory(prefix="nasd-") as name:
            self.search._by_hand(self, Path(name), scores=False)
            return loaded(Path(name) / MODEL, self.search.config.ladder("candidates")[-1].task)


def _who(candidate: Candidate) -> Literal["candidates", "baseline"]:
    """Whose ladder it climbs."""
    return "baseline" if candidate.is_baseline else "candidates"


def _trained(state: Path, config: Config, candidate: Candidate) -> Path:
    """The folder of its fine-tuned model; raises NasdError where there is none."""
    stage = answering_stage(config, _who(candidate))
    folder = StateFolder(state).result(candidate.id, stage)
    if not folder.is_dir():
        raise NasdError(
            f"candidate {candidate.id} has no fine-tuned model any more, or not yet: take one of"
            " the front or of the newest generation"
        )
    return folder


def _findings(state: Path) -> "Findings":
    from nasd.views.report.write import read  # with all that draws

    return read(state)


def _row(one: Any) -> Row:
    """A row of the report's as a flat dict."""
    told = asdict(one) if is_dataclass(one) and not isinstance(one, type) else one._asdict()
    found: Row = {}
    for name, value in told.items():
        if isinstance(value, Mapping):
            found |= value
        else:
            found[name] = value
    return found


def _event(one: LoggedEvent) -> Row:
    return {field.name: getattr(one, field.name) for field in fields(one)}
