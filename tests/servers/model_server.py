"""A stand-in for the REST API of OpenVINO Model Server, written from its documentation:

- https://github.com/openvinotoolkit/model_server/blob/main/docs/model_server_rest_api_tfs.md (paths, answers, codes)
- https://github.com/openvinotoolkit/model_server/blob/main/docs/model_version_policy.md (by default the newest version
  is served; changed files of a served version are not noticed)
- https://github.com/openvinotoolkit/model_server/blob/main/docs/online_config_changes.md (what a reload does)

It reads config.json on a reload only, as with ``--file_system_poll_wait_seconds 0``. A version is loaded by ``load``,
which raises ValueError for one that cannot be.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_STATUS = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?")


def not_empty(directory: str) -> str:
    """Loads nothing: a version needs files."""
    if not os.listdir(directory):
        raise ValueError("Directory is empty")
    return directory


class ModelServer:
    """Serves on a free port of 127.0.0.1 while it is entered."""

    def __init__(self, config: str, load: Callable[[str], Any] = not_empty) -> None:
        self.config, self.load = config, load
        self.loaded: dict[str, dict[int, tuple[str, str]]] = {}
        """Model -> version -> (state, error)."""
        self.objects: dict[str, Any] = {}
        """Model -> what ``load`` returned for the version in service."""
        self.reloads = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if self.path == "/v1/config/reload":
                    self._answer(*server.reload())
                else:
                    self._answer(404, {"error": "Invalid request URL"})

            def do_GET(self) -> None:
                found = _STATUS.fullmatch(self.path)
                if self.path == "/v1/config":
                    self._answer(200, {name: server.status(name) for name in server.loaded})
                elif found is None:
                    self._answer(404, {"error": "Invalid request URL"})
                elif found[1] not in server.loaded:
                    self._answer(404, {"error": "Model with requested name is not found"})
                else:
                    told = server.status(found[1], int(found[2] or 0))
                    missing = {"error": "Model with requested version is not found"}
                    self._answer(200, told) if told["model_version_status"] else self._answer(404, missing)

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ModelServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def status(self, name: str, version: int = 0) -> dict[str, Any]:
        found = self.loaded.get(name, {})
        return {
            "model_version_status": [
                {
                    "version": str(number),
                    "state": state,
                    "status": {"error_code": "UNKNOWN" if error else "OK", "error_message": error or "OK"},
                }
                for number, (state, error) in sorted(found.items())
                if version in (0, number)
            ]
        }

    def reload(self) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.reloads += 1
            try:
                with open(self.config, encoding="utf-8") as file:
                    listed = json.load(file)["model_config_list"]
                models = {entry["config"]["name"]: entry["config"]["base_path"] for entry in listed}
            except FileNotFoundError:
                return 404, {"error": "Config file not found or cannot open."}
            except (ValueError, KeyError, TypeError):
                return 412, {"error": "Reloading config file failed. Check server logs for more info."}
            for name in self.loaded.keys() - models.keys():
                del self.loaded[name]
                self.objects.pop(name, None)
            loaded = [self._load_newest(name, base) for name, base in models.items()]
            if not all(loaded):
                return 412, {"error": "Reloading models versions failed. Check server logs for more info."}
            return 201, {name: self.status(name) for name in self.loaded}

    def _load_newest(self, name: str, base: str) -> bool:
        had = self.loaded.setdefault(name, {})
        versions = [int(v) for v in os.listdir(base) if re.fullmatch("[1-9][0-9]*", v)] if os.path.isdir(base) else []
        for gone in had.keys() - set(versions):
            del had[gone]
        if not versions or had.get(max(versions), ("", ""))[0] == "AVAILABLE":
            return bool(versions)
        newest = max(versions)
        try:
            self.objects[name] = self.load(os.path.join(base, str(newest)))
            for older in had:
                had[older] = ("END", "")
            had[newest] = ("AVAILABLE", "")
        except ValueError as error:
            had[newest] = ("LOADING", str(error))
        return had[newest][0] == "AVAILABLE"
