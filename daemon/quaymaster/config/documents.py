"""Reading the configuration's files: the main one, then conf.d/*.toml merged over it, with the place of every key."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from typing import Any

from quaymaster.config.lines import Path, key_lines
from quaymaster.config.problems import Place, Problems

LARGEST_FILE = 4 << 20  # bytes; no configuration is larger, /dev/zero and a wrong --config are


@dataclass
class Documents:
    """All files as one tree of tables."""

    tables: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    complete: bool = True
    """False when a file could not be understood: what seems to be missing may then stand in it."""

    def merge(self, document: dict[str, Any], lines: dict[Path, int], order: int, file: str) -> None:
        """Tables merge key by key, every other value replaces what was there."""
        places = {path: Place(order, file, line) for path, line in lines.items()}
        self._merge(self.tables, document, places, ())

    def _merge(self, into: dict[str, Any], new: dict[str, Any], places: dict[Path, Place], above: Path) -> None:
        for key, value in new.items():
            path = (*above, key)
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                self._merge(into[key], value, places, path)
                continue
            if key in into:
                self.places = {p: place for p, place in self.places.items() if p[: len(path)] != path}
            into[key] = value
            self.places |= {p: place for p, place in places.items() if p[: len(path)] == path}


def read(path: str, problems: Problems) -> Documents:
    """The main file and its conf.d. Whatever cannot be read becomes a problem; the rest is returned."""
    documents = Documents()
    for order, file in enumerate([path, *_drop_ins(path, problems)]):
        documents.sources.append(file)
        text = _text(file, order, problems)
        parsed = _parsed(text, file, order, problems) if text is not None else None
        if parsed is None:
            documents.complete = False
        else:
            documents.merge(*parsed, order, file)
    problems.places = documents.places
    return documents


def drop_in_directory(name: str) -> str:
    """``conf.d``, or for a service of another name (``quaymaster@lab.service``, lab.toml) one of its own: ``lab.d``.
    So what belongs to one service is never taken by two."""
    stem = name.removesuffix(".toml")
    return "conf.d" if stem in (name, "quaymaster") else f"{stem}.d"


def _drop_ins(path: str, problems: Problems) -> list[str]:
    directory = os.path.join(os.path.dirname(path), drop_in_directory(os.path.basename(path)))
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        problems.add_file(directory, 'is not a directory; remove it, or make it one that holds "*.toml" files')
        return []
    except ValueError:  # a NUL in the name: the main file says so
        return []
    except OSError as error:
        problems.add_file(directory, f"cannot be listed ({error.strerror}); run chmod 0755 on it")
        return []
    # Hidden names are what editors leave behind.
    return [os.path.join(directory, name) for name in names if name.endswith(".toml") and not name.startswith(".")]


def _text(file: str, order: int, problems: Problems) -> str | None:
    try:
        with open(file, "rb") as opened:
            if stat.S_ISDIR(os.fstat(opened.fileno()).st_mode):
                raise IsADirectoryError
            data = opened.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        problems.add_file(file, "does not exist; create it, or name another with --config FILE", order)
    except IsADirectoryError:
        problems.add_file(file, "is a directory; name the file in it", order)
    except ValueError:  # a NUL in the name
        problems.add_file(file, "is not a file name; name another with --config FILE", order)
    except OSError as error:
        advice = "let the service's user read it, for instance with chmod 0644"
        problems.add_file(file, f"cannot be read ({error.strerror}); {advice}", order)
    else:
        return _decoded(data, file, order, problems)
    return None


def _decoded(data: bytes, file: str, order: int, problems: Problems) -> str | None:
    if not data.strip():
        problems.add_file(file, "is empty; describe a [destination.NAME] and a [watch.NAME], or remove it", order)
    elif len(data) > LARGEST_FILE:
        problems.add_file(file, f"is larger than {LARGEST_FILE >> 20} MiB; this is no configuration", order)
    else:
        try:
            return data.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            problems.add_file(file, f"is not UTF-8 at byte {error.start}; save it as UTF-8", order, line)
    return None


def _parsed(text: str, file: str, order: int, problems: Problems) -> tuple[dict[str, Any], dict[Path, int]] | None:
    try:
        return tomllib.loads(text), key_lines(text)
    except RecursionError:
        problems.add_file(file, "nests values too deeply; this is no configuration", order)
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        message = str(error)
        match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)", message)
        at_line = match and match.group(1)
        line = int(at_line) if at_line else text.rstrip("\n").count("\n") + 1
        column = f" at column {match.group(2)}" if match and at_line else ""
        reason = message[: match.start()] if match else "a value that cannot be read"
        problems.add_file(file, f"is not TOML{column}: {_plain(reason)}; {_advice(reason)}", order, line)
    return None


def _plain(reason: str) -> str:
    return (reason[:1].lower() + reason[1:]).encode("unicode_escape").decode()


def _advice(reason: str) -> str:
    if reason.startswith(("Cannot overwrite", "Cannot declare", "Duplicate", "Cannot mutate")):
        return "it is written twice: keep one"
    if reason.startswith("Invalid value"):
        return 'text stands in double quotes, a list in [ ]: key = "value"'
    return 'a setting is a line like key = "value", a table a line like [watch.NAME]'
