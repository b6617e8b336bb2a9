"""S2: ``journalctl -x`` explains every event that an operator may have to act on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from quaymaster.model import Level
from quaymaster.service import journal

PACKAGE = Path(journal.__file__).parents[1]
CATALOG = Path(__file__).parents[3] / "units/catalog/quaymaster.catalog"
TELLING = {"Event", "_say", "say", "_tell", "tell", "tell_once", "_set_aside"}
KIND = re.compile(r"[a-z]+(-[a-z]+)+|[a-z]{4,}")
HEADER = re.compile(r"(?m)^# (?P<kind>\S+)\n-- (?P<id>[0-9a-f]{32})\nSubject: (?P<subject>.+)\n")


def emitted() -> Iterator[tuple[str, Level, str]]:
    """(kind, level, where) of every event in the code. What cannot be told from the text counts as a warning."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        own = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and _name(call.func) in TELLING:
                words = [a.value for a in call.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                for word in words[:1]:
                    if KIND.fullmatch(word):
                        level = _level(call) or _default_level(own.get(_name(call.func)))
                        if _name(call.func) == "Event" and _level(call) is None:
                            level = Level.INFO
                        yield word, level, f"{path.relative_to(PACKAGE)}:{call.lineno}"


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _level(node: ast.AST) -> Level | None:
    found = [Level[n.attr] for n in ast.walk(node) if isinstance(n, ast.Attribute) and _name(n.value) == "Level"]
    return min(found, default=None)


def _default_level(function: ast.FunctionDef | None) -> Level:
    if function is None:
        return Level.WARNING
    arguments = [*function.args.args, *function.args.kwonlyargs]
    defaults = [*function.args.defaults, *function.args.kw_defaults]
    if any(a.arg == "level" for a in arguments):
        return next((level for d in defaults if d and (level := _level(d))), Level.WARNING)
    return _level(function) or Level.WARNING


def entries() -> dict[str, re.Match[str]]:
    found = list(HEADER.finditer(CATALOG.read_text()))
    assert len(found) == CATALOG.read_text().count("\n-- "), "an entry has no line with its kind above it"
    assert len({match["kind"] for match in found}) == len(found), "an event is explained twice"
    return {match["kind"]: match for match in found}


def test_the_code_is_read_right() -> None:
    found = {kind: level for kind, level, _ in emitted()}
    assert found["parked"] is Level.ERROR
    assert found["delivered"] is Level.INFO
    assert found["attributes-not-kept"] is Level.WARNING
    assert found["source-refused"] is Level.WARNING


def test_every_event_of_warning_or_worse_is_explained() -> None:
    known = entries()
    missing = {f"{kind} ({where})" for kind, level, where in emitted() if level <= Level.WARNING and kind not in known}
    assert not missing


def test_no_explanation_is_left_of_an_event_that_is_no_more() -> None:
    assert entries().keys() <= {kind for kind, _, _ in emitted()}


def test_each_stands_under_the_message_id_that_the_journal_gets() -> None:
    assert {kind: match["id"] for kind, match in entries().items()} == {
        kind: journal.message_id(kind) for kind in entries()
    }


def test_each_says_what_happened_and_what_to_do_with_fields_that_exist() -> None:
    text = CATALOG.read_text()
    source = (PACKAGE / "service/journal.py").read_text()
    fields = {f"QUAYMASTER_{name}" for name in re.findall(r'\("([A-Z0-9]+)", ', source)} | {"MESSAGE"}
    assert set(re.findall(r"@([A-Z0-9_]+)@", text)) <= fields
    for kind, match in entries().items():
        body = text[match.end() :].partition("\n# ")[0]
        assert "Defined-By: quaymaster\n" in body, kind
        assert len(body.partition("\n\n")[2].split()) >= 12, f"{kind} is hardly explained"
        assert all(len(line) <= 80 for line in body.splitlines()), kind
