"""From files to a :class:`Config`, or to every problem they have at once."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from quaymaster.config import bandwidth, profiles, rules, show
from quaymaster.config.destination import BesideDestination, Destination, DirectoryDestination, S3Destination
from quaymaster.config.documents import Documents, read
from quaymaster.config.environment import documents_of
from quaymaster.config.lines import Path
from quaymaster.config.machine import Machine
from quaymaster.config.problems import NAMED, Problems, part
from quaymaster.config.schema import Api, Config, Hook, Limits, Mirror, Service, Verify
from quaymaster.config.units import MIB
from quaymaster.config.values import quoted
from quaymaster.config.watch import Compress, Watch
from quaymaster.errors import ConfigError

DEFAULT_PATH = "/etc/quaymaster/quaymaster.toml"
DISABLE_COMPRESSION = "QUAYMASTER_DISABLE_COMPRESSION"

_Model = TypeVar("_Model", bound=BaseModel)

_DESTINATIONS: dict[str, type[S3Destination] | type[DirectoryDestination] | type[BesideDestination]] = {
    "s3": S3Destination,
    "directory": DirectoryDestination,
    "beside": BesideDestination,
}
_TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "service": (Service,),
    "limits": (Limits,),
    "verify": (Verify,),
    "api": (Api,),
    "destination": tuple(_DESTINATIONS.values()),
    "watch": (Watch,),
    "hook": (Hook,),
    "mirror": (Mirror,),
    "profile": (Watch,),
}
_NOT_KEYS = {"name", "after_dir"}  # fields that the file says in another way
_NOT_IN_PROFILES = {"name", "path", "profile"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET = re.compile(r"secret|passw|passphrase|token|access_?key|api_?key|private_?key")
_STAND_INS: Mapping[object, object] = {"destinations": [""], "compress": "zstd"}
_EXAMPLES = {
    "path": 'path = "/absolute/path"',
    "bucket": 'bucket = "NAME"',
    "on": 'on = ["delivered", "parked"]',
    "destinations": 'destinations = ["NAME"], the name of a [destination.NAME]',
    "source": 'source = "NAME", the name of a [destination.NAME] of type "s3"',
    "format": 'format = "zstd" or "gzip"',
    "type": 'type = "s3", "directory" or "beside"',
}


def load(path: str = DEFAULT_PATH, environ: Mapping[str, str] = os.environ, machine: Machine | None = None) -> Config:
    """Read ``path`` and the conf.d beside it.

    Raises ConfigError with all problems of all files, each "FILE:LINE: [table] key: what is wrong; what to do".
    Where the environment configures a mirror (environment.py), it is read instead of the files.
    Only what is wrong in the text counts: for what is missing on this machine see ``problems_on_disk``.
    """
    config, tables, problems = _read(path, environ, machine)
    if lines := problems.lines():
        raise ConfigError(lines)
    config = config.model_copy(update={"digest": show.digest(config)})
    config._places.update(tables.places())
    return config


def load_sound(path: str = DEFAULT_PATH, environ: Mapping[str, str] = os.environ) -> tuple[Config, list[str]]:
    """What of the configuration has no problem, and the problems: for commands that look at the queue, which must work
    while a mistake stands in a table of a watch. Raises ConfigError when it is open where the queue is."""
    config, _, problems = _read(path, environ, None)
    lines = problems.lines()
    if not problems.only_in(_TABLES.keys() - {"service"}):
        raise ConfigError(lines)
    there = config.destinations.keys()
    sound = {name: watch for name, watch in config.watches.items() if there >= set(watch.destinations)}
    return config.model_copy(update={"watches": sound}), lines


def _read(path: str, environ: Mapping[str, str], machine: Machine | None) -> tuple[Config, _Tables, Problems]:
    problems = Problems(path)
    documents = documents_of(environ, problems) or read(path, problems)
    own = _own_paths(path, environ)
    tables = _Tables(documents, problems, machine or Machine.here())
    service, limits = tables.service(own), tables.limits()
    verify, api = tables.verify(), tables.api(own)
    destinations, watches = tables.destinations(), tables.watches()
    hooks, mirrors = tables.hooks(), tables.mirrors()
    tables.look_at_profiles()
    disabled = _compression_disabled(environ, problems)
    rules.check(service, destinations, watches, mirrors, problems)
    rules.check_hooks(hooks, watches, mirrors, problems)
    config = Config(
        service=service,
        limits=limits,
        verify=verify,
        api=api,
        destinations=destinations,
        watches=watches,
        hooks=hooks,
        mirrors=mirrors,
        compression_disabled=disabled,
        sources=tuple(documents.sources),
    )
    return config, tables, problems


def _own_paths(path: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Where state, staging and the API's socket are unless the configuration says it: in the directories that systemd
    made for this service (systemd.exec(5), StateDirectory=), and for the commands beside it where these are by default:
    those of ``quaymaster@lab.service`` (/etc/quaymaster/lab.toml) have its name."""
    found = {}
    folder, name = os.path.split(os.path.abspath(path))
    instance = name.removesuffix(".toml")
    runtime, socket = os.path.split(Api.model_fields["socket"].default)
    if folder == os.path.dirname(DEFAULT_PATH) and name not in (instance, os.path.basename(DEFAULT_PATH)):
        found = {key: os.path.join(Service.model_fields[key].default, instance) for key in ("state_dir", "staging_dir")}
        runtime = os.path.join(runtime, instance)
    for key, variable in (("state_dir", "STATE_DIRECTORY"), ("staging_dir", "CACHE_DIRECTORY")):
        if given := environ.get(variable, "").partition(":")[0]:
            found[key] = given
    return found | {"socket": os.path.join(environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or runtime, socket)}


class _Tables:
    """The merged tables, turned into models one by one, so that a wrong one does not hide what is wrong elsewhere."""

    def __init__(self, documents: Documents, problems: Problems, machine: Machine) -> None:
        self._documents, self._raw = documents, documents.tables
        self._complete = documents.complete
        self._problems = problems
        self._machine = machine
        self._of_profiles: dict[tuple[str, ...], str] = {}
        """What watches have from their profiles: where it is written."""
        for key, value in self._raw.items():
            if key not in _TABLES:
                headers = dict(zip(_TABLES, _headers(), strict=True))
                close = _nearest(key, headers)
                advice = f"did you mean {headers[close]}?" if close else f"there are {', '.join(headers.values())}"
                problems.add((key,), f"is not known; {advice}", table=isinstance(value, dict))

    def service(self, own: Mapping[str, str]) -> Service:
        mine = {key: path for key, path in own.items() if key in Service.model_fields}
        return self._model(Service, {**mine, **self._table("service")}, ("service",)) or Service()

    def limits(self) -> Limits:
        table = {"memory": "25%", "compress_threads": "auto"} | self._table("limits")
        memory, threads = table["memory"], table["compress_threads"]
        if isinstance(memory, str) and "%" in memory:
            match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%", memory)
            percent = float(match.group(1)) if match else 0.0
            if not 1 <= percent <= 100:
                self._problems.add(("limits", "memory"), f'{quoted(memory)} is not a share; write "1%" to "100%"')
            # A share of very little is still enough for the smallest buffers.
            table["memory"] = max(16, int(self._machine.memory * percent / 100) // MIB) * MIB
        if isinstance(threads, str):
            if threads != "auto":
                self._problems.add(("limits", "compress_threads"), 'must be "auto" or a whole number without quotes')
            table["compress_threads"] = self._machine.compress_threads
        limits = self._model(Limits, table, ("limits",)) or Limits()
        one = {} if limits.parallel else {"files": 1, "parts": 1, "compress_threads": 1}
        return limits.model_copy(update=one)

    def verify(self) -> Verify:
        return self._model(Verify, self._table("verify"), ("verify",)) or Verify()

    def api(self, own: Mapping[str, str]) -> Api:
        api = self._model(Api, {"socket": own["socket"], **self._table("api")}, ("api",)) or Api()
        closed = bool(api.read_token or api.act_token)
        if api.address and not closed and not ipaddress.ip_address(api.address[0]).is_loopback:
            said = f"{quoted(api.listen or '')} is open to others without a token"
            self._problems.add(("api", "listen"), f"{said}; write read_token = NAME, or listen on 127.0.0.1")
        return api

    def destinations(self) -> dict[str, Destination]:
        found: dict[str, Destination] = {}
        for name, table in self._named("destination").items():
            keys = ("destination", name)
            kind = table.get("type")
            model = _DESTINATIONS.get(kind) if isinstance(kind, str) else None
            if model is not None:
                destination = self._model(model, table, keys, name=name)
                if destination is not None:
                    found[name] = destination
                continue
            self._without_unknown(_TABLES["destination"], table, keys)
            if "type" in table:
                text = f"{quoted(kind)} is not known" if isinstance(kind, str) else "must be text"
                self._problems.add((*keys, "type"), f"{text}; write {_EXAMPLES['type']}")
            elif self._complete:
                self._problems.add((*keys, "type"), f"is missing; write {_EXAMPLES['type']}")
        return found

    def watches(self) -> dict[str, Watch]:
        found: dict[str, Watch] = {}
        tables = self._named("watch")
        for name, table in tables.items():
            keys = ("watch", name)
            table = self._with_profile(table, keys)
            names = self._known_destinations(table.get("destinations"), keys)
            if any(self._kind(destination) == "beside" for destination in names):
                table = {"key": "{path}"} | table  # the same place in the tree: PRODUCT P9
            watch = self._model(Watch, table, keys, name=name)
            if watch is not None:
                found[name] = watch
        if not tables and self._complete and not {"watch", "mirror"} & self._raw.keys():
            advice = 'add [watch.NAME] with path = "/absolute/path" and destinations = ["NAME"]'
            self._problems.add(("watch",), f"there is none, so nothing would be done; {advice}")
        return found

    def hooks(self) -> dict[str, Hook]:
        found: dict[str, Hook] = {}
        for name, table in self._named("hook").items():
            hook = self._model(Hook, table, ("hook", name), name=name)
            if hook is not None:
                found[name] = hook
        return found

    def _with_profile(self, table: dict[str, Any], keys: Path) -> dict[str, Any]:
        """The settings of a watch, and of its profile what it does not say itself."""
        name = table.get("profile")
        if not isinstance(name, str) or name == "none":
            return table
        of_site = self._raw.get("profile", {})
        if isinstance(of_site, dict) and isinstance(of_site.get(name), dict):
            found, of_file = of_site[name], True
        elif (built_in := profiles.built_in(name)) is not None:
            found, of_file = built_in, False
        else:
            known = [*profiles.names(), *(of_site if isinstance(of_site, dict) else ())]
            advice = _alike(name, known) or f"there are {', '.join(known)}, or add a table [profile.{part(name)}]"
            if self._complete:
                self._problems.add((*keys, "profile"), f"there is no profile {quoted(name)}; {advice}")
            return table
        taken = {key: value for key, value in found.items() if key not in table and key not in _NOT_IN_PROFILES}
        for key in taken:
            place = str(self._problems.place(("profile", name, key))) if of_file else f"profile {name}"
            self._of_profiles[(*map(str, keys), key)] = place
        return table | taken

    def look_at_profiles(self) -> None:
        """What no watch would notice: keys that are none."""
        for name, table in self._named("profile").items():
            keys = ("profile", name)
            for key in table.keys() & _NOT_IN_PROFILES:
                self._problems.add((*keys, key), "belongs to one watch; move it to [watch.NAME]")
            self._without_unknown((Watch,), {k: v for k, v in table.items() if k not in _NOT_IN_PROFILES}, keys)

    def places(self) -> dict[tuple[str, ...], str]:
        return self._of_profiles | _places(self._documents)

    def mirrors(self) -> dict[str, Mirror]:
        found: dict[str, Mirror] = {}
        for name, table in self._named("mirror").items():
            keys = ("mirror", name)
            source = table.get("source")
            if isinstance(source, str):
                self._known_destination(source, (*keys, "source"))
                if self._kind(source) not in (None, "s3"):
                    text = f'{quoted(source)} is no bucket; name a destination of type "s3"'
                    self._problems.add((*keys, "source"), text)
            mirror = self._model(Mirror, table, keys, name=name)
            if mirror is not None:
                found[name] = mirror
        return found

    def _known_destination(self, name: str, keys: Path) -> None:
        known = self._raw.get("destination", {})
        known = known if isinstance(known, dict) else {}
        if name not in known and self._complete:
            advice = _alike(name, known) or f"add a table [destination.{part(name)}]"
            self._problems.add(keys, f"there is no destination {quoted(name)}; {advice}")

    def _known_destinations(self, names: object, keys: Path) -> list[str]:
        """The names that a watch lists; those without a table become problems."""
        listed = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        for index, name in enumerate(listed):
            self._known_destination(name, (*keys, "destinations", index))
            if name in listed[:index]:
                self._problems.add((*keys, "destinations", index), f"{quoted(name)} is listed twice; remove one")
        return listed

    def _kind(self, destination: str) -> object:
        tables = self._raw.get("destination")
        table = tables.get(destination) if isinstance(tables, dict) else None
        return table.get("type") if isinstance(table, dict) else None

    def _table(self, section: str) -> dict[str, Any]:
        table = self._raw.get(section, {})
        if isinstance(table, dict):
            return table
        self._problems.add((section,), f"must be a table; write a line [{section}] and its settings below")
        return {}

    def _named(self, section: str) -> dict[str, dict[str, Any]]:
        """The tables of [watch.NAME], [destination.NAME] or [mirror.NAME]."""
        tables = self._raw.get(section)
        header = f"[{section}.NAME]"
        if tables is None:
            return {}
        if not isinstance(tables, dict):
            self._problems.add((section,), f"must be a table with a name; write {header}")
            return {}
        loose = [part(key) for key, value in tables.items() if not isinstance(value, dict)]
        if loose:
            self._problems.add((section,), f"{', '.join(loose)} stands outside any {section}; write {header} above it")
        elif not tables and self._complete:
            self._problems.add((section,), f"has no table; give each {section} a name: {header}")
        named = {key: value for key, value in tables.items() if isinstance(value, dict)}
        for name in named:
            if not _NAME.fullmatch(name):
                advice = "use up to 64 letters, digits, dots, hyphens and underscores"
                self._problems.add((section, name), f"{quoted(name)} cannot be a name; {advice}")
        return named

    def _model(self, model: type[_Model], table: dict[str, Any], keys: Path, **fixed: str) -> _Model | None:
        table = self._without_wrong_windows(self._without_unknown((model,), table, keys), keys)
        try:
            return model.model_validate({**table, **fixed})
        except ValidationError as error:
            failures = error.errors(include_url=False, include_input=False)
        for failure in failures:
            self._explain(failure, keys)
        # Without its wrong settings the rest can still be compared with other tables. Nothing of this is ever used.
        wrong = {_key_of(failure, keys[0])[0] for failure in failures}
        rest = {key: value for key, value in table.items() if key not in wrong}
        rest |= {str(key): _STAND_INS[key] for key in wrong if key in _STAND_INS}
        try:
            return model.model_validate({**rest, **fixed})
        except ValidationError:
            return None

    def _without_wrong_windows(self, table: dict[str, Any], keys: Path) -> dict[str, Any]:
        """``table`` without a bandwidth that has problems, each of which has a line of its own."""
        value = table.get("bandwidth")
        wrong = list(bandwidth.problems(value)) if isinstance(value, dict) else []
        for key, text in wrong:
            self._problems.add((*keys, "bandwidth", key), text)
        return {key: value for key, value in table.items() if key != "bandwidth" or not wrong}

    def _explain(self, error: Any, keys: Path) -> None:
        place = _key_of(error, keys[0])
        if error["type"] != "missing" or self._complete:
            self._problems.add((*keys, *place), _text(error, str(place[-1])))

    def _without_unknown(
        self, models: tuple[type[BaseModel], ...], table: dict[str, Any], keys: Path
    ) -> dict[str, Any]:
        """``table`` without the keys that no model has; those become problems."""
        known = {name for model in models for name in model.model_fields} - _NOT_KEYS
        kept = {}
        for key, value in table.items():
            if key not in known:
                self._problems.add((*keys, key), _unknown_key(key, known))
            elif key == "compress" and isinstance(value, dict):
                kept[key] = self._without_unknown((Compress,), value, (*keys, key))
            else:
                kept[key] = value
        return kept


def _key_of(error: Any, section: object) -> Path:
    """The key that the file has for the field pydantic names. A watch as a whole can only be wrong about ``after`` and
    ``unit``, a hook about what it does, a mirror about its model server."""
    whole = "command" if section == "hook" else "unit" if error["type"] == "unit" else "after"
    if section == "mirror":
        whole = "ovms_url" if "config.json" in error["msg"] else "ovms_config"
    path: Path = error["loc"] or (whole,)
    return tuple("after" if key == "after_dir" else key for key in path)


def _headers() -> list[str]:
    return [f"[{name}.NAME]" if name in NAMED else f"[{name}]" for name in _TABLES]


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # only a wrong configuration pays for it

    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


def _alike(name: str, known: Iterable[str]) -> str:
    close = _nearest(name, known)
    return f"did you mean {part(close)}?" if close else ""


def _unknown_key(key: str, known: set[str]) -> str:
    if _SECRET.search(key.lower().replace("-", "_")):
        return "secrets do not belong here; put them into a file of their own and write credentials = NAME"
    if advice := _alike(key, known):
        return f"is not known; {advice}"
    for (table, models), header in zip(_TABLES.items(), _headers(), strict=True):
        if any(key in model.model_fields for model in models) and key not in _NOT_KEYS:
            kinds = [kind for kind, model in _DESTINATIONS.items() if key in model.model_fields]
            of_type = f' of type "{kinds[0]}"' if table == "destination" and len(kinds) == 1 else ""
            return f"does not belong here; move it to {header}{of_type}, or remove it"
    return f"is not known; remove it, or use one of {', '.join(sorted(known))}"


def _text(error: Any, key: str) -> str:
    """pydantic's error as "what is wrong; what to do". Values stay out: one may be a misplaced secret."""
    context = error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "unit":
            return str(error["msg"])
        case "missing":
            return f"is missing; write {_EXAMPLES.get(key, f'{key} = ...')}"
        case "string_type":
            return "must be text; write it in double quotes"
        case "int_type" | "int_from_float" | "int_parsing_size":
            return "must be a whole number; write it without quotes"
        case "bool_type":
            also = ', or "auto"' if key == "stage" else ""
            return f"must be true or false; write it without quotes{also}"
        case "tuple_type":
            return f'must be a list; write {key} = ["..."]'
        case "dict_type" | "model_type":
            return f"must be a table; write {key} = {{ NAME = ... }}"
        case "too_short":
            return "is empty; list at least one"
        case "greater_than_equal":
            return f"is too small; write at least {context['ge']}"
        case "less_than_equal":
            return f"is too large; write at most {context['le']}"
        case "literal_error":
            choices = str(context["expected"]).replace("'", '"')
            also = ' or "move:/absolute/directory"' if key == "after" else ""
            return f"has an unknown value; write {choices}".replace(' or "move"', "") + also
        case _:
            return f"{error['msg'].lower()}; correct it"


def _compression_disabled(environ: Mapping[str, str], problems: Problems) -> bool:
    value = environ.get(DISABLE_COMPRESSION, "").strip().lower()
    if value not in ("true", "1", "yes", "on", "false", "0", "no", "off", ""):
        problems.add_file(f"environment variable {DISABLE_COMPRESSION}", "is not understood; set it to true or false")
    return value in ("true", "1", "yes", "on")


def _places(documents: Documents) -> dict[tuple[str, ...], str]:
    """For :meth:`Config.where`; array items stand where their key does."""
    places = {
        tuple(str(key) for key in keys): str(place)
        for keys, place in documents.places.items()
        if not any(isinstance(key, int) for key in keys)
    }
    for name, table in documents.tables.get("watch", {}).items():
        if isinstance(table.get("compress"), str):
            compress = ("watch", name, "compress")
            places[(*compress, "format")] = places[compress]
    return places
