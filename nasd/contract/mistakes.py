"""What is wrong with a config, as one sentence that names the key as the user writes it."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nasd.contract import ranges
from nasd.contract.readable import shown

OUT_OF_RANGE = {
    "greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number",
    "float_type",  # of a whole number too large for one
}  # fmt: skip


def sentence(error: ValidationError, data: Any, root: type[BaseModel]) -> str:
    """Of the first mistake. data: as it was parsed; root: what it was to be."""
    # An unknown key is most often the cause of a missing one: name it first.
    errors = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = errors[0]
    loc = _without_tags(data, first["loc"])
    key = _key(data, loc)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{_hint(loc, root)}"
    if first["type"] == "missing":
        return f"the key {key} is missing"
    message = re.sub(r"^Value error, ", "", first["msg"]).replace("valid tuple", "valid list")
    value = first["input"]
    given = f" (it is {shown(value)})" if isinstance(value, str | int | float | bool) else ""
    field = _field(loc, root)
    if field is not None and first["type"] in OUT_OF_RANGE and isinstance(value, int | float):
        given += f"; the range is {ranges.words(field)}"
    where = f"{key}: " if key else ""
    return f"{where}{message[:1].lower()}{message[1:]}{given}"


def _without_tags(data: Any, loc: Sequence[int | str]) -> tuple[int | str, ...]:
    """The place without the kinds of tables that have a kind, which stand between its parts."""
    found: list[int | str] = []
    for part in loc:
        if isinstance(data, dict) and part not in data and data.get("kind") == part:
            continue
        found.append(part)
        data = _below(data, part)
    return tuple(found)


def _key(data: Any, loc: Sequence[int | str]) -> str:
    """The place as the user writes it: stages go by their name, other lists by number."""
    text = ""
    for part in loc:
        inside = _below(data, part)
        if isinstance(part, int):
            name = inside.get("name") if text == "stages" and isinstance(inside, dict) else None
            text += f".{name}" if isinstance(name, str) else f"[{part}]"
        else:
            text += f".{part}" if text else part
        data = inside
    return text


def _below(data: Any, part: int | str) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None


def _field(loc: Sequence[int | str], root: type[BaseModel]) -> FieldInfo | None:
    """The field that an error is about; its place in a list or a table does not matter."""
    names = [part for part in loc if isinstance(part, str)]
    for last in range(len(names) - 1, -1, -1):
        model = _model(names[:last], root)
        if model is not None:
            fields = model.model_fields.items()
            return next((one for key, one in fields if names[last] in (key, one.alias)), None)
    return None


def _model(loc: Sequence[int | str], root: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    named = False  # whether the next part is a name of the user's, of a section in a table
    for part in loc:
        if named:
            named = False
        elif model is not None and isinstance(part, str):
            field = model.model_fields.get(part)
            named = field is not None and get_origin(field.annotation) is dict
            model = _section(model, part)
    return model


def _hint(loc: Sequence[int | str], root: type[BaseModel]) -> str:
    """`; did you mean …?` for an unknown key, from the names its section does have."""
    model = _model(loc[:-1], root)
    if model is None:
        return ""
    names = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean {close[0]}?" if close else f" (known here: {', '.join(sorted(names))})"


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    for key, field in model.model_fields.items():
        if name in (key, field.alias):
            return section_in(field.annotation)
    return None


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, alone, as a list, or where it may be left out; else None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = section_in(argument)
        if found is not None:
            return found
    return None
