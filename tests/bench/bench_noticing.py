"""How fast, and at what cost, a burst of files is noticed.

Two loads of 20,000 files: into directories that exist, and into directories made in the same instant (``mkdir -p`` and
fill, by four processes). Two sides, each alone in a process of its own: Intake (which settles, looks at and queues each
file) and a plain watchdog Observer with an event filter, whose handler puts each path into a set (which does neither).
Medians of five interleaved runs. CPU is that of the side's process, from before the load until all is done.

Goals: Intake misses none; the last file is queued within 3 s of the last close plus settling; its CPU is at most 0.6
times the Observer's.

    python tests/bench/bench_noticing.py [RUNS]
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import Process

FILES = 20_000
PROCESSES = 4
SETTLE, SETTLE_CLOSED = 5.0, 1.0
GIVE_UP = 30.0


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(done: threading.Event, count: list[int], at: list[float]) -> None:
    """Say ready, wait until told that the load has ended, and report what was noticed."""
    before = cpu()
    print("ready", flush=True)
    sys.stdin.readline()
    done.wait(GIVE_UP)
    print(json.dumps({"cpu": cpu() - before, "noticed": count[0], "at": at[0]}), flush=True)
    select.select([sys.stdin], [], [])


def intake_side(root: str) -> None:
    from quaymaster.config import Watch
    from quaymaster.intake.intake import Intake
    from quaymaster.intake.observe import ignore_lease_breaks

    ignore_lease_breaks()
    queued: set[bytes] = set()
    done, count, at = threading.Event(), [0], [0.0]

    def enqueue(versions: list) -> int:
        queued.update(version.path for version in versions)
        count[0], at[0] = len(queued), time.monotonic()
        if len(queued) >= FILES:
            done.set()
        return len(versions)

    watch = Watch(name="w", path=root, destinations=("d",), settle=SETTLE, settle_closed=SETTLE_CLOSED)
    intake = Intake(
        watch,
        known=lambda _, versions: [path in queued for path, _ in versions],
        enqueue=enqueue,
        emit=lambda _: None,
        report=lambda _: None,
    )
    intake.start()
    while not intake.status().scans:
        time.sleep(0.01)
    serve(done, count, at)
    intake.stop(5)


def observer_side(root: str) -> None:
    from watchdog.events import (
        DirCreatedEvent,
        DirMovedEvent,
        FileClosedEvent,
        FileCreatedEvent,
        FileMovedEvent,
        FileSystemEvent,
        FileSystemEventHandler,
    )
    from watchdog.observers import Observer

    seen: set[str] = set()
    done, count, at = threading.Event(), [0], [0.0]

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if not event.is_directory:
                seen.add(os.fspath(event.dest_path or event.src_path))
                count[0], at[0] = len(seen), time.monotonic()
                if len(seen) >= FILES and isinstance(event, FileClosedEvent):
                    done.set()

    observer = Observer()
    wanted = [FileCreatedEvent, FileClosedEvent, FileMovedEvent, DirCreatedEvent, DirMovedEvent]
    observer.schedule(Handler(), root, recursive=True, event_filter=wanted)
    observer.start()
    threading.Thread(target=quiet_ends_it, args=(count, at, done), daemon=True).start()
    serve(done, count, at)
    observer.stop()


def quiet_ends_it(count: list[int], at: list[float], done: threading.Event) -> None:
    # It may miss some: then it is done when nothing came for two seconds.
    while not count[0] or time.monotonic() - at[0] < 2.0:
        time.sleep(0.1)
    done.set()


def fill(root: str, worker: int, folders: int, make: bool) -> None:
    each = FILES // PROCESSES // folders
    for folder in range(folders):
        path = f"{root}/{worker}/{folder}/deep"
        if make:
            os.makedirs(path)
        for number in range(each):
            with open(f"{path}/{number}", "wb") as file:
                file.write(b"x")


def run(side: str, make: bool, base: str) -> dict[str, float]:
    root = tempfile.mkdtemp(dir=base)
    folders = 250 if make else 10
    if not make:
        for worker in range(PROCESSES):
            for folder in range(folders):
                os.makedirs(f"{root}/{worker}/{folder}/deep")
    command = [sys.executable, __file__, "--side", side, root]
    # The Observer warns of watches that it makes twice, at length: that is not what is measured.
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    writers = [Process(target=fill, args=(root, worker, folders, make)) for worker in range(PROCESSES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    last_close = time.monotonic()
    process.stdin.write("\n")
    process.stdin.flush()
    result = json.loads(process.stdout.readline())
    process.stdin.close()
    process.wait()
    shutil.rmtree(root)
    return {"cpu": result["cpu"], "missed": FILES - result["noticed"], "late": result["at"] - last_close}


def main() -> bool:
    runs = 5
    base = tempfile.mkdtemp(prefix="bench-noticing-")
    good = True
    for make, what, settling in (
        (False, "directories that exist", SETTLE_CLOSED),
        (True, "directories made in the same instant", SETTLE),
    ):
        results: dict[str, list[dict[str, float]]] = {"intake": [], "observer": []}
        for _ in range(runs):
            for side, list_ in results.items():
                list_.append(run(side, make, base))
        print(f"{FILES} files into {what}, medians of {runs} interleaved runs:")
        medians = {}
        for side, list_ in results.items():
            medians[side] = {key: statistics.median(one[key] for one in list_) for key in list_[0]}
            worst = max(one["missed"] for one in list_)
            line = "  {:9} CPU {cpu:5.2f} s, last one noticed {late:5.2f} s after the last close".format(
                side, **medians[side]
            )
            print(f"{line}, missed {medians[side]['missed']:.0f} (worst run {worst:.0f})")
        ratio = medians["intake"]["cpu"] / medians["observer"]["cpu"]
        missed = max(one["missed"] for one in results["intake"])
        slack = medians["intake"]["late"] - settling
        print(
            f"  CPU ratio {ratio:.2f} (goal 0.60); {slack:.2f} s beyond settling (goal 3); missed {missed:.0f} (goal 0)"
        )
        good = good and ratio <= 0.6 and slack <= 3.0 and missed == 0
    os.rmdir(base)
    print("all goals met" if good else "NOT all goals met")
    return good


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        {"intake": intake_side, "observer": observer_side}[sys.argv[2]](sys.argv[3])
    else:
        sys.exit(not main())
