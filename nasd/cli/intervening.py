"""Commands by which a person intervenes in a search: they ask, and its daemon does it in a turn.

What each request means is nasd.policy.steering's to say.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from nasd.cli.command import Command
from nasd.cli.completion import CandidateArgument
from nasd.cli.options import MOST_HOURS, STEER, ConfigOption, StateOption, app, state_folder
from nasd.contract import strangers
from nasd.contract.errors import NasdError
from nasd.contract.readable import shown

WhyOption = Annotated[str, typer.Option("--why", help="Recorded with your name.")]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the answer.")]


def _ask(
    config: Path, state: Path | None, action: Any, why: str, no_wait: bool, **more: Any
) -> None:
    from nasd.cli.asking import ask

    print(ask(state_folder(config, state), action, why, not no_wait, **more))


@app.command(cls=Command, rich_help_panel=STEER)
def pause(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Start nothing new, and stop what runs at a checkpoint, until `nasd resume`.

    It holds across restarts. Nothing of it is charged to a candidate.

    Example: nasd pause --why "the power is cut at noon"
    """
    _ask(config, state, "pause", why, no_wait)


@app.command(cls=Command, rich_help_panel=STEER)
def drain(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Start nothing new, and let what runs come to its end, until `nasd resume`.

    Example: nasd drain --why "a new driver"
    """
    _ask(config, state, "drain", why, no_wait)


@app.command(cls=Command, rich_help_panel=STEER)
def resume(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Go on after `nasd pause` or `nasd drain`.

    Example: nasd resume
    """
    _ask(config, state, "resume", why, no_wait)


@app.command(cls=Command, rich_help_panel=STEER)
def stop(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Let attempts write their checkpoints and the daemon leave, as on SIGTERM.

    `nasd run` goes on from there; a service stays down until it is started again.

    Example: nasd stop
    """
    _ask(config, state, "stop", why, no_wait)


@app.command(cls=Command, rich_help_panel=STEER)
def budget(
    gpu_hours: Annotated[str, typer.Argument(help="In all, or none for no limit.")],
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Set the slot-hours (of GPUs: GPU-hours) that the search may take in all.

    It holds in the place of experiment.budget_gpu_hours, until that is changed in
    the config. Once it is spent, attempts stop at a checkpoint and the search
    halts.

    Example: nasd budget 6500
    """
    hours = None
    if gpu_hours != "none":
        try:
            hours = float(gpu_hours)
        except ValueError:
            hours = math.nan
        if not 0 < hours <= MOST_HOURS:
            raise NasdError(
                "a budget is a number of slot-hours (of GPUs: GPU-hours) above 0, and up to"
                f" {MOST_HOURS:,}, or none, and not"
                f" {gpu_hours if len(gpu_hours) < 40 else shown(gpu_hours)}"
            )
    _ask(config, state, "budget", why, no_wait, gpu_hours=hours)


@app.command(cls=Command, rich_help_panel=STEER)
def retry(
    candidate: CandidateArgument,
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Try a failed candidate again at its stage, or one that waits after losses, now.

    Its setbacks so far count no more. Nobody comes back behind a decision that
    was made without them.

    Example: nasd retry 17 --why "the disk was full"
    """
    _ask(config, state, "retry", why, no_wait, who=candidate)


@app.command(cls=Command, rich_help_panel=STEER)
def cut(
    candidate: CandidateArgument,
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Take a candidate out of its generation for good; if it runs, it is ended at once.

    Example: nasd cut 17 --why "its loss has not moved for a day"
    """
    _ask(config, state, "cut", why, no_wait, who=candidate)


@app.command(cls=Command, rich_help_panel=STEER)
def inject(
    genotype: Annotated[
        Path,
        typer.Argument(
            metavar="GENOTYPE.json", help="In the form of state/candidates/<id>/genotype.json."
        ),
    ],
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    why: WhyOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Put a genotype that you made into the next generation, beside its other candidates.

    It has to lie within the search space, and to be new. It inherits its weights
    from that parent, or the baseline, of which it keeps most.

    Example: nasd inject genotype.json --why "what if it were narrow"
    """
    from nasd.views.forecast.planning import load

    wanted = strangers.json_object(genotype, "genotype: that is an object with blocks")
    settings = load(config) if state is None else None
    _ask(config, state, "inject", why, no_wait, genotype=wanted, settings=settings)
