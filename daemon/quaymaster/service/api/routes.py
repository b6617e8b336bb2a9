"""The routes. Each asks the read model or the store in a thread of its own kind, and answers with JSON; what is wrong
with a request is an ``application/problem+json`` (RFC 9457) that says what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from quaymaster.errors import QuaymasterError, StoreError, UsageError
from quaymaster.model import State
from quaymaster.service.api import openapi
from quaymaster.service.api.events import Events
from quaymaster.service.api.guard import DEFECT, Refused, problem_body
from quaymaster.service.api.metrics import CONTENT_TYPE, exposition
from quaymaster.service.api.site import Busy, Site, as_json
from quaymaster.service.control import ACTIONS, act
from quaymaster.service.view import snapshot
from quaymaster.service.view.choose import chosen
from quaymaster.service.view.file import look, prove_record, trail, why_record
from quaymaster.service.view.locate import locate
from quaymaster.service.view.mirrored import mirror_place, origin, origin_record
from quaymaster.service.view.records import Record, delivery_record, entry_record, job_record
from quaymaster.service.view.units import chosen_units, unit_record
from quaymaster.store import Filter, UnitState

MOST = 1000
"""Jobs in one answer."""
_LARGEST_ID = 2**63 - 1
_PATIENCE = 20.0
"""Seconds that an answer may take."""
_READING = 10.0
"""Of which a file may be read for so many."""
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "json": "application/json",
    "webmanifest": "application/manifest+json",
}
_RETRIED = (State.WAITING, State.PARKED)
_DROPPED = (State.QUEUED, State.WAITING, State.PARKED)

Handler = Callable[["Routes", Request], Awaitable[Response]]


@cache
def page_files() -> dict[str, bytes]:
    """Path -> content of the page, all of it from this package."""
    folder = resources.files("quaymaster.service").joinpath("web")
    files = {f"/{item.name}": item.read_bytes() for item in folder.iterdir() if item.name.partition(".")[2] in _TYPES}
    return files | ({"/": files["/index.html"]} if "/index.html" in files else {})


class _JobNumber(Convertor[int]):
    regex = "[0-9]{1,19}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("job", _JobNumber())


class Routes:
    def __init__(self, site: Site, events: Events) -> None:
        self._site, self._events = site, events

    def app(self) -> Starlette:
        handlers = {
            "/healthz": {"GET": self.healthz},
            "/metrics": {"GET": self.metrics},
            "/api/v1/openapi.json": {"GET": self.description},
            "/api/v1/system/upload-status": {"GET": self.status},
            "/api/v1/system/upload-progress/{job}": {"GET": self.progress},
            "/api/v1/jobs": {"GET": self.jobs},
            "/api/v1/jobs/retry": {"POST": self.retry_many},
            "/api/v1/jobs/{job}": {"GET": self.job},
            "/api/v1/jobs/{job}/retry": {"POST": self.retry},
            "/api/v1/jobs/{job}/drop": {"POST": self.drop},
            "/api/v1/units": {"GET": self.units},
            "/api/v1/files": {"GET": self.file},
            "/api/v1/hooks": {"GET": self.hooks},
            "/api/v1/events": {"GET": self.events},
            **{f"/api/v1/{action}": {"POST": self.steer} for action in ACTIONS},
            **{path: {"GET": self.page} for path in page_files()},
        }
        routes = [
            Route(path.replace("{job}", "{job:job}"), handler, methods=[method])
            for path, of in handlers.items()
            for method, handler in of.items()
        ]
        failures: dict[Any, Any] = {
            HTTPException: _http_problem,
            Refused: _of_refused,
            Exception: _defect,
            UsageError: _refused(400),
            StoreError: _refused(503),
            QuaymasterError: _refused(400),
            TimeoutError: _late,
            Busy: _late,
        }
        app = Starlette(routes=routes, exception_handlers=failures)
        app.router.redirect_slashes = False
        return app

    async def _ask(self, act: Callable[[], Any]) -> Any:
        return await self._site.threads.run(act, _PATIENCE)

    # -- reading --

    async def healthz(self, request: Request) -> Response:
        _query(request, ())
        health = await self._ask(self._site.health)
        return _json(health, 200 if health["status"] == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        _query(request, ())

        def ask() -> str:
            found = self._site.status()
            return exposition(found, self._site.reasons(found))

        return Response(await self._ask(ask), headers={"content-type": CONTENT_TYPE})

    async def description(self, request: Request) -> Response:
        _query(request, ())
        return _json(openapi.document())

    async def status(self, request: Request) -> Response:
        _query(request, ())
        return Response(await self._ask(lambda: self._site.status_and_text()[1]), media_type="application/json")

    async def progress(self, request: Request) -> Response:
        _query(request, ())
        number, site = _number(request), self._site
        found = await self._ask(lambda: snapshot.progress(site.store, number, os.getpid(), site.wall()))
        if found is None:
            raise _no_job(number)
        return _json(found)

    async def jobs(self, request: Request) -> Response:
        given = _query(request, ("state", "watch", "path", "error", "limit", "after"), several=("state",))
        limit = _whole(given, "limit", 50, MOST)
        states = tuple(_state(name) for name in given.get("state", ()))
        after = _whole(given, "after", 0, _LARGEST_ID)

        def ask() -> bytes:
            which = chosen(
                self._site.config,
                self._site.store,
                states=states,
                watch=_text(given, "watch"),
                path=_path(given),
                error_code=_text(given, "error"),
                limit=limit + 1,
                before=after,
            )
            found = self._site.store.jobs(which)
            more, found = len(found) > limit, found[:limit]
            jobs = [job_record(job) for job in found]
            return as_json({"jobs": jobs, "more": more, "after": found[-1].id if more else None})

        return Response(await self._ask(ask), media_type="application/json")

    async def job(self, request: Request) -> Response:
        _query(request, ())
        number, store = _number(request), self._site.store

        def ask() -> Record | None:
            for job in store.jobs(Filter(ids=(number,))):
                deliveries = [delivery_record(delivery) for delivery in store.deliveries_of(job)]
                return {
                    **job_record(job),
                    "deliveries": deliveries,
                    "history": [entry_record(entry) for entry in store.history(job)],
                }
            return None

        found = await self._ask(ask)
        if found is None:
            raise _no_job(number)
        return _json(found)

    async def units(self, request: Request) -> Response:
        given = _query(request, ("state", "watch"), several=("state",))
        states = tuple(_unit_state(name) for name in given.get("state", ()))
        watch, site = _text(given, "watch"), self._site

        def ask() -> bytes:
            found = chosen_units(site.config, site.store, watch=watch, states=states)
            return as_json({"units": [unit_record(site.config, unit, site.wall()) for unit in found]})

        return Response(await self._ask(ask), media_type="application/json")

    async def file(self, request: Request) -> Response:
        path = _path(_query(request, ("path",)))
        if not path.startswith(b"/"):
            raise Refused(400, "Name the file with path=, absolute")

        def ask() -> Record:
            mirrored = mirror_place(self._site.config, path)
            if mirrored is not None:
                return {"why": None, "prove": origin_record(origin(mirrored, self._site.store, quick=_READING))}
            place = locate(self._site.config, path)
            found = look(place, self._site.store, os.getpid())
            return {"why": why_record(found), "prove": prove_record(trail(place, self._site.store, chain=False))}

        return _json(await self._site.looking.run(ask, _PATIENCE))

    async def hooks(self, request: Request) -> Response:
        _query(request, ())
        return _json({"hooks": (await self._ask(self._site.status))["hooks"]})

    async def events(self, request: Request) -> Response:
        _query(request, ())
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events.listen(), media_type="text/event-stream", headers=headers)

    async def page(self, request: Request) -> Response:
        path = request.scope["path"]
        kind = "html" if path == "/" else path.rpartition(".")[2]
        return Response(page_files()[path], headers={"content-type": _TYPES[kind], "cache-control": "no-cache"})

    # -- acting --

    async def retry(self, request: Request) -> Response:
        return await self._one(request, "retried", self._site.store.retry)

    async def drop(self, request: Request) -> Response:
        return await self._one(request, "dropped", self._site.store.drop)

    async def _one(self, request: Request, did: str, do: Callable[..., list[int]]) -> Response:
        _query(request, ())
        await _body(request, {})
        number, by = _number(request), request.scope["by"]

        def ask() -> tuple[list[int], list[str]]:
            which = Filter(ids=(number,))
            done = do(which, by)
            return done, [job.state.value for job in self._site.store.jobs(which)]

        done, states = await self._ask(ask)
        self._site.changed()
        if not states:
            raise _no_job(number)
        if not done:
            raise Refused(409, f"Job {number} is {states[0]}, so it cannot be {did}")
        return _json({did: done, "state": states[0]})

    async def retry_many(self, request: Request) -> Response:
        _query(request, ())
        kinds = {"state": list, "watch": str, "path": str, "error": str, "all": bool}
        body, by, site = await _body(request, kinds), request.scope["by"], self._site
        if not any(body.values()):
            raise Refused(400, 'Name the jobs by "state", "watch", "path" or "error", or say "all": true')
        states = tuple(_state(name) for name in body.get("state", ())) or _RETRIED
        if not set(states) <= {*_RETRIED, State.DROPPED}:
            raise Refused(400, "Only waiting, parked and dropped jobs can be tried again")

        def ask() -> int:
            number, last = 0, 0
            while True:  # page by page, so that the service's own commits come between
                which = chosen(
                    site.config,
                    site.store,
                    states=states,
                    watch=_text(body, "watch"),
                    path=_path(body),
                    error_code=_text(body, "error"),
                    limit=MOST,
                    before=last,
                )
                done = site.store.retry(which, by)
                if not done:
                    return number
                number, last = number + len(done), min(done)

        number = await self._ask(ask)
        site.changed()
        return _json({"retried": number})

    async def steer(self, request: Request) -> Response:
        """pause, resume and rescan."""
        _query(request, ())
        action = request.scope["path"].rpartition("/")[2]
        body, by, site = await _body(request, {"watches": list}), request.scope["by"], self._site
        found = await self._ask(lambda: act(action, site.config, site.store, body.get("watches", ()), by))
        site.changed()
        return _json(found)


# -- what requests say --


def _query(request: Request, names: Iterable[str], several: Iterable[str] = ()) -> dict[str, Any]:
    """The parameters of these names. Bytes that are not UTF-8 stay what they are (surrogateescape)."""
    text = request.scope["query_string"].decode("latin-1")
    found: dict[str, Any] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=100)
    except ValueError:
        raise Refused(400, "There are too many parameters") from None
    for name, value in pairs:
        if name not in names:
            raise Refused(400, f"There is no parameter {name!a} here")
        if name in several:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise Refused(400, f"{name} is given twice")
        else:
            found[name] = value
    return found


def _number(request: Request) -> int:
    number = int(request.path_params["job"])
    if not 1 <= number <= _LARGEST_ID:
        raise _no_job(number)
    return number


def _no_job(number: int) -> Refused:
    return Refused(404, f"There is no job {number}")


def _whole(given: dict[str, Any], name: str, default: int, most: int) -> int:
    text = given.get(name, "")
    if name not in given:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= most):
        raise Refused(400, f"{name} must be a whole number from 1 to {most}")
    return int(text)


def _state(name: object) -> State:
    return State(_known_state(name, [state.value for state in State]))


def _unit_state(name: object) -> UnitState:
    return UnitState(_known_state(name, [state.value for state in UnitState]))


def _known_state(name: object, known: list[str]) -> str:
    if not isinstance(name, str) or name not in known:
        raise Refused(400, f"{name!a} is no state; the states are: {', '.join(known)}")
    return name


def _text(given: dict[str, Any], name: str) -> str:
    text = str(given.get(name, ""))
    if not text.isprintable() or len(text) > 1000:  # a lone surrogate is not printable either
        raise Refused(400, f"{name} holds what no name can")
    return text


def _path(given: dict[str, Any]) -> bytes:
    try:
        path = os.fsencode(given.get("path", ""))
    except UnicodeEncodeError:
        raise Refused(400, "path holds what no path can") from None
    if b"\0" in path or len(path) > 4096:
        raise Refused(400, "path holds a NUL or is longer than any path")
    return path


async def _body(request: Request, kinds: dict[str, type]) -> dict[str, Any]:
    """The JSON object in the body; an empty body is an empty one."""
    try:
        raw = await request.body()
    except ClientDisconnect:
        raise Refused(400, "The connection ended before the body did") from None
    if not raw:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "The body must be application/json")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "The body must be a JSON object")
    for name, value in found.items():
        if name not in kinds:
            raise Refused(400, f"There is no field {name!a} here")
        if not isinstance(value, kinds[name]):
            raise Refused(400, f"{name} must be {'a list' if kinds[name] is list else kinds[name].__name__}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise Refused(400, f"{name} must be a list of texts")
    return found


# -- what is answered --


def _json(body: Any, status: int = 200) -> Response:
    return Response(as_json(body), status, media_type="application/json")


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    return Response(problem_body(status, detail), status, headers, media_type="application/problem+json")


async def _http_problem(request: Request, error: HTTPException) -> Response:
    detail = "There is nothing here" if error.status_code == 404 else str(error.detail)
    return _problem(error.status_code, detail, dict(error.headers or {}))


async def _of_refused(request: Request, error: Refused) -> Response:
    return _problem(error.status, str(error))


async def _defect(request: Request, error: Exception) -> Response:
    return _problem(500, DEFECT)


def _refused(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        return _problem(status, str(error))

    return answer


async def _late(request: Request, error: Exception) -> Response:
    return _problem(503, "No answer in time: the disk or a watched filesystem does not answer")
