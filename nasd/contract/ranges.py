"""The range that a key's type allows its number, in words: for messages, and for docs/config.md."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

Limit = Ge | Gt | Le | Lt
SAYS = {Ge: "from", Gt: "above", Le: "to", Lt: "below"}


def limits(metadata: Sequence[Any]) -> list[Limit]:
    """Those of metadata, of fields' metadata within it too."""
    return [
        inner
        for one in metadata
        for inner in (one.metadata if isinstance(one, FieldInfo) else [one])
        if isinstance(inner, Limit)
    ]


def bound(limit: Limit) -> str:
    """`4,096`, `0.5` or `2^63 - 1`."""
    (value,) = (getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name))
    if isinstance(value, int) and abs(value) > 10**15:
        whole, power = (value + 1, " - 1") if value > 0 else (value, "")
        return f"{'-' if value < 0 else ''}2^{abs(whole).bit_length() - 1}{power}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def words(field: FieldInfo) -> str:
    """`from 1 to 4,096`, or `above 0, below 1`; "" where it has no limits."""
    found = {type(one): one for one in _all(field.annotation, field.metadata)}
    told = [f"{SAYS[kind]} {bound(found[kind])}" for kind in (Ge, Gt, Le, Lt) if kind in found]
    return (" " if Ge in found and Le in found else ", ").join(told)


def _all(annotation: Any, metadata: Sequence[Any]) -> Iterator[Limit]:
    """Also of what stands in a list or beside None."""
    yield from limits(metadata)
    for argument in get_args(annotation):
        if hasattr(argument, "__metadata__"):
            yield from _all(argument, argument.__metadata__)
