"""Keys: what a file is called at a destination (PRODUCT P7, X2).

A key is text. Bytes of a path that are not UTF-8, control characters, ``%`` and ``\\`` are percent-encoded, one
``%XX`` a byte, so that every path has one key and every key one path.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Sequence
from urllib.parse import unquote_to_bytes

from quaymaster.errors import NameRefused

FIELDS = ("watch", "path", "dir", "name", "host")
"""What a key template may hold. ``{path}`` and ``{name}`` carry the suffix that compression added."""

_ESCAPED = re.compile("[\x00-\x1f\x7f-\x9f%\\\\\ud800-\udfff]")


def escape(path: bytes) -> str:
    """The key text of a path."""

    def encode(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogateescape"))

    return _ESCAPED.sub(encode, path.decode("utf-8", "surrogateescape"))


def unescape(key: str) -> bytes:
    """The path of a key: the inverse of :func:`escape`. Refuses what could lead out of a directory."""
    path = unquote_to_bytes(key.encode("utf-8", "surrogateescape"))
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise NameRefused(f"The key {key!r} cannot be a path below a directory")
    return path


def template_problem(template: str) -> str:
    """What is wrong with a key template, or an empty string."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"it cannot be read: {error}"
    if any(spec or conversion for _, _, spec, conversion in parts):
        return "a field cannot be formatted: write {path}, without : or ! in it"
    fields = [name for _, name, _, _ in parts if name is not None]
    unknown = sorted({name for name in fields if name not in FIELDS})
    if unknown:
        return f"{{{unknown[0]}}} is not known; there are " + ", ".join(f"{{{name}}}" for name in FIELDS)
    if not {"path", "name"} & set(fields):
        return "without {path} or {name} all files would have the same key"
    try:
        unescape(template.format(**dict.fromkeys(FIELDS, "x")))
    except NameRefused:
        return "it makes keys that begin with / or hold //, . or .. as a part"
    except (ValueError, IndexError, AttributeError) as error:
        return f"it cannot be filled in: {error}"
    return ""


def key_for(template: str, *, watch: str, path: bytes, host: str, suffix: str = "", version: int = 1) -> str:
    """Fill in a template. ``version`` above 1 (``on_change = "keep-both"``) stands before the first dot of the name:
    ``reads.fastq`` becomes ``reads~2.fastq``, and then takes the suffix."""
    folder, name = os.path.split(path)
    if version > 1:
        stem, dot, rest = name.partition(b".") if not name.startswith(b".") else (name, b"", b"")
        name = stem + b"~%d" % version + dot + rest
    name += suffix.encode()
    key = template.format(
        watch=escape(os.fsencode(watch)),
        path=escape(os.path.join(folder, name)),
        dir=escape(folder),
        name=escape(name),
        host=escape(os.fsencode(host)),
    )
    # An empty {dir} leaves a doubled or leading slash behind.
    return re.sub("/{2,}", "/", key).lstrip("/")


def keys_of(template: str, suffixes: Sequence[str], *, watch: str, host: str) -> Callable[[bytes], Sequence[str]]:
    """:func:`key_for` of many paths of one watch: gives the keys of a path, one for each suffix."""
    fixed, path, rest = template.partition("{path}")
    if not path or rest or not template_fields(fixed) <= {"watch", "host"}:
        return lambda path: [key_for(template, watch=watch, path=path, host=host, suffix=each) for each in suffixes]
    beginning = fixed_prefix(template, watch=watch, host=host)

    def of(path: bytes) -> Sequence[str]:
        key = beginning + escape(path)  # a path has no slash to be taken away
        return [key + suffix for suffix in suffixes]

    return of


def template_fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def fixed_prefix(template: str, *, watch: str, host: str) -> str:
    """What all keys of a watch begin with, whatever the path."""
    fixed = {"watch": escape(os.fsencode(watch)), "host": escape(os.fsencode(host))}
    prefix = ""
    for literal, name, _, _ in string.Formatter().parse(template):
        prefix += literal
        if name not in fixed:
            break
        prefix += fixed[name]
    return re.sub("/{2,}", "/", prefix).lstrip("/")


def path_of(template: str, key: str, *, watch: str, host: str, suffix: str = "") -> bytes | None:
    """The path whose key this is, when the template tells it; None for other keys. ``suffix`` is what compression
    added. A version's number (``reads~2.fastq``) stays in the name: it may be the file's own."""
    # In a key of a file at the top of its watch, an empty {dir} has taken its slash with it.
    shapes = [template, template.replace("{dir}/", "")] if "{dir}/" in template else [template]
    found = (_path_in(shape, template, key, watch, host, suffix) for shape in shapes)
    return next((path for path in found if path is not None), None)


def _path_in(shape: str, template: str, key: str, watch: str, host: str, suffix: str) -> bytes | None:
    fixed = {"watch": escape(os.fsencode(watch)), "host": escape(os.fsencode(host))}
    groups = {"path": "(?P<path>.+)", "dir": "(?P<dir>.*)", "name": "(?P<name>[^/]+)"}
    pattern, seen = "", set[str]()
    for literal, name, _, _ in string.Formatter().parse(shape):
        pattern += re.escape(literal)
        if name in fixed:
            pattern += re.escape(fixed[name])
        elif name in seen:
            pattern += f"(?P={name})"
        elif name is not None:
            pattern += groups[name]
            seen.add(name)
    if not (
        key.endswith(suffix)
        and (found := re.fullmatch(pattern, key.removesuffix(suffix) if suffix else key, re.DOTALL))
    ):
        return None
    parts = found.groupdict()
    if "path" in parts:
        text = parts["path"]
    elif "name" in parts and ("dir" in parts or shape != template):
        text = os.path.join(parts.get("dir", ""), parts["name"])
    else:
        return None
    try:
        path = unescape(text)
    except NameRefused:
        return None
    same = key_for(template, watch=watch, path=path, host=host, suffix=suffix) == key
    return path if same else None
