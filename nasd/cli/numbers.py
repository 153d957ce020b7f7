"""Numbers on the command line: each with its range, and a short message, whatever was typed."""

from collections.abc import Callable
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.readable import shown

MOST_ID = 2**63 - 1  # what SQLite can hold


def whole(option: str, least: int, most: int) -> Any:
    """The type of an option that takes whole numbers from `least` to `most`."""
    return _parser(
        int,
        f"{option}: take a whole number from {least:,} to {most:,}",
        lambda n: least <= n <= most,
    )


def real(option: str, least: float, most: float) -> Any:
    """The same of numbers that need not be whole."""
    return _parser(
        float, f"{option}: take a number from {least:g} to {most:,}", lambda n: least <= n <= most
    )


def above_zero(option: str, most: float) -> Any:
    """The same of numbers above 0."""
    return _parser(
        float, f"{option}: take a number above 0, up to {most:,.0f}", lambda n: 0 < n <= most
    )


def _parser(
    kind: type[int] | type[float], what: str, fits: Callable[[float], bool]
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:  # no number, or one of thousands of digits
            value = None
        if value is None or not fits(value):
            raise NasdError(f"{what}, not {shown(text)}")
        return value

    parse.__name__ = "integer" if kind is int else "float"  # what the help shows
    return parse
