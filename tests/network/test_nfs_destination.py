"""A directory destination on a true NFS mount, used by two hosts at once: nothing is overwritten, nobody sees a partial
file, nothing is left behind (PRODUCT P8)."""

from __future__ import annotations

import json
from collections.abc import Callable

from network.share import Client, FileServer, GuestService
from system.service import until

Serve = Callable[[Client, str], GuestService]

FILES = 12
BOTH = [f"same-{number}" for number in range(4)]
"""Names under which both hosts have the same content; under the others each has its own."""

# Lands files: the first line is the host's letter and the number of bytes that follow.
_LAND = """
import sys
folder, letter, *names = sys.argv[1:]
for number, name in enumerate(names):
    size = 300_000 * (1 + number % 4)
    if name.startswith("same"):
        letter = "="
    with open(f"{folder}/{name}", "w") as file:
        file.write(f"{letter} {size}\\n" + letter * size)
    letter = sys.argv[2]
"""

# Reads whatever is visible, again and again, until the folder has a file named "enough" beside it.
_READ = """
import json, os, sys, time
folder, looks, torn, seen = sys.argv[1], 0, [], {}
while not os.path.exists(folder + ".enough"):
    looks += 1
    for name in os.listdir(folder):
        if name.startswith("."):
            continue
        try:
            with open(f"{folder}/{name}") as file:
                text = file.read()
        except FileNotFoundError:
            torn.append([name, "vanished"])
            continue
        head, _, body = text.partition("\\n")
        letter, _, size = head.partition(" ")
        if not head or len(body) != int(size) or body != letter * int(size):
            torn.append([name, len(text)])
        if seen.setdefault(name, letter) != letter:
            torn.append([name, "overwritten"])
    time.sleep(0.01)
print(json.dumps([looks, torn, seen]))
"""


def test_two_hosts_that_publish_the_same_names_at_once(
    server: FileServer, client: Client, other_client: Client, serve: Serve
) -> None:
    """One over NFS 3, the other over NFS 4.2, and a reader on the server."""
    folder = server.folder()
    reader = server.machine.begin(["python3", "-c", _READ, f"/srv/{folder}"])
    names = [f"own-{number}" for number in range(FILES - len(BOTH))] + BOTH
    services = {}
    for letter, host, version in (("A", client, "3"), ("B", other_client, "4.2")):
        archive = host.mount(folder, f"/mnt/{folder}", version)
        landing = f"/tmp/{folder}-landing"
        host.machine.check(f"mkdir -p {landing}")
        services[letter] = (
            host,
            landing,
            serve(
                host,
                f'[destination.nas]\ntype = "directory"\npath = "{archive}"\n[watch.landing]\npath = "{landing}"\n'
                'destinations = ["nas"]\nkey = "{path}"\nsettle = "1s"\nsettle_closed = "0.5s"\n',
            ),
        )
    landings = [
        (host, host.machine.begin(["python3", "-c", _LAND, landing, letter, *names]))
        for letter, (host, landing, _) in services.items()
    ]
    for host, number in landings:
        assert host.machine.end(number, 60).status == 0
    jobs = {
        letter: until(lambda s=service: ended(s, FILES), 60, f"{letter} has ended")
        for letter, (*_, service) in services.items()
    }
    server.machine.check(f"touch /srv/{folder}.enough")
    done = server.machine.end(reader, 30)
    assert done.status == 0, done.err
    looks, torn, seen = json.loads(done.out)
    assert looks > 5
    assert torn == []
    assert sorted(seen) == sorted(names)
    assert sorted(server.files(folder)) == sorted(names), "something is left behind"
    for name in names:
        states = {letter: next(job for job in jobs[letter] if job["path"] == name) for letter in jobs}
        if name in BOTH:
            assert [job["state"] for job in states.values()] == ["done", "done"]
        else:
            winner = seen[name]
            loser = "B" if winner == "A" else "A"
            assert states[winner]["state"] == "done"
            assert (states[loser]["state"], states[loser]["error_code"]) == ("parked", "conflict")


def ended(service: GuestService, count: int) -> list[dict[str, object]]:
    jobs = service.jobs()
    return jobs if len(jobs) == count and all(job["state"] in ("done", "parked") for job in jobs) else []
