"""The scanner knows the line of every key that tomllib finds."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from quaymaster.config.lines import Path, key_lines

DOCUMENT = '''\
# a comment with [brackets] and key = "value"
top = 1                                         # 2
"quoted [key]" = 'x'                            # 3
dotted.inner."deep er" = [                      # 4
  1,                                            # 5
  """
several = "lines"
[not.a.header]
""",                                            # 6 to 9
  { a = 1, b = [ { c = 2 } ] },                 # 10
]
[watch.one]                                     # 12
path = "/a # b"                                 # 13
text = """\\
   a \\""" b""""                                 # 14, 15: ends in a quote
raw = \'\'\'
] } , \\
\'\'\'
after = 1979-05-27 07:32:00                     # 19
[ watch . "two.x" ]                             # 20
compress = { format = "zstd", level = 6 }       # 21
[[list]]                                        # 22
name = "first"
[[list]]                                        # 24
name = "second"
[list.sub]                                      # 26
x = 1
[[list.items]]                                  # 28
y = 2
'''


def test_every_form_of_key_and_value():
    lines = key_lines(DOCUMENT)
    expected: dict[Path, int] = {
        ("top",): 2,
        ("quoted [key]",): 3,
        ("dotted",): 4,
        ("dotted", "inner", "deep er"): 4,
        ("dotted", "inner", "deep er", 0): 5,
        ("dotted", "inner", "deep er", 1): 6,
        ("dotted", "inner", "deep er", 2, "b", 0, "c"): 10,
        ("watch",): 12,
        ("watch", "one"): 12,
        ("watch", "one", "path"): 13,
        ("watch", "one", "text"): 14,
        ("watch", "one", "raw"): 16,
        ("watch", "one", "after"): 19,
        ("watch", "two.x"): 20,
        ("watch", "two.x", "compress", "level"): 21,
        ("list",): 22,
        ("list", 0): 22,
        ("list", 0, "name"): 23,
        ("list", 1, "name"): 25,
        ("list", 1, "sub", "x"): 27,
        ("list", 1, "items", 0, "y"): 29,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert set(paths(tomllib.loads(DOCUMENT))) == set(lines)


def test_a_table_is_where_its_header_is():
    assert key_lines("[a.b]\n\n[a]\n")[("a",)] == 3


def paths(value: object, above: Path = ()) -> Iterator[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from paths(inner, (*above, key))


_BARE = st.text("abXY09_-", min_size=1, max_size=4)
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x7f\r"), max_size=8)


def _basic(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _long(text: str) -> str:
    return '"""\n' + text.replace("\\", "\\\\").replace('"', '\\"').translate(_CONTROLS) + '"""'


_CONTROLS = {code: f"\\u{code:04x}" for code in range(32) if code not in (9, 10)}
_KEY = st.one_of(_BARE, _TEXT.map(_basic), st.text("ab #=.[]'", max_size=4).map(lambda text: f'"{text}"'))
_SCALAR = st.one_of(
    st.sampled_from(
        ["1", "-2.5e3", "true", "inf", "1979-05-27 07:32:00", "07:32:00", "'raw # ] }'", "''''x' '''", '""']
    ),
    _TEXT.map(_basic),
    _TEXT.map(_long),
    st.text('ab"', max_size=2).map(lambda text: f'"""x{text}"""'),
)
_BLANK = st.sampled_from(["", " ", "\n", "# ] } , \" '\n", "\n\n  "])


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = [draw(_BLANK) + item + draw(_BLANK) for item in draw(st.lists(inner, max_size=3))]
    trailing = "," if items and draw(st.booleans()) else ""
    return "[" + ",".join(items) + trailing + draw(_BLANK) + "]"


@st.composite
def _inline_tables(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    pairs = draw(st.lists(st.tuples(_KEY, inner.filter(lambda text: "\n" not in text)), max_size=3))
    return "{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"


_VALUE = st.recursive(_SCALAR, lambda inner: st.one_of(_arrays(inner), _inline_tables(inner)), max_leaves=5)
_DOTTED = st.lists(_KEY, min_size=1, max_size=3).map(" . ".join)
_LINE = st.one_of(
    st.tuples(_DOTTED, _VALUE).map(lambda pair: f"{pair[0]} = {pair[1]}  # comment"),
    _DOTTED.map(lambda key: f"[{key}]"),
    _DOTTED.map(lambda key: f"[[ {key} ]] # comment"),
    st.sampled_from(["", "# [comment] x = 1", "   "]),
)


@given(st.lists(_LINE, max_size=8))
def test_it_agrees_with_tomllib(lines):
    text = ""
    for line in lines:  # keep what is valid together
        try:
            tomllib.loads(text + line + "\n")
        except tomllib.TOMLDecodeError:
            continue
        text += line + "\n"
    found = key_lines(text)
    assert set(found) == set(paths(tomllib.loads(text)))
    written = text.split("\n")
    for path, line in found.items():
        key = path[-1]
        if isinstance(key, str):
            assert key in written[line - 1] or _basic(key)[1:-1] in written[line - 1]
