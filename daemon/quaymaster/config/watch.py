"""``[watch.NAME]``: which files are taken, when, and what becomes of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from quaymaster.config import values
from quaymaster.config.runs import DEEPEST, Layout, Whole, glob_problem, path_matches
from quaymaster.config.table import AbsolutePath, Bytes, Duration, Globs, Table, Texts, UnitFiles
from quaymaster.config.units import SHORTEST_WAIT
from quaymaster.config.values import quoted
from quaymaster.keys import template_problem
from quaymaster.model import MANIFEST


class Compress(Table):
    format: Literal["zstd", "gzip"]
    level: int = Field(6, ge=1, le=22)
    min_size: Annotated[int, Bytes()] = values.MIN_SIZE
    """Bytes. Files of at most this size go as they are."""
    timeout: Annotated[float, Duration(SHORTEST_WAIT)] = 300.0
    """Seconds without progress."""

    @field_validator("level")
    @classmethod
    def _level_of_format(cls, level: int, info: Any) -> int:
        if info.data.get("format") == "gzip" and level > 9:
            raise ValueError(f"{level} is out of range; gzip has levels 1 to 9")
        return level


class Watch(Table):
    name: str
    path: AbsolutePath
    destinations: Texts = Field(min_length=1)
    include: Globs = ()
    exclude: Globs = ()
    ignore: Globs = ()
    """Added to the temporary names that are always ignored."""
    mode: Literal["auto", "inotify", "poll"] = "auto"
    poll_interval: Annotated[float, Duration(SHORTEST_WAIT)] = 10.0
    rescan_interval: Annotated[float, Duration(SHORTEST_WAIT)] = 900.0
    settle: Annotated[float | None, Duration(word="auto")] = None
    """Seconds without change. None: 5 on local, 90 on network file systems."""
    settle_closed: Annotated[float, Duration()] = values.SETTLE_CLOSED
    """Seconds without change, when the file is known to be closed."""
    settle_per_gib: Annotated[float, Duration()] = values.SETTLE_PER_GIB
    """Seconds more for each GiB of the file."""
    marker: str | None = None
    """Name of the file that says "this directory is complete"."""
    sentinel: str | None = None
    """Name of a file that is there as long as the right file system is; a relative path."""
    hang_after: Annotated[float, Duration(SHORTEST_WAIT, 3600)] = values.HANG_AFTER
    """Seconds without an answer from the file system, after which the watch counts as away."""
    fetchers: int = Field(1, ge=1, le=64)
    """Files at once that are copied to local staging, or read where nothing is staged, from a network file system."""
    uploaders: int = Field(1, ge=1, le=64)
    """Files at once that are compressed and written beside their sources on a network file system."""
    priority: int = Field(0, ge=-1000, le=1000)
    """Of watches that have files waiting the highest goes first; one file in eight is of a lower one (PRODUCT Q4)."""
    order: Literal["oldest", "smallest"] = "oldest"
    """Which of its waiting files goes first."""
    compress: Compress | None = None
    never_compress: Texts = ()
    """Patterns of names of files that go as they are, such as ``*.bam``."""
    profile: str | None = None
    """Whose settings it has where it says nothing itself."""
    unit: Literal["directory"] | None = None
    """A directory of it counts as delivered when it is whole, as a manifest then tells (PRODUCT W5)."""
    unit_depth: int = Field(1, ge=1, le=DEEPEST)
    """Levels below ``path`` on which the units are."""
    unit_pattern: str | None = None
    """The paths that units have, level by level, instead of a depth: ``*/run_*``."""
    unit_complete: UnitFiles = ()
    """Files that a whole unit has: all of them."""
    unit_complete_any: UnitFiles = ()
    """Files of which a whole unit has one."""
    unit_idle: Annotated[float | None, Duration(SHORTEST_WAIT, word="none")] = None
    """Seconds without anything new after which a unit is whole."""
    unit_open_max: Annotated[float | None, Duration(SHORTEST_WAIT, word="none")] = 3 * 86400.0
    """Seconds after which a unit that is not published is an alarm."""
    upload: Literal["file", "unit"] = "file"
    """When files of a unit travel: each as it settles, or all when the unit is whole."""
    after_unit: bool = True
    """``delete`` and ``move`` wait until the manifest of the source's unit is published."""
    key: str = "{watch}/{path}"
    verify: Literal["checksum", "readback"] = "checksum"
    digests: Annotated[tuple[Literal["blake2b", "sha1", "md5"], ...], Field(strict=False)] = ()
    """Recorded beside SHA-256, which always is."""
    after: Literal["keep", "delete", "move"] = "keep"
    after_dir: AbsolutePath | None = None
    """Where ``move`` puts sources; in the file: ``after = "move:DIRECTORY"``."""
    after_grace: Annotated[float, Duration()] = 0.0
    """Seconds between proof and ``delete`` or ``move``."""
    after_hooks: Texts = ()
    """Hooks that must have confirmed what they are told of a file before its source is deleted or moved."""
    on_change: Literal["replace", "keep-both", "refuse"] = "replace"
    stage: bool | None = None
    """Copy to local staging first. None: when the source is on a network file system."""
    hard_links: bool = False

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, table: Any) -> Any:
        """``after = "move:DIR"`` is two fields; ``stage = "auto"`` and ``digests = ["sha256"]`` are the defaults."""
        if not isinstance(table, dict):
            return table
        table = dict(table)
        after = table.get("after")
        if isinstance(after, str) and after.startswith("move:"):
            table |= {"after": "move", "after_dir": after.removeprefix("move:")}
        if table.get("stage") == "auto":
            table["stage"] = None
        if isinstance(table.get("digests"), list | tuple):
            table["digests"] = [name for name in table["digests"] if name != "sha256"]
        return table

    @field_validator("compress", mode="before")
    @classmethod
    def _compress_word(cls, value: Any) -> Any:
        if value is False or value == "none":
            return None
        if value is True or (isinstance(value, str) and value not in ("zstd", "gzip")):
            raise ValueError('is not a compression; write "zstd", "gzip" or "none"')
        return {"format": value} if isinstance(value, str) else value

    @field_validator("marker")
    @classmethod
    def _marker_name(cls, name: str | None) -> str | None:
        return values.plain_name(name, "CopyComplete.txt")

    @field_validator("sentinel")
    @classmethod
    def _sentinel_name(cls, name: str | None) -> str | None:
        # Plain enough to be a pattern too: the sentinel itself is never taken.
        if name is not None and not re.fullmatch(r"(?!.*(^|/)\.{1,2}(/|$))[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", name):
            raise ValueError(f'{quoted(name)} is not such a name; write one like ".quaymaster-sentinel"')
        return name

    @property
    def ignored(self) -> tuple[str, ...]:
        """The patterns of ``ignore``, the sentinel, and a manifest that came back with its unit."""
        own: tuple[str, ...] = (f"/{self.sentinel}",) if self.sentinel else ()
        if self.unit:
            own += ("/" + (self.unit_pattern or "/".join("*" * self.unit_depth)) + f"/{MANIFEST}",)
        return (*self.ignore, *own)

    @field_validator("unit", mode="before")
    @classmethod
    def _unit_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("unit_pattern")
    @classmethod
    def _unit_pattern_levels(cls, pattern: str | None) -> str | None:
        if pattern is not None and (problem := glob_problem(pattern)):
            raise ValueError(problem)
        return pattern

    @field_validator("profile")
    @classmethod
    def _profile_word(cls, name: str | None) -> str | None:
        return None if name == "none" else name

    @property
    def layout(self) -> Layout:
        """Where its units are."""
        return Layout.of(self.unit_depth, self.unit_pattern)

    def unit_of(self, path: bytes) -> bytes | None:
        """The unit that a file is in; None when it is in none."""
        return self.layout.unit_of(path) if self.unit else None

    @property
    def whole(self) -> Whole:
        """What says that a unit is whole; the marker of the watch does where nothing else is said."""
        marker = (self.marker,) if self.marker else ()
        said = bool(self.unit_complete or self.unit_complete_any or self.unit_idle is not None)
        return Whole(self.unit_complete if said else marker, self.unit_complete_any, self.unit_idle)

    def compresses(self, name: bytes) -> bool:
        """Whether no pattern of ``never_compress`` fits a file's name."""
        return not any(path_matches(name, pattern) for pattern in self.never_compress)

    @field_validator("key")
    @classmethod
    def _key_template(cls, template: str) -> str:
        if problem := template_problem(template):
            raise ValueError(f'{quoted(template)} cannot name files: {problem}; write one like "{{watch}}/{{path}}"')
        return template

    @model_validator(mode="after")
    def _move_needs_directory(self) -> Self:
        if self.after == "move" and self.after_dir is None:
            raise ValueError('"move" has no directory; write after = "move:/absolute/directory"')
        return self

    @model_validator(mode="after")
    def _unit_is_told(self) -> Self:
        """What the keys of units have to do with each other is wrong with ``unit``: load.py says so."""
        if self.unit and not self.whole.patterns and self.whole.idle is None:
            raise PydanticCustomError(
                "unit", 'nothing says when one is whole; write unit_complete = ["NAME"] or unit_idle = "10min"'
            )
        return self
