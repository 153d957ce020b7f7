"""Where everything of an experiment stands below its state folder."""

from pathlib import Path

from nasd.protocol import AttemptFolder


class StateFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "nasd.db"
        self.lock = path / "daemon.lock"
        self.log = path / "daemon.log"
        self.backups = path / "backups"
        self.cache = path / "cache"
        self.tensorboard = path / "tensorboard"
        self.reports = path / "reports"
        self.requests = path / "requests"

    def attempt(self, attempt: int) -> AttemptFolder:
        return AttemptFolder(self.path / "attempts" / str(attempt))

    def candidate(self, candidate: int) -> Path:
        return self.path / "candidates" / str(candidate)

    def result(self, candidate: int, stage: str) -> Path:
        """What a finished stage left behind: the model, or the predictions."""
        return self.candidate(candidate) / stage

    def stands(self, result: tuple[int, str]) -> bool:
        """Whether the (candidate, stage) left something that is still there."""
        return self.result(*result).is_dir()

    def curves(self, generation: int | None, candidate: int, stage: str) -> Path:
        """The TensorBoard run of one stage, named so that a generation's candidates sort well."""
        group = "baseline" if generation is None else f"gen{generation:02d}"
        return self.tensorboard / group / f"c{candidate:04d}" / stage

    @property
    def search_curves(self) -> Path:
        """The daemon's own TensorBoard run."""
        return self.tensorboard / "search"
