"""How a command reads its arguments, and shows its options."""

import re
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from nasd.contract import words

NEGATIVE = re.compile(r"-\.?\d")


class Command(TyperCommand):
    """Paths and texts are looked at before anything is done (nasd.contract.words). A negative
    number is an argument, which the command judges, and no option; a switch, which takes no value,
    shows none in the help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Only then, so that a misspelt option is still told with what it is like.
        ctx.ignore_unknown_options |= any(NEGATIVE.match(one) for one in args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for one in self.params:
            value = ctx.params.get(one.name)
            what = max(one.opts, key=len) if one.param_type_name == "option" else one.name.upper()
            if isinstance(value, Path):
                ctx.params[one.name] = words.path(value, what)
            for given in value if isinstance(value, list | tuple) else (value,):
                if isinstance(given, str):
                    words.text(given, what)
        return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        found: list[Any] = super().get_params(ctx)
        for one in found:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return found
