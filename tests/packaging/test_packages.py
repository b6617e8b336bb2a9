"""S4: the deb for Debian 12 and 13 and the rpm: what is in them, and that it works where nothing else is.

``packaging/build.sh`` builds them and ``packaging/root.sh`` makes the roots that they are tried in; both are kept in a
cache, and only the first run on a machine takes minutes. The service at work under a booted systemd has its own tests.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from quaymaster import __version__

CHECKOUT = Path(__file__).resolve().parents[2]
ROOT = CHECKOUT / "packaging/root.sh"
TARGETS = ("bookworm", "trixie", "rpm")
DEBS = ("bookworm", "trixie")
PYTHON = {"bookworm": "python3.11", "trixie": "python3.13", "rpm": "python3.11"}
CONFIGURATION = {"/etc/quaymaster/quaymaster.toml", "/etc/quaymaster/conf.d/README"}
OUTSIDE = ("Could not find a version", "No matching distribution", "Connection", "Temporary failure", "timed out")
"""What pip says when there is no package index."""

# The first run on a machine makes four roots.
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Deb:
    """A Debian package, read without Debian's tools (deb(5)): an ar archive of two tar archives."""

    path: Path

    @cached_property
    def members(self) -> dict[str, bytes]:
        data = self.path.read_bytes()
        found, at = {}, 8
        while at < len(data):
            name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
            found[name] = data[at + 60 : at + 60 + size]
            at += 60 + size + size % 2
        return found

    def archive(self, prefix: str) -> tarfile.TarFile:
        (data,) = (data for name, data in self.members.items() if name.startswith(prefix))
        return tarfile.open(fileobj=io.BytesIO(data))

    @cached_property
    def control(self) -> dict[str, str]:
        with self.archive("control.tar") as archive:
            return {Path(member.name).name: self._text(archive, member) for member in archive if member.isfile()}

    @cached_property
    def fields(self) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in self.control["control"].splitlines() if line[0] != " ")

    @cached_property
    def files(self) -> dict[str, tarfile.TarInfo]:
        with self.archive("data.tar") as archive:
            return {member.name.lstrip(".").rstrip("/"): member for member in archive}

    def read(self, name: str) -> bytes:
        with self.archive("data.tar") as archive:
            file = archive.extractfile(self.files[name])
            assert file is not None, name
            return file.read()

    @staticmethod
    def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        file = archive.extractfile(member)
        assert file is not None
        return file.read().decode()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as it is now: whoever edits it meanwhile does not change what is built and compared here."""
    directory = tmp_path_factory.mktemp("source")
    for name in ("daemon", "units", "etc", "packaging"):
        shutil.copytree(CHECKOUT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, directory)
    return directory


def build(source: Path, *arguments: str, **environment: str) -> list[Path]:
    done = subprocess.run(
        [source / "packaging/build.sh", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode and any(text in done.stderr for text in OUTSIDE):
        pytest.skip(f"no package index is in reach to build from: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def roots() -> dict[str, str]:
    """The directory of each root: "bookworm build", "bookworm run", and the same for trixie."""
    if os.geteuid() != 0:
        pytest.skip("only root can make the roots that packages are built and tried in")
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed here")
    found = {}
    for name in [f"{release} {kind}" for release in DEBS for kind in ("build", "run")]:
        done = subprocess.run([ROOT, "make", *name.split()], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no root could be made: {done.stderr.strip().splitlines()[-1]}")
        found[name] = done.stdout.strip()
    return found


@pytest.fixture(scope="session")
def packages(roots: Mapping[str, str], source: Path) -> dict[str, Path]:
    return dict(zip(TARGETS, build(source, "--cached", *TARGETS), strict=True))


@pytest.fixture(scope="session")
def debs(packages: Mapping[str, Path]) -> dict[str, Deb]:
    return {target: Deb(packages[target]) for target in DEBS}


def inside(root: str, script: str, *binds: str, status: int = 0) -> str:
    """What a shell script prints in a throwaway copy of a root without a network; both streams together."""
    options = [word for bind in binds for word in ("--bind", bind)]
    done = subprocess.run(
        [ROOT, "run", root, *options, "--", "/bin/sh", "-ec", f"exec 2>&1\n{script}"], capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def machine(roots: Mapping[str, str], packages: Mapping[str, Path]):
    """Runs a script on a minimal machine with the package of a release installed."""

    def run(release: str, script: str) -> str:
        package = packages[release]
        return inside(
            roots[f"{release} run"], f"dpkg -i /dist/{package.name} >/tmp/said\n{script}", f"{package.parent}:/dist"
        )

    return run


@pytest.fixture
def workshop(roots: Mapping[str, str], packages: Mapping[str, Path], source: Path):
    """Runs a script where compilers and linters are, with the files of a package unpacked over /."""

    def run(target: str, script: str) -> str:
        package = packages[target]
        unpack = f"dpkg -x /dist/{package.name} /" if target != "rpm" else "true"
        release = "bookworm" if target == "rpm" else target
        return inside(
            roots[f"{release} build"],
            f"{unpack}\nPACKAGE=/dist/{package.name}\n{script}",
            *(f"{package.parent}:/dist", f"{source / 'packaging'}:/packaging"),
        )

    return run


# --- what is in them


@pytest.mark.parametrize("target", TARGETS)
def test_a_package_is_at_most_ten_megabytes(packages: Mapping[str, Path], target: str) -> None:
    assert packages[target].stat().st_size <= 10_000_000


@pytest.mark.parametrize("target", DEBS)
def test_everything_belongs_to_root_and_nobody_else_can_write(debs: Mapping[str, Deb], target: str) -> None:
    for name, member in debs[target].files.items():
        assert (member.uid, member.gid) == (0, 0), name
        if member.issym():
            continue
        secret, runs = name == "/etc/quaymaster/credentials", member.isdir() or "/bin/" in name or "/examples/" in name
        assert stat.S_IMODE(member.mode) == (0o700 if secret else 0o755 if runs else 0o644), name


@pytest.mark.parametrize("target", DEBS)
def test_the_deb_has_each_part_at_its_place(debs: Mapping[str, Deb], source: Path, target: str) -> None:
    files = {name for name, member in debs[target].files.items() if not member.isdir()}
    program = f"/usr/lib/quaymaster/lib/{PYTHON[target]}/site-packages/"
    wanted = {
        *("/usr/bin/quaymaster", "/usr/lib/quaymaster/bin/python3", "/usr/lib/quaymaster/pyvenv.cfg"),
        *("/usr/share/bash-completion/completions/quaymaster", "/usr/share/zsh/vendor-completions/_quaymaster"),
        *("/usr/share/fish/vendor_completions.d/quaymaster.fish", "/usr/share/lintian/overrides/quaymaster"),
        *("/usr/share/doc/quaymaster/copyright", "/usr/share/doc/quaymaster/changelog.Debian.gz"),
        "/usr/share/quaymaster/grafana/quaymaster.json",
        "/usr/share/quaymaster/examples/hook-mail",
        *("/usr/share/quaymaster/grafana/quaymaster.json", "/usr/share/quaymaster/manifest.schema.json"),
        *(f"/usr/share/man/man{page.stem[-1]}/{page.stem}.gz" for page in source.glob("packaging/man/*.md")),
        *CONFIGURATION,
        *units(source),
    }
    assert {name for name in files if not name.startswith(program)} == wanted
    modules = {path.relative_to(source / "daemon") for path in source.glob("daemon/quaymaster/**/*.py")}
    assert {program + str(path) for path in modules} <= files
    assert debs[target].files[program + "botocore/cacert.pem"].linkname == "/etc/ssl/certs/ca-certificates.crt"
    assert not [name for name in files if re.search(r"/site-packages/(pip|setuptools|pytest|mypy)\b|/tests/", name)]


def units(source: Path) -> set[str]:
    """Where each file of units/ belongs."""
    folders = {"": "/usr/lib/systemd/system", "catalog": "/usr/lib/systemd/catalog"}
    found = set()
    for path in (source / "units").rglob("*.*"):
        if path.is_file():
            folder = str(path.parent.relative_to(source / "units")).lstrip(".")
            found.add(f"{folders.get(folder, f'/usr/lib/{folder}')}/{path.name}")
    return found


@pytest.mark.parametrize("target", DEBS)
def test_the_configuration_is_the_administrators(debs: Mapping[str, Deb], target: str) -> None:
    assert set(debs[target].control["conffiles"].split()) == CONFIGURATION


def test_the_rpm_has_the_same_parts(debs: Mapping[str, Deb], workshop) -> None:
    listing = "[%{FILEFLAGS:fflags}|%{FILEUSERNAME}:%{FILEGROUPNAME}|%{FILEMODES:perms}|%{FILENAMES}\\n]"
    said = workshop("rpm", f"rpm --dbpath /tmp/db -qp --qf '{listing}' $PACKAGE")
    rows = [line.split("|") for line in said.splitlines() if line.count("|") == 3]
    assert {row[1] for row in rows} == {"root:root"}
    assert {row[3] for row in rows if row[0] == "cn"} == CONFIGURATION  # %config(noreplace)
    assert [row[2] for row in rows if row[3] == "/etc/quaymaster/credentials"] == ["drwx------"]
    assert not [row for row in rows if row[2][5] == "w" and row[2][0] != "l"]
    own = {row[3] for row in rows if row[2].startswith("d") and not row[3].startswith("/usr/lib/quaymaster/")}
    assert own == {
        *("/etc/quaymaster", "/etc/quaymaster/conf.d", "/etc/quaymaster/credentials", "/usr/lib/quaymaster"),
        *("/usr/share/doc/quaymaster", "/usr/share/licenses/quaymaster"),
        *("/usr/share/quaymaster", "/usr/share/quaymaster/grafana", "/usr/share/quaymaster/examples"),
    }
    files = {row[3] for row in rows if not row[2].startswith("d")}
    debian = {name for name, member in debs["bookworm"].files.items() if not member.isdir()}
    debian = {name.replace("/zsh/vendor-completions/", "/zsh/site-functions/") for name in debian}
    only = re.compile(r"/usr/share/(doc|licenses|lintian)/")
    assert {name for name in files ^ debian if not only.match(name)} == set()


def test_the_rpm_asks_for_what_it_needs(workshop) -> None:
    needs = workshop("rpm", "rpm --dbpath /tmp/db -qp --requires $PACKAGE").splitlines()
    assert {"/usr/bin/python3.11", "systemd", "procps-ng", "ca-certificates"} <= set(needs)


def test_the_same_source_gives_the_same_bytes(packages: Mapping[str, Path], source: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:  # another umask, another hour, and nothing from the first build's cache
        again = build(source, "--out", str(tmp_path), SOURCE_DATE_EPOCH="1767225600", PIP_NO_CACHE_DIR="1")
    finally:
        os.umask(before)
    for path, first in zip(again, packages.values(), strict=True):
        assert path.name == first.name
        assert path.read_bytes() == first.read_bytes(), path.name


@pytest.mark.parametrize("target", DEBS)
def test_one_version_is_told_everywhere(debs: Mapping[str, Deb], source: Path, target: str) -> None:
    deb = debs[target]
    revision = f"{__version__}-1+deb{12 if target == 'bookworm' else 13}"
    assert deb.fields["Version"] == revision
    changes = gzip.decompress(deb.read("/usr/share/doc/quaymaster/changelog.Debian.gz")).decode()
    assert changes.splitlines()[0] == f"quaymaster ({revision}) {target}; urgency=medium"
    newest = re.search(r"(?m)^## (\S+)", (source / "CHANGELOG.md").read_text())
    assert newest is not None
    assert newest.group(1) == __version__
    page = gzip.decompress(deb.read("/usr/share/man/man1/quaymaster.1.gz")).decode()
    assert f'"quaymaster {__version__}"' in page


def test_the_rpm_has_that_version_too(workshop) -> None:
    assert workshop("rpm", "rpm --dbpath /tmp/db -qp --qf '%{VERSION}' $PACKAGE").splitlines()[-1] == __version__


@pytest.mark.parametrize("target", DEBS)
def test_every_library_inside_has_its_license_told(debs: Mapping[str, Deb], target: str) -> None:
    told = debs[target].read("/usr/share/doc/quaymaster/copyright").decode()
    inside_it = {
        re.sub(r"-[^-]+\.dist-info$", "", name.split("/")[7]) for name in debs[target].files if ".dist-info" in name
    } - {"quaymaster"}
    assert len(inside_it) > 10
    for library in inside_it:
        stanza = re.search(
            rf"(?m)^License: {library.lower().replace('_', '-')}-license\n (\S.*\n(?: .*\n){{0,400}})", told
        )
        assert stanza, library
        assert len(stanza.group(1)) > 30, library


# --- on a machine


def test_the_linters_find_nothing(workshop) -> None:
    for target in DEBS:
        assert workshop(target, "lintian --allow-root --fail-on none $PACKAGE").strip() == "", target
    said = workshop("rpm", "rpmlint -c /packaging/rpmlint.toml $PACKAGE")
    assert "0 errors, 0 warnings" in said, said


CLOSURE = r"""
! command -v pip pip3
for library in $(find /usr/lib/quaymaster -name '*.so*'); do ldd "$library"; done >/tmp/ldd
! grep 'not found' /tmp/ldd
grep -q libsystemd /tmp/ldd
/usr/lib/quaymaster/bin/python3 -I - <<'END'
import importlib, pkgutil, sys, quaymaster
names = [module.name for module in pkgutil.walk_packages(quaymaster.__path__, "quaymaster.")]
libraries = ["boto3.session", "botocore.signers", "s3transfer.manager", "systemd.journal", "systemd.daemon"]
libraries += ["zstandard", "zlib_ng.zlib_ng", "awscrt.checksums", "watchdog.observers.inotify", "pathspec"]
for name in [*names, *libraries]:
    importlib.import_module(name)
places = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
foreign = [place for place in places if "-packages" in place and not place.startswith("/usr/lib/quaymaster/")]
assert not foreign, foreign
import boto3
key = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
client = boto3.session.Session().client("s3", region_name="us-east-1", **key)
client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
print(len(names), "modules")
END
"""


@pytest.mark.parametrize("release", DEBS)
def test_it_needs_nothing_but_what_it_depends_on(machine, debs: Mapping[str, Deb], release: str) -> None:
    assert int(machine(release, CLOSURE).split()[-2]) > 50
    depends = set(debs[release].fields["Depends"].split(", "))
    assert {PYTHON[release], "procps", "libsystemd0", "systemd", "ca-certificates"} <= depends


def test_the_rpm_runs_on_the_c_library_of_enterprise_linux_9(workshop) -> None:
    said = workshop(
        "rpm",
        "rpm --dbpath /tmp/db -i --nodeps --noscripts $PACKAGE 2>&1 >/dev/null | grep -v running.with || true\n"
        "quaymaster --version\n"
        "rpm --dbpath /tmp/db -V --nodeps quaymaster\n"
        "find /usr/lib/quaymaster -name '*.so' -exec objdump -T {} + | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1\n",
    )
    assert f"quaymaster {__version__}" in said
    newest = re.search(r"GLIBC_([0-9.]+)", said)
    assert newest is not None
    assert tuple(map(int, newest.group(1).split("."))) <= (2, 34)


@pytest.mark.parametrize("release", DEBS)
def test_installing_starts_nothing_and_says_what_is_next(machine, release: str) -> None:
    said = machine(
        release,
        "cat /tmp/said\nid -un quaymaster; systemctl is-enabled quaymaster || true\n"
        "stat -c '%U %a' /etc/quaymaster/credentials\nquaymaster --version\n"
        "mkdir -p /srv/quaymaster/incoming /srv/quaymaster/archive; cd /; PYTHONPATH=/dist quaymaster check\n"
        "journalctl --list-catalog | grep -c quaymaster\n",
    )
    assert said.count("then: quaymaster check && systemctl enable --now quaymaster") == 1
    assert re.search(rf"(?m)^quaymaster\ndisabled\nroot 700\nquaymaster {re.escape(__version__)}$", said)
    assert "configuration is valid" in said
    assert int(said.split()[-1]) > 0
    assert not re.search(r"(?i)error|fail|cannot|no such", said)


@pytest.mark.parametrize("release", DEBS)
def test_upgrading_keeps_what_was_edited_and_says_nothing_of_starting(machine, packages, release: str) -> None:
    said = machine(
        release,
        "echo '# mine' >>/etc/quaymaster/quaymaster.toml\nsystemctl enable quaymaster\n"
        f"dpkg -i /dist/{packages[release].name}\n"
        "tail -1 /etc/quaymaster/quaymaster.toml\nsystemctl is-enabled quaymaster",
    )
    assert said.endswith("# mine\nenabled\n")
    assert "edit /etc/quaymaster" not in said


SYSTEMCTL = """
cat >/usr/local/bin/systemctl <<'END'
#!/bin/sh
if [ "$1" = list-units ]; then echo "quaymaster@a.service loaded active running -"; fi
echo "$1 $2 $(head -c 3 /usr/lib/quaymaster/pyvenv.cfg)" >>/tmp/calls
END
chmod +x /usr/local/bin/systemctl
mkdir -p /run/systemd/system
echo old >/usr/lib/quaymaster/pyvenv.cfg
"""


@pytest.mark.parametrize("release", DEBS)
def test_what_runs_never_sees_the_files_of_two_versions(machine, packages, release: str) -> None:
    said = machine(release, f"{SYSTEMCTL}\ndpkg -i /dist/{packages[release].name} >/tmp/said\ncat /tmp/calls")
    calls = [line.split() for line in said.splitlines()]
    assert ["stop", "quaymaster.service", "old"] in calls
    started = [call for call in calls if "start" in call[0]]
    assert started == [["start", "quaymaster@a.service", "hom"]], "only what ran, once, from the new files"


@pytest.mark.parametrize("release", DEBS)
def test_removing_keeps_the_state_and_purging_leaves_nothing(machine, release: str) -> None:
    state = "/var/lib/quaymaster/quaymaster.db /var/cache/quaymaster/x /var/log/quaymaster/x"
    said = machine(
        release,
        f"for f in {state}; do mkdir -p $(dirname $f); echo x >$f; done\n"
        "systemctl enable quaymaster quaymaster@a quaymaster@b\ntouch /etc/quaymaster/credentials/archive\n"
        "echo REMOVE\ndpkg -r quaymaster\n"
        f"ls {state} /etc/quaymaster/quaymaster.toml /etc/quaymaster/credentials/archive\n"
        "! find /etc/systemd /usr/lib/quaymaster /usr/bin/quaymaster -name '*quaymaster*' 2>/dev/null | grep .\n"
        "echo PURGE\ndpkg -P quaymaster\nfind /etc /var /usr -name '*quaymaster*' | grep -v '^/var/lib/dpkg/'",
    )
    removed, purged = said.split("REMOVE\n")[1].split("PURGE\n")
    assert not re.search(r"(?i)error|fail|cannot|no such", removed + purged)
    # The directory of the secrets is not the package's to empty.
    assert {line for line in purged.splitlines() if line.startswith("/")} == {"/etc/quaymaster"}


BASH = r"""
source /usr/share/bash-completion/completions/quaymaster
complete -p quaymaster
function=$(complete -p quaymaster | sed 's/.*-F \([^ ]*\).*/\1/')
COMP_WORDS=(quaymaster jo); COMP_CWORD=1; COMP_LINE='quaymaster jo'; COMP_POINT=13
$function quaymaster jo quaymaster
printf 'bash: %s\n' "${COMPREPLY[@]}"
"""


def test_completions_complete(workshop) -> None:
    said = workshop(
        "trixie",
        f"cat >/tmp/b <<'END'\n{BASH}END\nbash /tmp/b\n"
        "fish -c 'complete -C \"quaymaster jo\"' | sed 's/^/fish: /'\n"
        "zsh -n /usr/share/zsh/vendor-completions/_quaymaster\n"
        "_QUAYMASTER_COMPLETE=zsh_complete COMP_WORDS='quaymaster jo' COMP_CWORD=1 quaymaster | sed 's/^/zsh: /'\n",
    )
    for shell in ("bash", "fish", "zsh"):
        assert re.search(rf"(?m)^{shell}: jobs\b", said), (shell, said)


def test_manual_pages_render_without_a_warning(workshop) -> None:
    for target in DEBS:
        said = workshop(
            target,
            "for page in /usr/share/man/man?/quaymaster*.gz; do\n"
            "  man --warnings -E UTF-8 -l -Tutf8 -Z $page 2>&1 >/dev/null\n"
            "  zcat $page | mandoc -Tlint -W warning || true\n"
            "done",
        )
        assert said.strip() == "", said


def test_what_the_manual_says_can_be_typed(workshop) -> None:
    """No dash or quotation mark has become another character on the way."""
    said = workshop(
        "bookworm",
        "export MAN_KEEP_FORMATTING= MANWIDTH=120\n"
        "man quaymaster; man quaymaster.service\n! man quaymaster quaymaster.toml quaymaster.service | grep '[–—‘’“”]'",
    )
    for line in ("quaymaster check --destinations", "--config /etc/quaymaster/NAME.toml", "journalctl -u quaymaster"):
        assert line in said, line
