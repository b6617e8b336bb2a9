"""What the model server, and a command, are told of releases and removals (PRODUCT M3).

A model gets its entry in config.json when its first version is in place, and loses it before its last one goes. The
server finds new versions by itself, or when it is told to reload; it does not notice that a version has changed under
its number (https://github.com/openvinotoolkit/model_server/blob/main/docs/model_version_policy.md), so with
``ovms_url`` the model is then taken out and put in again, which interrupts it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from quaymaster.errors import NameRefused, Unreachable
from quaymaster.mirror import ovms_config
from quaymaster.mirror.plan import Plan, Wanted
from quaymaster.mirror.server import ModelServer, run_command
from quaymaster.model import shown
from quaymaster.store import MirrorUnit

if TYPE_CHECKING:
    from quaymaster.config import Mirror


_LARGEST_VERSION = (1 << 63) - 1
_NUMBER_FIRST = re.compile(rb"\s*[+-]?[0-9]")
"""The server reads a version as strtoll(3) does, and what comes behind the digits does not matter to it
(https://github.com/openvinotoolkit/model_server/blob/main/src/modelmanager.cpp, readAvailableVersions)."""


class Serving:
    def __init__(self, mirror: Mirror, cancelled: Callable[[], bool]) -> None:
        self._mirror = mirror
        self._server = ModelServer(mirror.ovms_url, mirror.ovms_timeout, cancelled) if mirror.ovms_url else None
        self.trouble = ""

    def refusal(self, wanted: Wanted, plan: Plan) -> str:
        """Why the server would not take a unit; empty: nothing is known against it."""
        if self._mirror.ovms_config is None:
            return ""
        if not wanted.version:
            if like := _like_a_version(wanted, plan):
                return f"the model server would take the directory {like} for a version"
            return "the model server takes numbers as versions, such as model/1" if wanted.directory else ""
        if wanted.version > _LARGEST_VERSION:
            return f"the model server knows no version above {_LARGEST_VERSION}"
        try:
            name = ovms_config.model_name(wanted.model)
        except ovms_config.ConfigRefused as error:
            return error.message
        if b"/" in wanted.model and name.encode() in plan.models:
            return f"the model server would call it {name}, which is another model"
        return ""

    def keep_listed(self, units: Mapping[bytes, MirrorUnit]) -> None:
        """The entries of models that the server was told of: somebody may have written the file anew. One that cannot
        be put in keeps none of the others out. Raises TransferError."""
        path = self._mirror.ovms_config
        if path is None:
            return
        told = (Wanted(p, directory=True) for p, unit in units.items() if unit.state == "released" and unit.checked)
        models = sorted(
            {each.model for each in told if each.version and units[each.path].objects.keys() != {each.path}}
        )

        refused: list[ovms_config.ConfigRefused] = []

        def edit(text: str) -> str:
            for model in models:
                try:
                    text = ovms_config.with_model(text, ovms_config.model_name(model), self._base_path(model))
                except ovms_config.ConfigRefused as error:
                    refused.append(error)
            return text

        if models and ovms_config.change(path, edit) and self._server:
            self._server.reload()
        if refused:
            raise ovms_config.ConfigRefused(f"{path}: {refused[0].message}", refused[0].advice)

    def tell(self, unit: MirrorUnit, units: Mapping[bytes, MirrorUnit]) -> None:
        """Of a unit that was released. Raises VersionRefused when the server does not take it, TransferError when it
        cannot be told now."""
        of = Wanted(unit.path, directory=True)
        if self._mirror.ovms_config and of.version and unit.objects.keys() != {unit.path}:
            self._list_model(of.model, again=bool(unit.old and self._server))
            newest = max(each.version for each in _released_of(of.model, units))
            if self._server and of.version == newest:
                self._server.confirm(ovms_config.model_name(of.model), of.version)
            elif self._server:
                self._server.reload()
        self._run_command("released", unit)

    def _list_model(self, model: bytes, *, again: bool) -> None:
        name, base = ovms_config.model_name(model), self._base_path(model)
        path = self._mirror.ovms_config or ""
        if again and ovms_config.change(path, lambda text: ovms_config.without_model(text, name, base)):
            assert self._server is not None
            try:
                self._server.reload()
            finally:
                ovms_config.change(path, lambda text: ovms_config.with_model(text, name, base))
            return
        ovms_config.change(path, lambda text: ovms_config.with_model(text, name, base))

    def _base_path(self, model: bytes) -> str:
        base = os.fsencode(self._mirror.ovms_base_path or self._mirror.path)
        try:
            return os.path.join(base, model).decode()
        except UnicodeDecodeError:
            raise NameRefused(f"The model server has no path for {shown(model)}") from None

    def before_removal(self, unit: MirrorUnit, rest: Mapping[bytes, MirrorUnit]) -> None:
        """A unit is about to be taken away; ``rest`` stays. Raises TransferError."""
        of = Wanted(unit.path, directory=True)
        if self._mirror.ovms_config and of.version and not _released_of(of.model, rest):
            self._unlist(of.model)

    def after_removal(self, unit: MirrorUnit, *, here: bool) -> None:
        """A release was taken back. ``here``: what it replaced is in place again. Raises TransferError."""
        of = Wanted(unit.path, directory=True)
        if not here and not _others_on_disk(self._mirror.path, of):
            self._unlist(of.model)
        elif self._server:
            self._list_model(of.model, again=here)
            self._server.reload()

    def _unlist(self, model: bytes) -> None:
        name, base = ovms_config.model_name(model), self._base_path(model)
        changed = ovms_config.change(
            self._mirror.ovms_config or "", lambda text: ovms_config.without_model(text, name, base)
        )
        if changed and self._server:
            try:
                self._server.reload()
            except Unreachable:
                pass  # it reads the file when it starts

    def _run_command(self, event: str, unit: MirrorUnit) -> None:
        if not self._mirror.on_release:
            return
        said = {
            "event": event,
            "mirror": self._mirror.name,
            "unit": shown(unit.path),
            "path": shown(os.path.join(os.fsencode(self._mirror.path), unit.path)),
            "released_at": unit.at,
            "objects": len(unit.objects),
        }
        run_command(self._mirror.on_release, said, self._mirror.on_release_timeout)


def _released_of(model: bytes, units: Mapping[bytes, MirrorUnit]) -> list[Wanted]:
    found = (Wanted(path, directory=True) for path, unit in units.items() if unit.state == "released")
    return [each for each in found if each.version and each.model == model]


def _like_a_version(wanted: Wanted, plan: Plan) -> str:
    """The directory beside a model's versions that a unit would make and the server would load; empty: none."""
    parts = wanted.path.split(b"/")
    for at in range(1, len(parts) if wanted.directory else len(parts) - 1):
        if _NUMBER_FIRST.match(parts[at]) and b"/".join(parts[:at]) in plan.models:
            return shown(b"/".join(parts[: at + 1]))
    return ""


def _others_on_disk(path: str, of: Wanted) -> bool:
    try:
        names = os.listdir(os.path.join(os.fsencode(path), of.model))
    except OSError:
        return False
    return any(Wanted(of.model + b"/" + name, directory=True).version for name in names)
