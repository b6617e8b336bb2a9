"""What every table of the configuration is made of: how a size, a duration, a path or a pattern is read and refused."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import core_schema

from quaymaster.config import values
from quaymaster.config.runs import glob_problem
from quaymaster.config.units import Seconds, Size
from quaymaster.config.values import quoted


class Bytes(Size):
    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))


class Duration(Seconds):
    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))


def _absolute(path: str) -> str:
    if path.startswith("~"):
        raise ValueError(f'{quoted(path)} begins with "~", which no service has; write the absolute path')
    if not path.startswith("/"):
        raise ValueError(f'{quoted(path)} is relative; write the absolute path, beginning with "/"')
    if "\0" in path:
        raise ValueError(f"{quoted(path)} holds a NUL; no path can")
    if ".." in path.split("/"):
        raise ValueError(f'{quoted(path)} holds ".."; write the path without it')
    return "/" + os.path.normpath(path).lstrip("/")


def _globs(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The gitignore patterns that cannot be compiled, or that can never match anything (gitignore(5))."""
    for pattern in patterns:
        problem = ""
        if not pattern.strip() or pattern.strip("!/ ") == "" or pattern.startswith("#"):
            problem = "matches nothing; remove it"
        elif "\n" in pattern or "\0" in pattern:
            problem = 'holds a line break or NUL; write "?" in its place'
        elif (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            problem = 'ends in a lone "\\"; remove it'
        elif any(low > high for low, high in re.findall(r"(?s)(?<=[\[!^])([^\]])-([^\]])", pattern)):
            problem = "has a range that runs backwards; write the lower character first"
        if problem:
            raise ValueError(f"{quoted(pattern)} {problem}")
    return patterns


HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")

AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # TOML arrays arrive as lists
Globs = Annotated[Texts, AfterValidator(_globs)]


def _unit_files(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if problem := glob_problem(pattern):
            raise ValueError(problem)
    return patterns


UnitFiles = Annotated[Texts, AfterValidator(_unit_files)]


def credential_name(name: str | None) -> str | None:
    if name is None:
        return None
    return _absolute(name) if name.startswith("/") else values.credential_name(name)


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)
