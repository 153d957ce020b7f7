"""What the stages of an experiment ask for, and how fast they were: slot-seconds an operation.

Pure functions of a snapshot, by nasd.estimate.cost's operations; prices and times to the end rest
on them.
"""

from collections.abc import MutableMapping

from nasd.contract.config import Config
from nasd.contract.volumes import Volumes
from nasd.estimate.cost import work
from nasd.record.state import Candidate, Snapshot


class Effort:
    """known: operations that were counted before, by candidate and stage; added to. They never
    change while config and prepared data stay the same."""

    def __init__(
        self,
        snapshot: Snapshot,
        config: Config,
        known: MutableMapping[tuple[int, str], float] | None = None,
    ) -> None:
        prepared = snapshot.experiment.prepared
        assert prepared is not None, "before the data is counted, no work is known"
        self._snapshot = snapshot
        self._config = config
        self._stages = {stage.name: stage for stage in config.parts}
        self._volumes = Volumes.of(prepared, config.data)
        self._known = {} if known is None else known
        self._paces: dict[str, list[float]] | None = None

    def operations(self, candidate: Candidate, stage: str) -> float:
        """Floating-point operations that the stage asks for."""
        key = candidate.id, stage
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = work(
                self._stages[stage],
                candidate.genotype,
                candidate.lineage,
                self._snapshot.experiment.backbone,
                self._config.data,
                self._volumes,
                self._config.taught_along(self._stages[stage], candidate.is_baseline),
            ).flop
        return found

    def paces(self, stage: str) -> list[float]:
        """Slot-seconds an operation, of each candidate that has finished the stage; what it took
        again after losses, and to start, is in it."""
        if self._paces is None:
            self._paces = self._measured()
        return self._paces.get(stage, [])

    def _measured(self) -> dict[str, list[float]]:
        held: dict[tuple[int, str], float] = {}
        for one in self._snapshot.attempts:
            if one.ended_at is not None:
                seconds = one.worth * (one.ended_at - one.started_at)
                key = one.candidate, one.stage
                held[key] = held.get(key, 0.0) + seconds
        found: dict[str, list[float]] = {}
        for owner, stage in self._snapshot.results:
            if stage in self._stages and held.get((owner, stage)):
                operations = self.operations(self._snapshot.candidates[owner], stage)
                if operations:
                    found.setdefault(stage, []).append(held[owner, stage] / operations)
        return found
