"""Where everything of an experiment stands below its state folder."""

from pathlib import Path

from nasd.contract.protocol import AttemptFolder


class StateFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "nasd.db"
        self.lock = path / "daemon.lock"
        self.log = path / "daemon.log"
        self.backups = path / "backups"
        self.cache = path / "cache"
        self.home = self.cache / "home"  # lent to processes whose own cannot be used
        self.tensorboard = path / "tensorboard"
        self.sinks = path / "sinks"  # what trackers of others' keep here
        self.reports = path / "reports"
        self.requests = path / "requests"
        self.attempts = path / "attempts"

    def attempt(self, attempt: int) -> AttemptFolder:
        return AttemptFolder(self.attempts / str(attempt))

    def candidate(self, candidate: int) -> Path:
        return self.path / "candidates" / str(candidate)

    def result(self, candidate: int, stage: str) -> Path:
        """What a finished stage left behind: the model, or the predictions."""
        return self.candidate(candidate) / stage

    def run(self, name: str) -> Path:
        """The folder of a TensorBoard run."""
        return self.tensorboard / name

    def stands(self, result: tuple[int, str]) -> bool:
        """Whether the (candidate, stage) left something that is still there."""
        return self.result(*result).is_dir()

    def curves(self, generation: int | None, candidate: int, task: str) -> Path:
        """The TensorBoard run of what a candidate's stages of one task train."""
        return self.run(run_name(generation, candidate)) / task


def run_name(generation: int | None, candidate: int | None = None) -> str:
    """What TensorBoard calls a generation or a candidate: so that `gen03` finds all of one."""
    if generation is None:
        return "baseline"
    group = f"gen{generation:02d}"
    return group if candidate is None else f"{group}/c{candidate:04d}"
