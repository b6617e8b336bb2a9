"""A configuration directory to write into, and the two outcomes of loading it."""

from __future__ import annotations

import difflib  # noqa: F401  (imported lazily by the code; without privileges Python's own files may be out of reach)
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from quaymaster.config import Config, load
from quaymaster.config.machine import Machine
from quaymaster.errors import ConfigError

MACHINE = Machine(memory=8 << 30, cpus=6)


@dataclass
class Site:
    directory: Path

    @property
    def main(self) -> Path:
        return self.directory / "quaymaster.toml"

    def write(self, text: str | bytes, **drop_ins: str | bytes) -> Path:
        """The main file, and conf.d/NAME.toml for each other one."""
        self._put(self.main, text)
        for name, drop_in in drop_ins.items():
            self.drop_in(name).parent.mkdir(exist_ok=True)
            self._put(self.drop_in(name), drop_in)
        return self.main

    def drop_in(self, name: str) -> Path:
        return self.directory / "conf.d" / f"{name}.toml"

    def load(self, text: str | bytes, environ: Mapping[str, str] = {}, **drop_ins: str | bytes) -> Config:
        self.write(text, **drop_ins)
        return self.load_as_it_is(environ)

    def load_as_it_is(self, environ: Mapping[str, str] = {}) -> Config:
        return load(str(self.main), environ, MACHINE)

    def problems(self, text: str | bytes, environ: Mapping[str, str] = {}, **drop_ins: str | bytes) -> list[str]:
        self.write(text, **drop_ins)
        return self.problems_as_it_is(environ)

    def problems_as_it_is(self, environ: Mapping[str, str] = {}) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load_as_it_is(environ)
        assert all("\n" not in line for line in caught.value.problems)
        return caught.value.problems

    def problems_if_any(self, text: str | bytes) -> list[str] | None:
        """None: it loads."""
        try:
            self.load(text)
        except ConfigError as error:
            return error.problems
        return None

    @staticmethod
    def _put(path: Path, text: str | bytes) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextmanager
def without_privileges() -> Iterator[None]:
    """As nobody, where the tests run as root, whom no permission stops."""
    if os.getuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@pytest.fixture
def open_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory that everybody can reach, unlike pytest's."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def nobody():
    return without_privileges
