"""The manual pages name what there is, and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click

from quaymaster import config as settings
from quaymaster.cli import COMMANDS, commands

MANUAL = Path(__file__).parents[3] / "packaging" / "man"
COMMAND_PAGE = (MANUAL / "quaymaster.1.md").read_text()
CONFIG_PAGE = (MANUAL / "quaymaster.toml.5.md").read_text()


def section(page: str, title: str) -> str:
    return re.split(r"(?m)^# ", page.split(f"\n# {title}\n")[1])[0]


def fields(record: object) -> set[str]:
    """All keys in a JSON document that are names of fields, not of states or files."""
    found: set[str] = set()
    if isinstance(record, dict):
        for key, value in record.items():
            found |= {key} | fields(value)
    elif isinstance(record, list):
        for value in record:
            found |= fields(value)
    return found


def test_every_command_and_option_is_in_the_manual() -> None:
    text = section(COMMAND_PAGE, "COMMANDS") + section(COMMAND_PAGE, "OPTIONS")
    context = click.Context(commands)
    tree = {name: commands.get_command(context, name) for name in COMMANDS}
    tree |= {f"jobs {name}": found for name, found in tree["jobs"].commands.items() if name not in ("list", "show")}
    tree |= {f"hooks {name}": found for name, found in tree["hooks"].commands.items() if name not in ("list", "show")}
    tree |= {f"audit {name}": found for name, found in tree.pop("audit").commands.items()}
    for name, command in tree.items():
        assert f"**{name}**" in text, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"**{parameter.opts[0]}" in text, (name, parameter.opts)
    listed = set(re.findall(r"(?m)^\*\*([a-z]+)", section(COMMAND_PAGE, "COMMANDS")))
    assert listed - {"state"} == set(COMMANDS)


def test_every_field_of_the_json_forms_is_in_the_manual(scene) -> None:
    scene.deliver(scene.enqueue(scene.land()))
    scene.park(scene.queue(b"\xff"))
    scene.start(scene.queue(b"r"))
    named = set(re.findall(r"\*([a-z0-9_]+)\*", section(COMMAND_PAGE, "JSON")))
    for command in (
        ["jobs"], ["jobs", "1"], ["jobs", "retry", "2", "99"], ["jobs", "drop", "2"], ["status"], ["hooks"], ["config"],
        ["why", f"{scene.watched}/a.fastq"], ["why", f"{scene.watched}/new"], ["prove", f"{scene.watched}/a.fastq"],
        ["check", "--destinations"], ["doctor"], ["sync", "--dry-run"], ["report"], ["verify"],
        ["restore", f"{scene.watched}", "--dry-run"],
    ):  # fmt: skip
        said = fields(scene.run(*command, "--json").json)
        said -= {"archive", "md5", "queued", "running", "waiting", "parked", "done", "superseded", "dropped"}
        assert said <= named, (command, said - named)


def test_the_exit_codes_are_in_the_manual() -> None:
    assert re.findall(r"(?m)^([0-9, ]+)$", section(COMMAND_PAGE, "EXIT STATUS")) == ["0", "1", "2", "3", "130, 141"]


def test_the_configuration_page_has_exactly_the_settings_there_are() -> None:
    tables = {
        "[service]": (settings.Service,),
        "[limits]": (settings.Limits,),
        "[verify]": (settings.Verify,),
        "[destination.NAME]": (settings.S3Destination, settings.DirectoryDestination, settings.BesideDestination),
        "[watch.NAME]": (settings.Watch, settings.Compress),
        "[hook.NAME]": (settings.Hook,),
        "[mirror.NAME]": (settings.Mirror,),
    }
    for title, models in tables.items():
        known = {name for model in models for name in model.model_fields} - {"name", "after_dir"}
        text = section(CONFIG_PAGE, title)
        named = set(re.findall(r"\*\*([a-z0-9_]+)\*\*", text))
        assert known <= named, (title, known - named)
        assert named <= known | {"access_key", "secret_key", "compress"}, (title, named - known)


def test_the_example_of_the_configuration_page_is_valid(tmp_path: Path) -> None:
    example = "\n".join(line[4:] for line in section(CONFIG_PAGE, "EXAMPLE").splitlines() if line.startswith("    "))
    tomllib.loads(example)
    (tmp_path / "q.toml").write_text(example)
    loaded = settings.load(str(tmp_path / "q.toml"), {})
    assert loaded.watches["sequencer"].destinations == ("archive",)
