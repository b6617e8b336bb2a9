"""A folder with a landing and an archive, services on it, and a real S3 server for all tests of a run."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from servers.seaweed import Seaweed
from servers.tls import Authority
from system.bucket import Bucket
from system.service import Service

BUCKET = "journey"


class Home:
    """The directories of one test, and the configuration that names them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.landing = folder / "landing"
        self.archive = folder / "archive"
        self.staging = folder / "staging"
        for directory in (self.landing, self.archive):
            directory.mkdir(parents=True)

    def config(self, watch: str = "", destinations: str = "", *, limits: str = "", service: str = "") -> str:
        """One watch called "landing" on the destination "archive"; files settle quickly. ``destinations`` takes the
        place of the directory destination; every argument is TOML."""
        if not destinations:
            destinations = f'[destination.archive]\ntype = "directory"\npath = {quoted(self.archive)}\n'
        settings = {"destinations": '["archive"]', "settle": '"0.4s"', "settle_closed": '"0.1s"', "key": '"{path}"'}
        own = [line for line in watch.splitlines() if line.strip()]
        named = {line.partition("=")[0].strip() for line in own}
        lines = [f"{key} = {value}" for key, value in settings.items() if key not in named]
        return "\n".join([
            "[service]", f"state_dir = {quoted(self.folder / 'state')}", f"staging_dir = {quoted(self.staging)}",
            service,
            "[limits]", 'staging_free = "1MiB"', limits,
            destinations,
            "[watch.landing]", f"path = {quoted(self.landing)}", *lines, *own, "",
        ])  # fmt: skip

    def open_to_all(self) -> None:
        """Let a service that runs as another user come through the folders that pytest made."""
        temporary = Path(tempfile.gettempdir()).resolve()
        for folder in (self.folder, *self.folder.parents):
            if folder == temporary or temporary not in folder.parents:
                break
            folder.chmod(0o755)

    def land(self, name: str | bytes, content: bytes) -> bytes:
        """Write a file in one go; returns its path."""
        path = os.path.join(os.fsencode(self.landing), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def arrived(self) -> dict[bytes, bytes]:
        """Every file below the archive, hidden ones too, but for heads of the custody log: path below it -> content.
        One that goes away while this looks (a part that gets its name) is left out."""
        root = os.fsencode(self.archive)
        found = {}
        for path in files_below(root):
            name = os.path.relpath(path, root)
            if b".quaymaster-custody" not in name.split(b"/"):
                with suppress(FileNotFoundError):
                    found[name] = content_of(path)
        return found

    def leftovers(self) -> list[bytes]:
        """What an interrupted delivery could leave: parts, files set aside, staged copies."""
        below = [path for root in (self.archive, self.landing) for path in files_below(os.fsencode(root))]
        hidden = [path for path in below if os.path.basename(path).startswith(b".qm-")]
        return hidden + (list(files_below(os.fsencode(self.staging))) if self.staging.exists() else [])


def quoted(path: str | Path) -> str:
    return json.dumps(str(path))


def files_below(root: bytes) -> Iterator[bytes]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield os.path.join(folder, name)


def content_of(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    yield Home(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def serve(home: Home) -> Iterator[Callable[..., Service]]:
    """Starts a service on a configuration; whatever still runs at the test's end is killed, its log shown."""
    started: list[Service] = []

    def begin(config: str, **environment: str) -> Service:
        service = Service(config, home.folder, environment=environment)
        started.append(service)
        return service.start()

    yield begin
    for service in started:
        service.kill()
        print("the service said:", *service.log.splitlines()[-60:], sep="\n  ")


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    directory = tmp_path_factory.mktemp("seaweed")
    with Seaweed(directory / "data", Authority(str(directory / "tls"))) as server:
        server.make_bucket(BUCKET)
        yield server
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def bucket(seaweed: Seaweed, home: Home) -> Iterator[Bucket]:
    """A prefix of its own in the bucket that all tests share."""
    credentials = home.folder / "credentials.toml"
    credentials.write_text(f'access_key = "{seaweed.access_key}"\nsecret_key = "{seaweed.secret_key}"\n')
    credentials.chmod(0o600)
    prefix = f"{home.folder.parent.name}-{home.folder.name}-{os.getpid()}/"
    place = Bucket(seaweed.client(), BUCKET, prefix, seaweed.http_endpoint, str(credentials))
    yield place
    place.clear()
