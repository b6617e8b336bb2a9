"""The snapshot in Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).

Names have their unit, and ``_total`` where they only grow. Written here, because a client library would keep a second
set of figures beside the read model's, for some seventy lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from quaymaster.service.view.records import Record
from quaymaster.store import UnitState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Samples = Iterable[tuple[dict[str, str], float | int | None]]


def exposition(found: Record, reasons: Iterable[str]) -> str:
    """``found`` is a snapshot, ``reasons`` is why the service is not healthy."""
    lines: list[str] = []
    for name, kind, text, samples in (
        *_of_service(found, list(reasons)),
        *_of_work(found),
        *_of_hooks(found["hooks"]),
        *_of_process(),
    ):
        lines += _family(f"quaymaster_{name}", kind, text, samples)
    return "\n".join(lines) + "\n"


_Families = list[tuple[str, str, str, _Samples]]


def _of_service(found: Record, reasons: list[str]) -> _Families:
    watches, destinations, verify = found["watches"], found["destinations"], found["verify"]["last"]
    configured = [watch for watch in watches if watch["path"] is not None]
    ages = [(found["at"] - found["oldest_open"]) if found["oldest_open"] else 0.0]
    families: _Families = [
        ("build_info", "gauge", "Always 1; the version is a label.", [({"version": found["version"]}, 1)]),
        ("healthy", "gauge", "1 as long as /healthz says ok.", [({}, int(not reasons))]),
        ("start_time_seconds", "gauge", "When the service started.", [({}, found["service"]["started_at"])]),
        ("oldest_open_age_seconds", "gauge", "Age of the oldest job that is not final.", [({}, ages[0])]),
        ("stalled_jobs", "gauge", "Jobs that stand still.", [({}, len(found["stalled"]))]),
        ("watch_up", "gauge", "1 unless the watched directory is away.", _up(configured, "watch", "outage")),
        (
            "watch_paused",
            "gauge",
            "1 while an operator holds the watch back.",
            [({"watch": w["name"]}, int(w["paused"] is not None)) for w in configured],
        ),
        (
            "watch_settling_files",
            "gauge",
            "Files that are not whole yet.",
            [({"watch": w["name"]}, w["seen"].get("pending")) for w in configured],
        ),
        (
            "watch_refused_files",
            "gauge",
            "Files that cannot be taken.",
            [({"watch": w["name"]}, w["seen"].get("refused")) for w in configured],
        ),
        (
            "watch_last_scan_time_seconds",
            "gauge",
            "When the last full scan ended.",
            [({"watch": w["name"]}, w["seen"].get("last_scan_at") or None) for w in configured],
        ),
        (
            "destination_up",
            "gauge",
            "1 unless the last delivery to it failed for a reason of the destination.",
            _up(destinations, "destination", "failing"),
        ),
        *_of_units(configured, found["at"]),
        *_of_mirrors(found["mirrors"]),
    ]
    if verify:
        faults = [({"fault": name}, verify[name]) for name in ("missing", "changed", "damaged")]
        families += [
            ("verify_last_start_time_seconds", "gauge", "When the last check began.", [({}, verify["started_at"])]),
            ("verify_last_faulty_copies", "gauge", "Copies that were not as recorded.", faults),
        ]
    return families


def _of_units(watches: list[Record], now: float) -> _Families:
    """Of watches whose directories are delivered as one."""
    found = [({"watch": watch["name"]}, watch["units"]) for watch in watches if watch["units"]]
    oldest = [(labels, now - u["oldest_open"] if u["oldest_open"] else 0.0) for labels, u in found]
    states = [({**labels, "state": state.value}, u[state.value]) for labels, u in found for state in UnitState]
    return [
        ("units", "gauge", "Directories that are delivered as one, by watch and state.", states),
        (
            "units_overdue",
            "gauge",
            "Units that are not published after unit_open_max.",
            [(labels, u["overdue"]) for labels, u in found],
        ),
        ("oldest_open_unit_age_seconds", "gauge", "Age of the oldest unit that is not published.", oldest),
    ]


def _of_mirrors(mirrors: list[Record]) -> _Families:
    def each(value: Callable[[Record], Any]) -> _Samples:
        return [({"mirror": mirror["name"]}, value(mirror)) for mirror in mirrors]

    return [
        ("mirror_up", "gauge", "1 unless its bucket or directory fails.", _up(mirrors, "mirror", "outage")),
        (
            "mirror_last_good_time_seconds",
            "gauge",
            "When its bucket was last listed whole.",
            each(lambda mirror: mirror["last_good"]),
        ),
        ("mirror_listed_objects", "gauge", "Objects in the bucket.", each(lambda mirror: mirror["listed"])),
        ("mirror_released_units", "gauge", "Versions in place.", each(lambda mirror: mirror["released"])),
        ("mirror_waiting_units", "gauge", "Versions not whole yet.", each(lambda mirror: len(mirror["waiting"]))),
        (
            "mirror_quarantined_units",
            "gauge",
            "Versions that were not taken.",
            each(lambda mirror: len(mirror["quarantined"])),
        ),
        (
            "mirror_server_failing",
            "gauge",
            "1 while the model server or the command cannot be told.",
            each(lambda mirror: int(bool(mirror["server"]))),
        ),
    ]


def _up(parts: list[Record], label: str, down: str) -> _Samples:
    return [({label: part["name"]}, int(part["state"] != down)) for part in parts]


def _of_work(found: Record) -> _Families:
    watches, rates, ceilings = found["watches"], found["rates"], found["ceilings"]
    moved = [
        ({"watch": pair["watch"], "destination": to["name"]}, pair)
        for to in found["destinations"]
        for pair in to["delivered"]
    ]
    failed = {kind: [f for f in found["failures"] if f["kind"] == kind] for kind in ("retry", "parked")}
    queues = [*watches, *found["mirrors"]]
    per_state = [(w["name"], state, tally) for w in queues for state, tally in w["jobs"].items()]
    held = [({"by": name}, use.get("waiting")) for name, use in ceilings.items() if isinstance(use, dict)]
    flows = [({"destination": flow["destination"]}, flow) for flow in ceilings.get("bandwidth", ())]
    families: _Families = [
        ("jobs", "gauge", "Jobs by watch and state.", [({"watch": w, "state": s}, t["jobs"]) for w, s, t in per_state]),
        (
            "job_source_bytes",
            "gauge",
            "Source bytes of the jobs.",
            [({"watch": w, "state": s}, t["bytes"]) for w, s, t in per_state],
        ),
        (
            "delivered_files_total",
            "counter",
            "Files delivered since the service started.",
            [(labels, pair["files"]) for labels, pair in moved],
        ),
        (
            "delivered_source_bytes_total",
            "counter",
            "Their bytes as they landed.",
            [(labels, pair["source_bytes"]) for labels, pair in moved],
        ),
        (
            "delivered_stored_bytes_total",
            "counter",
            "Their bytes as they are stored.",
            [(labels, pair["stored_bytes"]) for labels, pair in moved],
        ),
        ("retries_total", "counter", "Failures that are tried again.", _codes(failed["retry"])),
        ("parkings_total", "counter", "Jobs that were parked.", _codes(failed["parked"])),
        (
            "source_bytes_per_second",
            "gauge",
            "Mean rate of reading.",
            _windows(rates["source_bytes_per_second"]),
        ),
        (
            "stored_bytes_per_second",
            "gauge",
            "Mean rate of sending.",
            _windows(rates["stored_bytes_per_second"]),
        ),
        ("compression_ratio", "gauge", "Source to stored bytes of the last hour.", [({}, rates["ratio"])]),
        ("queue_eta_seconds", "gauge", "Until the queue is empty, as it goes now.", [({}, found["eta_seconds"])]),
        ("files_in_flight", "gauge", "Files being delivered.", [({}, len(found["running"]))]),
        ("files_in_flight_limit", "gauge", "limits.files.", _use(ceilings, "files", "ceiling")),
        ("buffer_bytes", "gauge", "Memory lent to buffers.", _use(ceilings, "memory", "used")),
        ("buffer_limit_bytes", "gauge", "limits.memory.", _use(ceilings, "memory", "ceiling")),
        ("staging_bytes", "gauge", "Staged copies.", _use(ceilings, "staging", "used")),
        ("staging_limit_bytes", "gauge", "limits.staging.", _use(ceilings, "staging", "ceiling")),
        ("held_files", "gauge", "Files in flight that wait for a share of a limit.", held),
        (
            "bandwidth_limit_bytes_per_second",
            "gauge",
            "Of all together (without a destination) and of each.",
            [(labels, flow["limit"]) for labels, flow in flows],
        ),
    ]
    return families


def _of_hooks(hooks: list[Record]) -> _Families:
    def each(field: str) -> _Samples:
        return [({"hook": hook["name"]}, hook[field]) for hook in hooks]

    up = [({"hook": hook["name"]}, int(hook["state"] != "failing")) for hook in hooks]
    return [
        ("hook_up", "gauge", "1 unless the hook has not taken what it was told.", up),
        ("hook_waiting_events", "gauge", "Events in the outbox that the hook was not told yet.", each("waiting")),
        ("hook_refused_events", "gauge", "Of these, events that were tried without success.", each("refused")),
        ("hook_parked_events", "gauge", "Events that were given up.", each("parked")),
        ("hook_behind_entries", "gauge", "Entries of the custody log that wait for room.", each("behind")),
        ("hook_confirmed_total", "counter", "Events that the hook has taken, ever.", each("confirmed")),
        ("hook_oldest_event_time_seconds", "gauge", "When the oldest of these happened.", each("oldest")),
        ("hook_last_success_time_seconds", "gauge", "When the hook last took something.", each("last_success")),
    ]


def _use(ceilings: Record, name: str, what: str) -> _Samples:
    return [({}, ceilings.get(name, {}).get(what))]


def _codes(failures: list[Record]) -> _Samples:
    return [({"error_code": failure["error_code"]}, failure["jobs"]) for failure in failures]


def _windows(rates: Record) -> _Samples:
    return [({"window": window}, rate) for window, rate in rates.items()]


def _of_process() -> _Families:
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    used = os.times()
    return [
        ("process_resident_memory_bytes", "gauge", "Memory of the process.", [({}, resident)]),
        ("process_cpu_seconds_total", "counter", "Processor time of the process.", [({}, used.user + used.system)]),
    ]


def _family(name: str, kind: str, text: str, samples: _Samples) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        if value is not None:
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")
    return lines if len(lines) > 2 else []


def _number(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float) else str(int(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
