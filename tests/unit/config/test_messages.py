"""Every mistake has one line: file, line, table and key, what is wrong, and what to do (PRODUCT S5)."""

from __future__ import annotations

import pytest

from quaymaster.config import load
from quaymaster.errors import ConfigError

OUT = '[destination.out]\ntype = "directory"\npath = "/data/out"\n'
S3 = '[destination.cloud]\ntype = "s3"\nbucket = "lab"\n'
IN = '[watch.in]\npath = "/data/in"\ndestinations = ["out"]\n'
BOTH = OUT + IN

# text with "#!" on the line to be named; table and key; words of the message
MISTAKES = {
    "unknown table": (BOTH + "[watches.x] #!\n", "[watches]", "not known; did you mean [watch.NAME]?"),
    "unknown table, nothing like it": (BOTH + "[zebra] #!\n", "[zebra]", "there are [service], [limits]"),
    "unknown key at the top": ("xyz = 1 #!\n" + BOTH, "xyz", "not known"),
    "unknown key": (BOTH + 'setle = "5s" #!\n', "[watch.in] setle", "did you mean settle?"),
    "unknown key, nothing like it": (BOTH + "zzz = 1 #!\n", "[watch.in] zzz", "remove it, or use one of after"),
    "key of another table": (
        BOTH + 'part_size = "16MiB" #!\n',
        "[watch.in] part_size",
        '[destination.NAME] of type "s3"',
    ),
    "key of another type": (OUT + 'bucket = "x" #!\n' + IN, "[destination.out] bucket", 'of type "s3", or remove it'),
    "inner field as a key": (BOTH + 'after_dir = "/x" #!\n', "[watch.in] after_dir", "not known"),
    "name as a key": (BOTH + 'name = "x" #!\n', "[watch.in] name", "not known"),
    "unknown key in compress": (
        BOTH + 'compress = { format = "zstd", levle = 3 } #!\n',
        "[watch.in] compress.levle",
        "did you mean level?",
    ),
    "text for a number": (
        '[limits]\nfiles = "20" #!\n' + BOTH,
        "[limits] files",
        "whole number; write it without quotes",
    ),
    "fraction for a number": ("[limits]\nfiles = 2.5 #!\n" + BOTH, "[limits] files", "whole number"),
    "truth for a number": ("[limits]\nfiles = true #!\n" + BOTH, "[limits] files", "whole number"),
    "number too small": ("[limits]\nparts = 0 #!\n" + BOTH, "[limits] parts", "at least 1"),
    "number too large": ("[limits]\nparts = 101 #!\n" + BOTH, "[limits] parts", "at most 100"),
    "unknown threads": (
        '[limits]\ncompress_threads = "all" #!\n' + BOTH,
        "[limits] compress_threads",
        '"auto" or a whole',
    ),
    "too much memory": ('[limits]\nmemory = "101%" #!\n' + BOTH, "[limits] memory", 'write "1%" to "100%"'),
    "no memory": ('[limits]\nmemory = "0%" #!\n' + BOTH, "[limits] memory", 'write "1%" to "100%"'),
    "too little memory": ('[limits]\nmemory = "1MiB" #!\n' + BOTH, "[limits] memory", 'write at least "16MiB"'),
    "number for text": ("[service]\nhost = 7 #!\n" + BOTH, "[service] host", "must be text; write it in double quotes"),
    "unusual host": ('[service]\nhost = "../x" #!\n' + BOTH, "[service] host", "is not a host name"),
    "text for truth": (BOTH + 'hard_links = "no" #!\n', "[watch.in] hard_links", "true or false"),
    "text for auto": (BOTH + 'stage = "yes" #!\n', "[watch.in] stage", '"auto"'),
    "text for a list": (
        BOTH + 'include = "*.fastq" #!\n',
        "[watch.in] include",
        'must be a list; write include = ["..."]',
    ),
    "number in a list": (BOTH + 'include = [\n  "*.a",\n  3, #!\n]\n', "[watch.in] include (item 2)", "must be text"),
    "text for a table": (S3 + 'tags = "x" #!\n' + BOTH, "[destination.cloud] tags", "must be a table"),
    "value for a section": ("service = 3 #!\n" + BOTH, "[service]", "write a line [service]"),
    "value for a named section": (
        "destination = 3 #!\n[watch.in]\npath = '/x'\ndestinations = []",
        None,
        "write [destination.NAME]",
    ),
    "unknown word": (BOTH + 'mode = "fast" #!\n', "[watch.in] mode", 'write "auto", "inotify" or "poll"'),
    "unknown after": (
        BOTH + 'after = "shred" #!\n',
        "[watch.in] after",
        '"keep", "delete" or "move:/absolute/directory"',
    ),
    "move nowhere": (BOTH + 'after = "move" #!\n', "[watch.in] after", "move:/absolute/directory"),
    "move to a relative path": (BOTH + 'after = "move:done" #!\n', "[watch.in] after", '"done" is relative'),
    "unknown digest": (BOTH + 'digests = ["crc32"] #!\n', "[watch.in] digests (item 1)", '"blake2b", "sha1" or "md5"'),
    "bad duration": (BOTH + 'settle = "5 seconds" #!\n', "[watch.in] settle", "the units are ms, s, min, h, d"),
    "duration in the wrong case": (BOTH + 'settle = "5S" #!\n', "[watch.in] settle", 'write "5s"'),
    "duration without unit": (BOTH + 'settle = "5" #!\n', "[watch.in] settle", "has no unit"),
    "negative duration": (BOTH + "settle = -1 #!\n", "[watch.in] settle", "between 0 and 3650d"),
    "endless duration": (BOTH + "settle = inf #!\n", "[watch.in] settle", "between 0 and 3650d"),
    "no duration at all": (BOTH + "settle = nan #!\n", "[watch.in] settle", "between 0 and 3650d"),
    "busy loop": (BOTH + "poll_interval = 0 #!\n", "[watch.in] poll_interval", 'at least "1ms"'),
    "bad size": (S3 + 'part_size = "16 mebibytes" #!\n' + BOTH, "[destination.cloud] part_size", "the units are B"),
    "size in the wrong case": (
        S3 + 'part_size = "16mib" #!\n' + BOTH,
        "[destination.cloud] part_size",
        'write "16MiB"',
    ),
    "parts below S3's least": (
        S3 + 'part_size = "4MiB" #!\n' + BOTH,
        "[destination.cloud] part_size",
        'at least "5MiB"',
    ),
    "parts above S3's most": (S3 + 'part_size = "6GiB" #!\n' + BOTH, "[destination.cloud] part_size", 'at most "5GiB"'),
    "no path": (
        OUT + '[watch.in] #!\ndestinations = ["out"]\n',
        "[watch.in] path",
        'is missing; write path = "/absolute',
    ),
    "no destinations": (
        OUT + '[watch.in] #!\npath = "/x"\n',
        "[watch.in] destinations",
        "is missing; write destinations =",
    ),
    "empty destinations": (
        OUT + '[watch.in]\npath = "/x"\ndestinations = [] #!\n',
        "[watch.in] destinations",
        "at least one",
    ),
    "no bucket": ('[destination.cloud] #!\ntype = "s3"\n' + BOTH, "[destination.cloud] bucket", "is missing"),
    "no type": ("[destination.cloud] #!\n" + BOTH, "[destination.cloud] type", "is missing; write type ="),
    "unknown type": ('[destination.cloud]\ntype = "gcs" #!\n' + BOTH, "[destination.cloud] type", '"gcs" is not known'),
    "type that is no text": ("[destination.cloud]\ntype = 3 #!\n" + BOTH, "[destination.cloud] type", "must be text"),
    "no format": (BOTH + "compress = { level = 3 } #!\n", "[watch.in] compress.format", "is missing"),
    "unknown compression": (BOTH + 'compress = "lzma" #!\n', "[watch.in] compress", '"zstd", "gzip" or "none"'),
    "compression that is only true": (BOTH + "compress = true #!\n", "[watch.in] compress", '"zstd", "gzip" or "none"'),
    "gzip level": (
        BOTH + '[watch.in.compress]\nformat = "gzip"\nlevel = 10 #!\n',
        "[watch.in] compress.level",
        "gzip has levels 1 to 9",
    ),
    "zstd level": (BOTH + 'compress = { format = "zstd", level = 23 } #!\n', "[watch.in] compress.level", "at most 22"),
    "unknown destination": (
        OUT + '[watch.in]\npath = "/x"\ndestinations = [\n "out",\n "oot", #!\n]\n',
        "[watch.in] destinations (item 2)",
        'no destination "oot"; did you mean out?',
    ),
    "unknown destination, nothing like it": (
        OUT + '[watch.in]\npath = "/x"\ndestinations = ["zebra"] #!\n',
        "[watch.in] destinations (item 1)",
        "add a table [destination.zebra]",
    ),
    "destination twice": (
        OUT + '[watch.in]\npath = "/x"\ndestinations = ["out", "out"] #!\n',
        "[watch.in] destinations (item 2)",
        "listed twice; remove one",
    ),
    "no watch in [watch]": (OUT + "[watch] #!\n", "[watch]", "has no table; give each watch a name: [watch.NAME]"),
    "no name for a watch": (OUT + '[watch] #!\npath = "/x"\n', "[watch]", "path stands outside any watch"),
    "no name for a destination": (
        BOTH + '[destination] #!\ntype = "beside"\n',
        "[destination]",
        "write [destination.NAME]",
    ),
    "odd name of a watch": (
        OUT + '[watch."a/b"] #!\npath = "/x"\ndestinations = ["out"]\n',
        '[watch."a/b"]',
        "cannot be a name",
    ),
    "relative path": (
        OUT + '[watch.in]\npath = "data" #!\ndestinations = ["out"]\n',
        "[watch.in] path",
        "is relative; write the absolute",
    ),
    "home": (
        OUT + '[watch.in]\npath = "~/in" #!\ndestinations = ["out"]\n',
        "[watch.in] path",
        "write the absolute path",
    ),
    "upwards": (OUT + '[watch.in]\npath = "/a/../in" #!\ndestinations = ["out"]\n', "[watch.in] path", 'holds ".."'),
    "NUL in a path": (
        OUT + '[watch.in]\npath = "/a\\u0000" #!\ndestinations = ["out"]\n',
        "[watch.in] path",
        "holds a NUL",
    ),
    "relative state": ('[service]\nstate_dir = "state" #!\n' + BOTH, "[service] state_dir", "is relative"),
    "bad key": (BOTH + 'key = "{watch}/{pth}" #!\n', "[watch.in] key", "{pth} is not known"),
    "formatted key": (BOTH + 'key = "{path:{x}}" #!\n', "[watch.in] key", "cannot be formatted"),
    "huge key": (BOTH + 'key = "{path:999999999999}" #!\n', "[watch.in] key", "cannot be formatted"),
    "same key for all": (BOTH + 'key = "x" #!\n', "[watch.in] key", "without {path} or {name}"),
    "marker that is a path": (BOTH + 'marker = "a/b" #!\n', "[watch.in] marker", "is not a file name"),
    "sentinel above the watch": (BOTH + 'sentinel = "../a" #!\n', "[watch.in] sentinel", "is not such a name"),
    "sentinel that is absolute": (BOTH + 'sentinel = "/a" #!\n', "[watch.in] sentinel", "is not such a name"),
    "no fetchers": (BOTH + "fetchers = 0 #!\n", "[watch.in] fetchers", "at least 1"),
    "empty pattern": (BOTH + 'include = [""] #!\n', "[watch.in] include", "matches nothing"),
    "pattern of one !": (BOTH + 'exclude = ["!"] #!\n', "[watch.in] exclude", "matches nothing"),
    "comment as a pattern": (BOTH + 'ignore = ["# x"] #!\n', "[watch.in] ignore", "matches nothing"),
    "pattern ending in \\": (BOTH + "exclude = ['a\\'] #!\n", "[watch.in] exclude", "ends in a lone"),
    "backward range": (BOTH + 'exclude = ["[z-a]x"] #!\n', "[watch.in] exclude", "runs backwards"),
    "bucket with a path": (
        '[destination.cloud]\ntype = "s3"\nbucket = "lab/raw" #!\n' + BOTH,
        "[destination.cloud] bucket",
        "into prefix",
    ),
    "odd bucket": (
        '[destination.cloud]\ntype = "s3"\nbucket = "my lab" #!\n' + BOTH,
        "[destination.cloud] bucket",
        "is not a bucket name",
    ),
    "prefix from the root": (
        S3 + 'prefix = "/raw" #!\n' + BOTH,
        "[destination.cloud] prefix",
        'write it like "raw/2024/"',
    ),
    "prefix upwards": (S3 + 'prefix = "a/../b" #!\n' + BOTH, "[destination.cloud] prefix", 'write it like "raw/2024/"'),
    "endpoint without scheme": (
        S3 + 'endpoint_url = "s3.lab:9000" #!\n' + BOTH,
        "[destination.cloud] endpoint_url",
        'write "https://HOST"',
    ),
    "empty region": (S3 + 'region = "" #!\n' + BOTH, "[destination.cloud] region", "empty or holds spaces"),
    "key without KMS": (
        S3 + 'sse = "AES256"\nsse_kms_key = "k" #!\n' + BOTH,
        "[destination.cloud] sse_kms_key",
        'write sse = "aws:kms"',
    ),
    "reserved tag": (S3 + 'tags = { "aws:x" = "1" } #!\n' + BOTH, "[destination.cloud] tags", "reserved"),
    "odd tag": (S3 + 'tags = { a = "<" } #!\n' + BOTH, "[destination.cloud] tags", "a character S3 refuses"),
    "too many tags": (
        S3 + "tags = { a=1, b=1, c=1, d=1, e=1, f=1, g=1, h=1, i=1, j=1, k=1 } #!\n".replace("=1", "='v'") + BOTH,
        "[destination.cloud] tags",
        "S3 takes at most 10",
    ),
    "long tag": (S3 + f'tags = {{ {"k" * 129} = "v" }} #!\n' + BOTH, "[destination.cloud] tags", "is too long"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_mistake_is_one_line_that_names_it(site, name):
    text, named, words = MISTAKES[name]
    line = text[: text.index("#!")].count("\n") + 1
    problems = site.problems(text)
    expected = f"{site.main}:{line}: {named}: " if named else f"{site.main}:{line}: "
    found = [problem for problem in problems if problem.startswith(expected)]
    assert len(found) == 1, problems
    assert words in found[0]
    if named:
        assert len(problems) == 1, problems


SECRETS = {
    "secret_key": (S3 + 'secret_key = "hunter2" #!\n' + BOTH, "secret_key"),
    "access_key": (S3 + 'access_key = "hunter2" #!\n' + BOTH, "access_key"),
    "aws_secret_access_key": (S3 + 'aws_secret_access_key = "hunter2" #!\n' + BOTH, "aws_secret_access_key"),
    "password": (S3 + 'password = "hunter2" #!\n' + BOTH, "password"),
    "session-token": (S3 + 'session-token = "hunter2" #!\n' + BOTH, "session-token"),
    "in the endpoint": (S3 + 'endpoint_url = "https://me:hunter2@s3.lab" #!\n' + BOTH, "endpoint_url"),
    "key as a name": (S3 + 'credentials = "AKIAHUNTER2HUNTER2XX" #!\n' + BOTH, "credentials"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_the_configuration_is_refused_and_not_repeated(site, name):
    text, key = SECRETS[name]
    line = text[: text.index("#!")].count("\n") + 1
    (problem,) = site.problems(text)
    assert problem.startswith(f"{site.main}:{line}: [destination.cloud] {key}: ")
    assert "secrets do not belong here" in problem
    assert "hunter2" not in problem.lower()


@pytest.mark.parametrize(
    "line",
    [
        "credentials = ['hunter2']",
        'credentials = "hunter2 hunter2"',
        'credentials = "a/hunter2"',
        "region = 'hunter2 x'",
    ],
)
def test_what_may_be_a_secret_in_the_wrong_place_is_not_repeated(site, line):
    (problem,) = site.problems(S3 + line + "\n" + BOTH)
    assert "hunter2" not in problem


@pytest.mark.parametrize("kind", ["directory", "beside", "nonsense"])
def test_secrets_are_refused_in_every_type_of_destination(site, kind):
    problems = site.problems(f'[destination.x]\ntype = "{kind}"\npath = "/x"\nsecret_key = "hunter2"\n' + BOTH)
    assert any("[destination.x] secret_key: secrets do not belong here" in problem for problem in problems)
    assert "hunter2" not in "".join(problems)


def test_all_problems_of_all_files_come_at_once_in_reading_order(site):
    problems = site.problems(
        "[service]\nstop_timeout = 'x'\n" + OUT + '[watch.in]\npath = "in"\ndestinations = ["oot"]\n',
        a="[limits]\nfiles = 0\n",
        b="[limits\n",
        c="[watch.more]\npath = 3\n",
    )
    assert [problem.split(": ")[0] for problem in problems] == [
        f"{site.main}:2",
        f"{site.main}:7",
        f"{site.drop_in('a')}:2",
        f"{site.drop_in('b')}:1",
        f"{site.drop_in('c')}:2",
    ]


def test_nothing_is_called_missing_while_a_file_cannot_be_read(site):
    """It may well stand there: one mistake must not look like five."""
    problems = site.problems(
        '[watch.in]\npath = "/x"\ndestinations = ["out"]\n[destination.cloud]\n', a="[destination.out\n"
    )
    assert len(problems) == 1
    assert problems[0].startswith(f"{site.drop_in('a')}:1: is not TOML at column 17: ")


def test_a_mistake_in_a_watch_does_not_hide_what_it_has_to_do_with_others(site):
    problems = site.problems(BOTH + '[watch.b]\npath = "/data/in/b"\ndestinations = []\nmode = 3\n')
    assert [problem.split(": ")[1] for problem in problems] == [
        "[watch.b] path",
        "[watch.b] destinations",
        "[watch.b] mode",
    ]


def test_a_wrong_compress_is_not_also_called_missing(site):
    text = '[destination.near]\ntype = "beside"\n[watch.in]\npath = "/x"\ndestinations = ["near"]\ncompress = "lzma"\n'
    (problem,) = site.problems(text)
    assert "[watch.in] compress: " in problem


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[watch.in\n", 1, "is not TOML at column 10"),
        ("a = 1\nb = \n", 2, "invalid value; text stands in double quotes"),
        ("a = 1\nb = hello\n", 2, "invalid value; text stands in double quotes"),
        ("a = 1\na = 2\n", 2, "written twice: keep one"),
        ("[a]\n[a]\n", 2, "written twice: keep one"),
        ("a = 'x\n", 1, "is not TOML"),
        ("a = [1,\n2\n", 2, "is not TOML"),
        ("\n\nx y = 3\n", 3, "a setting is a line like"),
        ("a = 2024-99-99\n", 1, "is not TOML"),
        ("a = " + "9" * 5000 + "\n", 1, "is not TOML"),
    ],
)
def test_a_syntax_error_names_its_line(site, text, line, words):
    (problem,) = site.problems(text)
    assert problem.startswith(f"{site.main}:{line}: ")
    assert words in problem


def test_nesting_beyond_all_measure_is_one_line(site):
    (problem,) = site.problems("a = " + "[" * 100_000)
    assert problem.startswith(f"{site.main}: nests values too deeply")


def test_no_watch_at_all(site):
    (problem,) = site.problems("# all commented out\n")
    assert problem.startswith(f"{site.main}: [watch]: there is none")
    assert "add [watch.NAME]" in problem


def test_missing_file(site):
    assert site.problems_as_it_is() == [f"{site.main}: does not exist; create it, or name another with --config FILE"]


def test_directory_instead_of_a_file(site):
    site.main.mkdir()
    assert site.problems_as_it_is() == [f"{site.main}: is a directory; name the file in it"]


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_empty_file(site, text):
    (problem,) = site.problems(text)
    assert problem.startswith(f"{site.main}: is empty; describe a [destination.NAME] and a [watch.NAME]")


def test_empty_drop_in_is_what_a_power_cut_leaves(site):
    (problem,) = site.problems(BOTH, site="")
    assert problem.startswith(f"{site.drop_in('site')}: is empty")


def test_not_utf8_names_the_line(site):
    (problem,) = site.problems(b"# one\n# t\xfco\n")
    assert problem == f"{site.main}:2: is not UTF-8 at byte 9; save it as UTF-8"


def test_a_name_no_file_can_have():
    with pytest.raises(ConfigError) as caught:
        load("/etc/a\0b/c", {})
    assert caught.value.problems == [
        "/etc/a\\x00b/c: is not a file name; name another with --config FILE",
    ]


def test_a_file_without_end(site):
    (problem,) = site.problems(b"#" * (5 << 20))
    assert problem.startswith(f"{site.main}: is larger than 4 MiB")


def test_file_that_may_not_be_read(open_directory, nobody, site):
    site.directory = open_directory
    site.write(BOTH).chmod(0)
    with nobody():
        (problem,) = site.problems_as_it_is()
    assert problem.startswith(f"{site.main}: cannot be read (Permission denied); ")


def test_drop_in_directory_that_may_not_be_listed(open_directory, nobody, site):
    site.directory = open_directory
    site.write(BOTH, a="[limits]\n")
    (open_directory / "conf.d").chmod(0)
    with nobody():
        (problem,) = site.problems_as_it_is()
    assert problem.startswith(f"{open_directory}/conf.d: cannot be listed (Permission denied); ")
    (open_directory / "conf.d").chmod(0o755)


def test_drop_in_directory_that_is_a_file(site):
    (site.directory / "conf.d").write_text("x")
    (problem,) = site.problems(BOTH)
    assert problem.startswith(f"{site.directory}/conf.d: is not a directory")


def test_drop_in_that_is_a_directory(site):
    (site.directory / "conf.d" / "a.toml").mkdir(parents=True)
    (problem,) = site.problems(BOTH)
    assert problem.startswith(f"{site.drop_in('a')}: is a directory")


def test_a_name_that_is_not_text_is_shown_on_one_line(site):
    (site.directory / "conf.d").mkdir()
    (site.directory / "conf.d" / "a\nb\udcff.toml").write_text("[x\n")
    (problem,) = site.problems(BOTH)
    assert "a\\nb\\xff.toml:1: is not TOML" in problem


def test_environment_that_is_not_understood(site):
    (problem,) = site.problems(BOTH, environ={"QUAYMASTER_DISABLE_COMPRESSION": "perhaps"})
    assert problem == "environment variable QUAYMASTER_DISABLE_COMPRESSION: is not understood; set it to true or false"
