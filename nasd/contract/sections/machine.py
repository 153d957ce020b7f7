"""What a search runs on, how it is watched, and whom it tells: the sections of a place."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nasd.contract.sections.fields import (
    Count,
    Gigabytes,
    Minutes,
    Places,
    Plain,
    Real,
    Rows,
    Seconds,
    Section,
    Whole,
    as_json,
    auto_or_bool,
)
from nasd.contract.slots import Slot, on_gpus


def _devices(value: Any) -> Any:
    """Checked as one, because a union's own errors name none of the keys in the file."""
    names = value if isinstance(value, list | tuple) else ()
    if value != "auto" and not (
        names and all(isinstance(name, str) and _is_slot(name) for name in names)
    ):
        raise ValueError(
            'take "auto", or a list such as ["cuda:0", "cuda:1"] or ["cpu:0"], not'
            f" {as_json(value)}"
        )
    return value


def _is_slot(name: str) -> bool:
    try:
        return Slot.parse(name).device == name
    except ValueError:
        return False


LAUNCHERS = ("local", "slurm")  # as nasd.launch.launchers has them


def _launcher(value: Any) -> Any:
    if value not in LAUNCHERS:
        named = ", ".join(f'"{name}"' for name in LAUNCHERS)
        raise ValueError(f"there is no launcher {as_json(value)}; take one of {named}")
    return value


class Slots(Section):
    launcher: Annotated[str, BeforeValidator(_launcher)] = "local"
    """What starts attempts and ends them: `local`, on this machine; `slurm`, as jobs of a cluster,
    see [slurm]."""
    devices: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_devices)] = "auto"
    """One slot each: GPUs as `"cuda:0"`, CPU shares as `"cpu:0"`; `"auto"` takes all GPUs, or the
    whole CPU where there is none, and of a cluster as many as `slurm.slots`."""
    share: Annotated[Whole, Field(ge=1, le=64)] = 1
    """So many attempts share each GPU, which then is as many slots, with an equal part of its
    memory each: for small models, whose steps wait for Python and not for the GPU."""
    threads: Places = 1
    """Threads of each slot's process."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; weights and optimizer stay float32, and so does all on a device that
    would only emulate it."""
    compile: Annotated[Literal["auto"] | bool, BeforeValidator(auto_or_bool)] = "auto"
    """Compile the blocks; `"auto"`: where that is likely to pay for itself."""
    packing: Annotated[Literal["auto"] | bool, BeforeValidator(auto_or_bool)] = "auto"
    """Compute nothing for questions' padding; `"auto"`: wherever the device is fast at that."""
    widen: Annotated[bool, Field(strict=True)] = False
    """Give slots that would idle to attempts that run, at a checkpoint of theirs."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.share == 1:
            return self
        if self.launcher != "local":
            raise ValueError(
                f"share: {self.launcher} deals out GPUs itself (its gres can name parts of them):"
                " leave it out"
            )
        if self.devices != "auto" and not on_gpus(self.devices):
            raise ValueError(
                "share: only GPUs are shared; list more CPU shares as slots.devices instead"
            )
        if self.widen:
            raise ValueError(
                "share: slots.widen gives several GPUs to one attempt, and this one GPU to several:"
                " take one of them"
            )
        return self


class Job(Section):
    partition: Plain | None = None
    """What the job is submitted to; without it, the cluster's default. So it is with all of these
    that are not given."""
    account: Plain | None = None
    """Whom it is charged to."""
    qos: Plain | None = None
    """Its quality of service."""
    constraint: Plain | None = None
    """Features that its node has to have."""
    gres: Plain | None = None
    """What it needs of its node, `{slots}` standing for the number of its slots; without it
    `gpu:{slots}` where the slots are GPUs, and nothing where they are CPU shares."""
    time_minutes: Annotated[Whole, Field(ge=1, le=525_600)] | None = None
    """Its time limit. An attempt that comes to it writes a checkpoint, and goes on in another
    job."""
    memory_gb: Annotated[Real, Field(gt=0, le=10**6)] | None = None
    """Of the node's memory, for each slot."""
    nodes: Places | None = None
    """Over how many nodes an attempt's slots spread, as many on each: over fewer where they do not
    come out even. Without it, all are on one. `gres` and `{slots}` are each node's."""
    extra: tuple[Plain, ...] = ()
    """Further options of sbatch's, as `["--nice=100", "--exclusive"]`."""


class Slurm(Job):
    slots: Places = 1
    """How many slots its jobs may hold together, where `slots.devices` is `"auto"`: GPUs, or with
    `gres = ""` CPU shares of `slots.threads` cores."""
    signal_minutes: Annotated[Real, Field(gt=0, le=1000)] = 5.0
    """So long before its time limit an attempt is asked for its checkpoint; Slurm may do so up to a
    minute earlier."""
    poll_seconds: Seconds = 10.0
    """Between two looks at the queue, of one squeue for all jobs."""
    python: Plain = ""
    """The interpreter of nasd's environment on the nodes; without it, the daemon's own."""
    setup: tuple[Plain, ...] = ()
    """Lines of the job's script, ahead of the worker, as `["module load cuda"]`."""
    stages: dict[str, Job] = {}
    """What a job asks for at one stage, where that is another: `[slurm.stages.finetune]` with keys
    from `partition` to `extra`; also of `prepare` and `screen`."""

    def of(self, stage: str) -> Job:
        """What a job of the stage asks for."""
        told = self.stages.get(stage)
        own = {} if told is None else told.model_dump(exclude_none=True, exclude_defaults=True)
        shared = {name: getattr(self, name) for name in Job.model_fields}
        return Job(**(shared | own))


class Measure(Section):
    device: Literal["cpu", "cuda"] = "cpu"
    """What models are to be fast on: the processor, or a GPU."""
    engine: Literal["torch", "onnxruntime"] = "torch"
    """What runs them there."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What is computed in."""
    threads: Places = 1
    """Of the processor."""
    batch: Count = 1
    """Examples in a forward pass."""
    tokens: Annotated[Whole, Field(ge=1, le=10**6)] = 128
    """In each of them."""


class Daemon(Section):
    tick_seconds: Seconds = 5.0
    """How often the daemon looks."""
    checkpoint_minutes: Minutes = 15.0
    """At most so much work is lost when a worker is killed."""
    log_steps: Rows = 50
    """Between two points of the training curves."""
    infrastructure_retries: Annotated[Whole, Field(ge=0, le=10**6)] = 5
    """In a row, before the search halts and asks for a person."""
    stop_grace_seconds: Seconds = 120.0
    """For checkpoints, when the daemon is told to stop."""
    start_minutes: Minutes = 10.0
    """From launch to a worker's first sign of life."""
    stall_minutes: Minutes = 10.0
    """Of silence, until a worker is ended and the attempt tried again."""
    disk_reserve_gb: Gigabytes = 10.0
    """With less free nothing starts, and what runs writes a checkpoint and waits."""
    activation_cache_gb: Gigabytes = 8.0
    """For activations of frozen layers, in `state/cache`; 0 keeps none."""
    backup_hours: Annotated[Real, Field(gt=0, le=8760)] = 6.0
    """Between two backups of the database."""


NOTICES = ("halt", "generation", "end", "hold")


def _notices(value: Any) -> Any:
    """Checked as one, so that the sentence names the key and not a place in it."""
    names = value if isinstance(value, list | tuple) else (value,)
    if not all(name in NOTICES for name in names) or len(set(names)) < len(names):
        raise ValueError(f"take of {', '.join(NOTICES)}, each once, not {as_json(value)}")
    return value


def _webhook(value: str) -> str:
    if value and not value.startswith(("https://", "http://", "$")):
        raise ValueError("take an address that begins with https://, or $NAME of the environment")
    return value


class Notify(Section):
    """Whom the daemon tells what they would else have to look for."""

    command: tuple[Plain, ...] = ()
    """A program with its arguments, which finds the message as JSON on its standard input, and
    `NASD_TEXT` and `NASD_EVENT` in its environment."""
    webhook: Annotated[Plain, AfterValidator(_webhook)] = ""
    """An address that the message is posted to as JSON, its `text` a sentence; `"$NAME"` takes the
    address from the environment."""
    on: Annotated[tuple[str, ...], BeforeValidator(_notices)] = NOTICES
    """What is told: a `halt`, each `generation` that is selected, the `end`, a `hold` for a disk
    that is full."""


def _without_password(value: str) -> str:
    if "://" in value and "@" in value.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "take the name and password out of the address, and put them into the environment, as"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return value


class WandB(Section):
    """Weights & Biases gets what TensorBoard shows, a run for each candidate."""

    mode: Literal["offline", "online"] = "offline"
    """`offline` leaves runs in `sinks/wandb` of the state folder, for `wandb sync`; `online` calls
    that itself. The key is wandb's own affair: `wandb login`, or `WANDB_API_KEY`."""
    project: Plain = ""
    """Without it, the experiment's name."""
    entity: Plain = ""
    """Whose project it is; without it, the account's own."""
    every_minutes: Minutes = 10.0
    """How often a run is told again while it grows."""


class MLflow(Section):
    """MLflow gets what TensorBoard shows, a run for each candidate."""

    tracking: Annotated[Plain, AfterValidator(_without_password)] = ""
    """The address of a tracking server, or of a folder (`file:///...`); without it,
    `sinks/mlflow/runs` in the state folder."""
    experiment: Plain = ""
    """Without it, the experiment's name."""
    every_minutes: Minutes = 10.0
    """How often a run is told again while it grows."""
