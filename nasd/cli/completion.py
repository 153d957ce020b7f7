"""What a shell offers for the word at the cursor. Quick, and silent: in the middle of a line that
somebody types there is no place for a message."""

from pathlib import Path
from typing import Annotated

import typer

from nasd.cli.options import state_folder
from nasd.contract.errors import NasdError

Offer = tuple[str, str]  # a word, and what it is


def candidates(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """The candidates of the state folder that the line names so far."""
    return _offers(ctx, incomplete, scored=False)


def scored_candidates(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Those that can be taken home."""
    return _offers(ctx, incomplete, scored=True)


def _offers(ctx: typer.Context, incomplete: str, scored: bool) -> list[Offer]:
    from nasd.record import lookup, snapshot

    config, state = ctx.params.get("config") or "config.toml", ctx.params.get("state")
    try:
        folder = state_folder(Path(config), None if state is None else Path(state))
        with snapshot.opened(folder) as connection:
            found = lookup.names(connection, scored)
    except (NasdError, OSError):
        return []
    return [offer for offer in found if offer[0].startswith(incomplete)]


CandidateArgument = Annotated[
    str,
    typer.Argument(
        help="Its number, or baseline, or best (the best quality, maybe the baseline's).",
        show_default=False,
        autocompletion=candidates,
    ),
]
