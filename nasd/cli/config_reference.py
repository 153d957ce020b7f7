"""Every key of a config, as the tables of docs/config.md: made from the models of nasd.contract."""

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nasd.contract import ranges
from nasd.contract.config import Config
from nasd.contract.mistakes import section_in

SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
PLAIN = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}


def markdown() -> str:
    """A table for each section; one for several that have the same keys."""
    tables: dict[type[BaseModel], list[str]] = {}
    for title, model in _sections(Config, "", ""):
        tables.setdefault(model, []).append(title)
    return "\n\n".join(
        "\n".join(["  \n".join(titles), "", *rows])
        for model, titles in tables.items()
        if len(rows := list(_rows(model))) > 2
    )


def _sections(
    model: type[BaseModel], path: str, about: str
) -> Iterator[tuple[str, type[BaseModel]]]:
    """(title, model) of a section and of all below it; path: its key, in brackets as in TOML."""
    yield f"**`{path}`** {' '.join(about.split())}".rstrip(), model
    inner, said = path.strip("[]"), texts(model)
    for name, field in _fields(model):
        below = section_in(field.annotation)
        if below is not None and not _by_name(field):
            key = f"{inner}.{name}" if inner else name
            many = get_origin(field.annotation) is tuple
            yield from _sections(below, f"[[{key}]]" if many else f"[{key}]", said.get(name, ""))


def _rows(model: type[BaseModel]) -> Iterator[str]:
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    said = texts(model)
    for name, field in _fields(model):
        if section_in(field.annotation) is None or _by_name(field):
            kind = _type(field.annotation, field.metadata)
            about = " ".join(said.get(name, "").split())
            yield f"| `{name}` | {kind} | {_default(field)} | {about} |"


def _by_name(field: FieldInfo) -> bool:
    """Whether it holds sections by names that are the user's, with keys that stand above."""
    return get_origin(field.annotation) is dict


def texts(model: type[BaseModel]) -> Mapping[str, str]:
    """What stands below the keys of a section, and of those that it takes its keys from."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            found |= _own_texts(kind)
    return found


def _own_texts(model: type[BaseModel]) -> Mapping[str, str]:
    """What stands below each key in the code, by the names of the file. Pydantic would read them
    for every command that imports the config, which costs as much as all its models."""
    (body,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for one, below in pairwise(body.body):
        match one, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[model.model_fields[name].alias or name] = text
    return found


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """By the names that stand in the file."""
    for name, field in model.model_fields.items():
        yield field.alias or name, field


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """In words, with the limits that `metadata` sets."""
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            inner, *more = arguments
            return _type(inner, [*metadata, *ranges.limits(more)])
        case origin if origin in (Union, UnionType):
            kinds = [_type(one, metadata) for one in arguments if one is not type(None)]
            if len(kinds) == 1:
                return kinds[0]
            return _or([word for kind in kinds for word in re.split(", | or ", kind)])
        case origin if origin is Literal:
            return _or([f"`{json.dumps(one)}`" for one in arguments])
        case origin if origin is tuple:
            inside = re.sub("number|text", r"\g<0>s", _type(arguments[0]))
            return f"{'list of' if arguments[-1] is Ellipsis else 'two'} {inside}"
        case origin if origin is dict and section_in(arguments[1]) is not None:
            return "table of tables"
        case origin if origin is dict:
            return f"table of {re.sub('number', 'numbers', _type(arguments[1]), count=1)}"
    return f"{PLAIN[annotation]} {_limit_words(ranges.limits(metadata))}".rstrip()


def _limit_words(limits: Sequence[ranges.Limit]) -> str:
    found = {type(one): ranges.bound(one) for one in limits}
    if Ge in found and Le in found:
        return f"from {found[Ge]} to {found[Le]}"
    return ", ".join(f"{SIGNS[kind]} {told}" for kind, told in found.items())


def _or(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "*needed*"
    if field.default in (None, (), {}):
        return ""
    return f"`{json.dumps(field.default)}`"
