"""Command-line options made from a pydantic model, so that each option is declared once, in the model."""

import inspect
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from index.build_options import NO_VARIABLE

__all__ = ["fields_of", "option_name", "variable_of", "with_options"]


def option_name(field: str) -> str:
    """--segment-docs for segment_docs."""
    return "--" + field.replace("_", "-")


def variable_of(name: str, field: FieldInfo, env_prefix: str) -> str | None:
    """The environment variable that a field is taken from where its option is not given, if there is one."""
    marks = field.json_schema_extra
    return None if isinstance(marks, dict) and marks.get(NO_VARIABLE) else f"{env_prefix}{name.upper()}"


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model, its own before those that it shares with others: as help and tables list them."""
    names = [name for kind in model.__mro__ for name in getattr(kind, "__annotations__", {})]
    return {name: model.model_fields[name] for name in dict.fromkeys(names) if name in model.model_fields}


def with_options(model: type[BaseModel], env_prefix: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a Typer command that takes `options: model` so that it has one option per field of the model.

    Values go to the model as text, which parses, checks and explains them. An option that is not given is left to the
    model: its own environment, or its default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "options"]
        derived = [_parameter(name, field, env_prefix) for name, field in fields_of(model).items()]

        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in model.model_fields}
            command(**arguments, options=_make(model, {name: v for name, v in given.items() if v is not None}))

        run.__signature__ = inspect.Signature(own + derived)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in own + derived}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _make(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        name = option_name(str(first["loc"][0])) if first["loc"] else None
        raise typer.BadParameter(first["msg"], param_hint=name) from error


def _parameter(name: str, field: FieldInfo, env_prefix: str) -> inspect.Parameter:
    flag = field.annotation is bool
    default = field.default
    required = default is PydanticUndefined
    shown: bool | str = False
    if not required and default is not None:
        shown = str(default.value if isinstance(default, Enum) else default)
        if flag:
            shown = "on" if default else "off"
    option = typer.Option(
        f"{option_name(name)}/--no-{name.replace('_', '-')}" if flag and default else option_name(name),
        help=field.description,
        envvar=variable_of(name, field, env_prefix),
        show_envvar=True,
        show_default=shown,
        metavar=None if flag else _metavar(field.annotation),
    )
    kind: Any = bool if flag else str
    if required:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option])
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _metavar(annotation: Any) -> str:
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kind = Path if Path in kinds else kinds[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return "|".join(member.value for member in kind)
    names = {int: "INTEGER", float: "NUMBER", SecretStr: "SECRET", str: "TEXT"}
    return names.get(kind, "PATH")
