"""One file server and two clients for all tests of a run; made when the first test asks for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from network.share import Client, FileServer, GuestService
from servers.uml import CannotHave, root, wire


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FileServer, list[Client]]]:
    try:
        root()
    except CannotHave as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("network")
    wires = [wire(), wire()]
    server = FileServer(folder, [ends[0] for ends in wires])
    clients = [Client(f"client{n}", folder, ends[1], n) for n, ends in enumerate(wires)]
    with ExitStack() as stack:
        for machine in (server.machine, *(client.machine for client in clients)):
            stack.callback(machine.cut_power)
        for end in (end for ends in wires for end in ends):
            stack.callback(end.close)
        yield server, clients
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(network: tuple[FileServer, list[Client]]) -> FileServer:
    network[0].start()
    return network[0]


@pytest.fixture(scope="session")
def client(network: tuple[FileServer, list[Client]], server: FileServer) -> Client:
    network[1][0].start()
    return network[1][0]


@pytest.fixture(scope="session")
def other_client(network: tuple[FileServer, list[Client]], server: FileServer) -> Client:
    network[1][1].start()
    return network[1][1]


@pytest.fixture
def serve() -> Iterator[Callable[[Client, str], GuestService]]:
    """Starts a service on a client; what still runs at the test's end is killed, its log shown."""
    started: list[GuestService] = []

    def begin(client: Client, config: str) -> GuestService:
        started.append(client.serve(config))
        return started[-1]

    yield begin
    for service in started:
        service.kill()
