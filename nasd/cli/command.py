"""How a command reads its arguments, and shows its options."""

import re
from typing import Any

from typer.core import TyperCommand

NEGATIVE = re.compile(r"-\.?\d")


class Command(TyperCommand):
    """A negative number is an argument, which the command judges, and no option; a switch, which
    takes no value, shows none in the help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Only then, so that a misspelt option is still told with what it is like.
        ctx.ignore_unknown_options |= any(NEGATIVE.match(one) for one in args)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        found: list[Any] = super().get_params(ctx)
        for one in found:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return found
