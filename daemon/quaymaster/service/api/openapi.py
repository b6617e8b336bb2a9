"""The description of the API (OpenAPI 3.1), from one table of operations.

Fields are those of ``--json``, see quaymaster(1); others may be added, so objects are open.
"""

from __future__ import annotations

from typing import Any

from quaymaster import __version__
from quaymaster.model import Stage, State
from quaymaster.service.view.mirrored import HERE
from quaymaster.store import UnitState

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
_ID: Schema = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
_STATES: Schema = {"type": "string", "enum": [state.value for state in State]}
_STAGES: Schema = {"type": ["string", "null"], "enum": [*(stage.value for stage in Stage), None]}


def _or_null(schema: Schema) -> Schema:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PATHS = {"path": TEXT}
_JOB = {
    "id": WHOLE, "watch": TEXT, **_PATHS, "size": WHOLE, "mtime_ns": WHOLE, "inode": WHOLE, "state": _STATES,
    "stage": _STAGES, "attempts": WHOLE, "retry_at": _or_null(NUMBER), "error_code": TEXT, "error": TEXT,
    "queued_at": NUMBER, "started_at": _or_null(NUMBER), "ended_at": _or_null(NUMBER),
}  # fmt: skip
_MOVING = {
    "source_bytes": _or_null(WHOLE), "stored_bytes": _or_null(WHOLE), "since": _or_null(NUMBER),
    "ratio": _or_null(NUMBER), "rate": _or_null(NUMBER), "eta_seconds": _or_null(NUMBER),
}  # fmt: skip
_TALLIES = _object(**{state.value: _object(jobs=WHOLE, bytes=WHOLE) for state in State})
_WINDOWS = _object(**{"1m": NUMBER, "15m": NUMBER})
_AMOUNTS = {"files": WHOLE, "source_bytes": WHOLE, "stored_bytes": WHOLE}
_UNIT_STATES: Schema = {"type": "string", "enum": [state.value for state in UnitState]}
_PAUSED = _or_null(_object(since=NUMBER, by=TEXT))
_PROVEN = {
    "jobs": _list(_ref("Job")), "custody": _list(_ref("Entry")), "fault": TEXT, "chain_checked": BOOLEAN
}  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "Problem": _object(type=TEXT, title=TEXT, status=WHOLE, detail=TEXT),
    "Health": _object(status={"enum": ["ok", "degraded"]}, reasons=_list(TEXT), notes=_list(TEXT)),
    "Job": _object(**_JOB),
    "Jobs": _object(jobs=_list(_ref("Job")), more=BOOLEAN, after=_or_null(WHOLE)),
    "JobInFull": _object(**_JOB, deliveries=_list(_ref("Delivery")), history=_list(_ref("Entry"))),
    "Progress": {
        **_object(**_JOB, at=NUMBER),
        "properties": {**_JOB, **_MOVING, "at": NUMBER},
        "description": "The fields of a running job are there only while it runs.",
    },
    "Delivery": _object(
        job=WHOLE, watch=TEXT, **_PATHS, size=WHOLE, sha256=TEXT, compression=TEXT, destination=TEXT, key=TEXT,
        stored_size=WHOLE, stored_sha256=TEXT, evidence=TEXT, delivered_at=NUMBER, replaced=BOOLEAN, disposal=TEXT,
    ),
    "Entry": _object(seq=WHOLE, sha256=TEXT, body=TEXT),
    "Running": _object(id=WHOLE, watch=TEXT, **_PATHS, size=WHOLE, stage=_STAGES, **_MOVING),
    "Group": _object(
        error_code=TEXT, jobs=WHOLE, bytes=WHOLE, next_retry=_or_null(NUMBER), error=TEXT, retry=TEXT,
        newest=_object(id=WHOLE, watch=TEXT, **_PATHS),
    ),
    "Watch": _object(
        name=TEXT, path=_or_null(TEXT), mode=_or_null(TEXT), state=TEXT, reason=TEXT, since=_or_null(NUMBER),
        paused=_PAUSED, oldest_queued=_or_null(NUMBER), jobs=_TALLIES, seen={"type": "object"},
        units=_or_null(
            _object(
                **{state.value: WHOLE for state in UnitState}, oldest_open=_or_null(NUMBER), overdue=WHOLE,
                examples=_list(_object(**_PATHS, why=TEXT)),
            )
        ),
    ),
    "Units": _object(units=_list(_ref("Unit"))),
    "Unit": _object(
        watch=TEXT, **_PATHS, state=_UNIT_STATES, generation=WHOLE, why=TEXT, overdue=BOOLEAN, opened_at=NUMBER,
        changed_at=NUMBER, completed_at=_or_null(NUMBER), published_at=_or_null(NUMBER), complete_by=TEXT,
        forced_by=TEXT, files=WHOLE, bytes=WHOLE, missing=WHOLE, digest=TEXT,
    ),
    "Mirror": _object(
        name=TEXT, path=TEXT, source=TEXT, state=TEXT, reason=TEXT, since=_or_null(NUMBER), paused=_PAUSED,
        last_good=_or_null(NUMBER), listed=WHOLE, bytes=WHOLE, released=WHOLE, waiting={"type": "object"},
        quarantined={"type": "object"}, refused={"type": "object"}, server=TEXT, jobs=_TALLIES,
    ),
    "Destination": _object(
        name=TEXT, type=TEXT, state=TEXT, error=TEXT, since=_or_null(NUMBER),
        delivered=_list(_object(watch=TEXT, **_AMOUNTS)),
    ),
    "Hook": _object(
        name=TEXT, type=TEXT, on=_list(TEXT), watches=_list(TEXT), state=TEXT, waiting=WHOLE, refused=WHOLE,
        parked=WHOLE, behind=WHOLE, oldest=_or_null(NUMBER), next_try=_or_null(NUMBER), confirmed=WHOLE,
        failing_since=_or_null(NUMBER), last_success=_or_null(NUMBER), last_error=TEXT,
        last_error_at=_or_null(NUMBER),
    ),
    "Hooks": _object(hooks=_list(_ref("Hook"))),
    "Status": _object(
        version=TEXT, at=NUMBER, totals=_TALLIES, next_retry=_or_null(NUMBER), oldest_open=_or_null(NUMBER),
        service=_object(
            state=TEXT, pid=_or_null(WHOLE), version=_or_null(TEXT), started_at=_or_null(NUMBER)
        ),
        verify=_object(interval=_or_null(NUMBER), last=_or_null({"type": "object"})),
        rates=_object(
            since=_or_null(NUMBER), files_per_second=_WINDOWS, source_bytes_per_second=_WINDOWS,
            stored_bytes_per_second=_WINDOWS, ratio=_or_null(NUMBER), minutes=_list(_object(at=WHOLE, **_AMOUNTS)),
        ),
        eta_seconds=_or_null(NUMBER),
        ceilings={"type": "object"},
        watches=_list(_ref("Watch")), mirrors=_list(_ref("Mirror")), hooks=_list(_ref("Hook")),
        destinations=_list(_ref("Destination")), running=_list(_ref("Running")),
        waiting=_list(_ref("Group")), parked=_list(_ref("Group")), stalled=_list(TEXT),
        failures=_list(_object(kind=TEXT, error_code=TEXT, jobs=WHOLE)),
    ),
    "File": {
        **_object(why=_or_null(_ref("Why")), prove={"anyOf": [_ref("Trail"), _ref("Origin")]}),
        "description": "A file of a mirror has no `why`, and `prove` tells of its origin.",
    },
    "Why": _object(
        watch=TEXT, watch_path=TEXT, **_PATHS, state=TEXT, service_running=BOOLEAN, job=_or_null(_ref("Job")),
        other_jobs=_list(_ref("Job")), deliveries=_list(_ref("Delivery")), jobs_below={"type": "object"},
        evidence=_list(_object(ok=_or_null(BOOLEAN), text=TEXT)),
    ),
    "Trail": _object(watch=TEXT, watch_path=TEXT, **_PATHS, deliveries=_list(_ref("Delivery")), **_PROVEN),
    "Origin": _object(
        mirror=TEXT, mirror_path=TEXT, **_PATHS, here={"type": "string", "enum": list(HERE)},
        downloads=_list(
            _object(job=WHOLE, key=TEXT, etag=TEXT, version_id=TEXT, stored_size=WHOLE, size=WHOLE, sha256=TEXT,
                    compression=TEXT, evidence=TEXT, downloaded_at=NUMBER)
        ),
        **_PROVEN,
    ),
    "Steered": _object(
        action=TEXT, changed=_list(TEXT), watches=_list(_object(name=TEXT, paused=_PAUSED)),
    ),
    "Retried": _object(retried=_list(WHOLE), state=_STATES),
    "Dropped": _object(dropped=_list(WHOLE), state=_STATES),
    "RetriedMany": _object(retried=WHOLE),
}  # fmt: skip


def _parameter(name: str, schema: Schema, text: str, *, where: str = "query", required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required or where == "path", "description": text, "schema": schema}


def _body(**properties: Schema) -> Schema:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"required": False, "content": {"application/json": {"schema": schema}}}


_JOB_NUMBER = _parameter("job", _ID, "The job's number.", where="path")
_PATH = _parameter(
    "path", {"type": "string", "pattern": "^/"}, "Absolute; bytes that are not UTF-8 percent-encoded.", required=True
)
_FILTERS = [
    _parameter("state", _list(_STATES), "May be given several times."),
    _parameter("watch", TEXT, "Of this watch."),
    _parameter("path", TEXT, "This file, or all below this directory; absolute, or relative to its watch."),
    _parameter("error", TEXT, "With this error code."),
    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}, "At most so many."),
    _parameter("after", _ID, "The next page: what the page before gave as `after`."),
]
_WATCHES = _body(watches=_list(TEXT))
_JSON = "application/json"

OPERATIONS: list[tuple[str, str, str, list[Schema], Schema | None, str, str, tuple[int, ...]]] = [
    # method, path, summary, parameters, request body, media type, schema of 200, other statuses
    ("get", "/healthz", "Whether the service is well, and why not (503).", [], None, _JSON, "Health", ()),
    ("get", "/metrics", "For Prometheus, text format 0.0.4.", [], None, "text/plain", "", (503,)),
    ("get", "/api/v1/openapi.json", "This description.", [], None, _JSON, "", ()),
    ("get", "/api/v1/system/upload-status", "Everything at one glance.", [], None, _JSON, "Status", (503,)),
    ("get", "/api/v1/system/upload-progress/{job}", "How far a job is.", [_JOB_NUMBER], None, _JSON, "Progress",
     (404, 503)),
    ("get", "/api/v1/jobs", "Jobs, the newest first.", _FILTERS, None, _JSON, "Jobs", (400, 503)),
    ("get", "/api/v1/jobs/{job}", "One job with its history and proof.", [_JOB_NUMBER], None, _JSON, "JobInFull",
     (404, 503)),
    ("post", "/api/v1/jobs/{job}/retry", "Try a waiting, parked or dropped job again now.", [_JOB_NUMBER], _body(),
     _JSON, "Retried", (400, 404, 409, 413, 415, 503)),
    ("post", "/api/v1/jobs/{job}/drop", "Give a queued, waiting or parked job up.", [_JOB_NUMBER], _body(), _JSON,
     "Dropped", (400, 404, 409, 413, 415, 503)),
    ("post", "/api/v1/jobs/retry", "Try waiting and parked jobs again now: all that fit, or all.", [],
     _body(state=_list({"type": "string", "enum": ["waiting", "parked", "dropped"]}), watch=TEXT, path=TEXT, error=TEXT,
           all=BOOLEAN),
     _JSON, "RetriedMany", (400, 413, 415, 503)),
    ("post", "/api/v1/pause", "Begin no more files of these watches, or of all.", [], _WATCHES, _JSON, "Steered",
     (400, 413, 415, 503)),
    ("post", "/api/v1/resume", "Go on with them.", [], _WATCHES, _JSON, "Steered", (400, 413, 415, 503)),
    ("post", "/api/v1/rescan", "Look through them now.", [], _WATCHES, _JSON, "Steered", (400, 413, 415, 503)),
    ("get", "/api/v1/hooks", "Who is told what, and what they were not told yet.", [], None, _JSON, "Hooks", (503,)),
    ("get", "/api/v1/units", "Directories that are delivered as one.",
     [_parameter("state", _list(_UNIT_STATES), "May be given several times."),
      _parameter("watch", TEXT, "Of this watch.")],
     None, _JSON, "Units", (400, 503)),
    ("get", "/api/v1/files", "What became of a file, and its proof.", [_PATH], None, _JSON, "File", (400, 503)),
    ("get", "/api/v1/events",
     "Server-sent events: `status` (a Status, at most once a second) while it changes, `health` (a Health) when it "
     "does, and what happens to files, named by its kind. Last-Event-ID means nothing: each connection begins with "
     "both in full.",
     [], None, "text/event-stream", "", (503,)),
]  # fmt: skip
_CALLER = (401, 403, 421)
_DESCRIPTIONS = {
    400: "The request is wrong; `detail` says how.",
    401: "No token, or a wrong one.",
    403: "This caller may not do that.",
    404: "There is no such job.",
    409: "The job is in a state in which that cannot be done.",
    413: "The body is larger than 64 KiB.",
    415: "The body is not application/json.",
    421: "This name is not served here.",
    503: "Not now.",
}


def document() -> Schema:
    paths: dict[str, Schema] = {}
    for method, path, summary, parameters, body, media, schema, others in OPERATIONS:
        content: Schema = {media: {"schema": _ref(schema)} if schema else {}}
        answers: dict[str, Schema] = {"200": {"description": "Done.", "content": content}}
        if path == "/healthz":
            answers["503"] = {"description": "Degraded.", "content": content}
        for status in sorted({400, *others, *_CALLER}):
            answers.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
        operation: Schema = {"summary": summary, "parameters": parameters, "responses": answers}
        if body is not None:
            operation["requestBody"] = body
        paths.setdefault(path, {})[method] = operation
    problem = {"application/problem+json": {"schema": _ref("Problem")}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "quaymaster", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "security": [{}, {"token": []}],
        "components": {
            "schemas": SCHEMAS,
            "responses": {
                str(status): {"description": text, "content": problem} for status, text in _DESCRIPTIONS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
