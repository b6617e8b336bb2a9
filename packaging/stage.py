"""Puts together what the packages hold. build.sh runs it inside a build root, as root, under the release's own Python.

    python3 stage.py SOURCE STAGE RELEASE

SOURCE is a copy of the checkout. The program goes to /usr/lib/quaymaster, for a virtualenv knows its own path; all
else goes below STAGE. SOURCE_DATE_EPOCH dates what is dated. RELEASE names the Debian release, for the changelog.
"""

from __future__ import annotations

import compileall
import email.utils
import gzip
import importlib.metadata
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

HOME = Path("/usr/lib/quaymaster")
TOOLS = Path("/opt/tools/bin")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = HOME / "lib" / PYTHON / "site-packages"

COMMON_LICENSES = {
    "Apache-2.0": ("Apache License Version 2.0, January 2004", "/usr/share/common-licenses/Apache-2.0"),
    "LGPL-2.1": ("GNU LESSER GENERAL PUBLIC LICENSE Version 2.1, February 1999", "/usr/share/common-licenses/LGPL-2.1"),
    "MPL-2.0": ("Mozilla Public License Version 2.0", "/usr/share/common-licenses/MPL-2.0"),
}
"""For each: how its text begins, and where Debian keeps it."""

AWS_SERVICES = {"s3", "sts", "sso", "sso-oidc", "signin"}
"""What the S3 destination and the AWS credential chain call. The other 400 descriptions are 90 MB."""

UNUSED = (
    "botocore/cacert.pem",  # a link to the certificates of the system takes its place: nfpm.yaml
    "boto3/examples",
    "zstandard/_cffi*.so",  # for PyPy
    "zstandard/backend_cffi.py",
    *("awscrt/mqtt*.py", "awscrt/aio", "awscrt/eventstream", "awscrt/websocket.py", "awscrt/test*"),
    "**/tests",
    *("**/*.pyi", "**/py.typed", "**/*.pyx", "**/*.c", "**/*.h"),
)
"""Below site-packages."""


def main(source: Path, stage: Path, release: str) -> None:
    os.umask(0o022)
    version = str(version_of(source))
    install(source)
    licenses(stage / "doc")  # before the files that it quotes are pruned
    prune()
    compile_all()
    start_command(stage / "usr/bin/quaymaster")
    completions(stage / "usr/bin/quaymaster", stage / "completion")
    manual(source / "packaging/man", stage / "man", version)
    debian_changelog(source / "CHANGELOG.md", stage / "doc/changelog.Debian.gz", version, release)
    for root in (HOME, stage):
        settle(root)


def version_of(source: Path) -> str:
    found = re.search(r'^__version__ = "([^"]+)"$', (source / "daemon/quaymaster/__init__.py").read_text(), re.M)
    if not found:
        raise SystemExit("daemon/quaymaster/__init__.py has no __version__")
    return found.group(1)


def epoch() -> int:
    """Seconds since 1970 of the source: when it was committed."""
    return int(os.environ["SOURCE_DATE_EPOCH"])


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def install(source: Path) -> None:
    """A virtualenv at its final place, with the versions that the tests ran with."""
    run(f"/usr/bin/{PYTHON}", "-m", "venv", "--without-pip", HOME)
    constraints = str(source / "packaging/constraints.txt")
    run(
        *(TOOLS / "pip", "--python", HOME / "bin/python", "install", "--quiet", "--no-input", "--no-compile"),
        source,
        PIP_CONSTRAINT=constraints,
        PIP_BUILD_CONSTRAINT=constraints,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_ROOT_USER_ACTION="ignore",
        # No paths of this build and no build id made of them: two builds give the same bytes.
        CFLAGS="-O2 -g0",
        LDFLAGS="-Wl,--build-id=none",
    )


def prune() -> None:
    """Leave out what nothing here uses."""
    remove(HOME / "bin")
    (HOME / "bin").mkdir()
    (HOME / "bin/python3").symlink_to(f"../../../bin/{PYTHON}")
    for name in ("include", "share", "lib64", ".gitignore"):
        remove(HOME / name)
    (HOME / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {sys.version.split()[0]}\n"
    )
    for data in (SITE / "botocore/data", SITE / "boto3/data"):
        for path in data.iterdir():
            if path.is_dir() and path.name not in AWS_SERVICES:
                remove(path)
    for pattern in UNUSED:
        for path in list(SITE.glob(pattern)):
            remove(path)
    for path in list(SITE.glob("*.dist-info/*")):
        if path.name not in ("METADATA", "entry_points.txt"):
            remove(path)
    for path in SITE.rglob("*.gz"):
        data = bytearray(path.read_bytes())
        data[4:8] = bytes(4)  # RFC 1952, MTIME: when botocore was released
        path.write_bytes(data)
    for library in SITE.rglob("*.so*"):
        run("strip", "--strip-unneeded", library)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def compile_all() -> None:
    """Byte code that is never checked against its source: nobody may write there, and a start reads half the files."""
    done = compileall.compile_dir(
        str(SITE), quiet=1, force=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    if not done:
        raise SystemExit("a file could not be compiled")


def start_command(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # -I: neither the environment nor the working directory says what is imported.
    path.write_text(f"#!{HOME}/bin/python3 -I\nfrom quaymaster.__main__ import start\n\nstart()\n")
    path.chmod(0o755)


def completions(command: Path, directory: Path) -> None:
    directory.mkdir(parents=True)
    for shell in ("bash", "zsh", "fish"):
        text = run(command, _QUAYMASTER_COMPLETE=f"{shell}_source")
        (directory / shell).write_text(text.strip() + "\n")


def manual(pages: Path, directory: Path, version: str) -> None:
    directory.mkdir(parents=True)
    day = time.strftime("%Y-%m-%d", time.gmtime(epoch()))
    for page in sorted(pages.glob("*.md")):
        settings = ("--variable", f"footer=quaymaster {version}", "--variable", f"date={day}")
        text = run(TOOLS / "pandoc", "--standalone", "--from", "markdown-smart", "--to", "man", *settings, page)
        compress(directory / f"{page.stem}.gz", text)


def compress(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def debian_changelog(markdown: Path, target: Path, version: str, release: str) -> None:
    revision = f"{version}-{os.environ['PACKAGE_RELEASE']}"
    compress(target, changelog(markdown.read_text(), revision, release))


def changelog(markdown: str, newest: str, release: str) -> str:
    """CHANGELOG.md as Debian writes it (deb-changelog(5)): the newest version only, which this package is."""
    section = re.split(r"(?m)^## .*$", markdown)[1]
    points = [" ".join(point.split()) for point in re.split(r"(?m)^- ", section)[1:]]
    lines = [textwrap.fill(point, 78, initial_indent="  * ", subsequent_indent="    ") for point in points]
    head = f"quaymaster ({newest}) {release}; urgency=medium"
    return "\n\n".join([head, "\n".join(lines), f" -- {os.environ['MAINTAINER']}  {email.utils.formatdate(epoch())}\n"])


def licenses(directory: Path) -> None:
    """The license of everything inside, machine-readable (DEP 5), from what each library ships.

    Debian has the long common ones in a place of their own; others get every word.
    """
    directory.mkdir(parents=True)
    found = {one.metadata["Name"].lower(): one for one in importlib.metadata.distributions(path=[str(SITE)])}
    head = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        "Upstream-Name: quaymaster",
        f"Comment: {HOME} holds the libraries below as their authors publish them on PyPI.",
        *("", "Files: *", "Copyright: The quaymaster developers", "License: Apache-2.0"),
    ]
    for name, refer in (("copyright.deb", True), ("copyright.rpm", False)):
        where = COMMON_LICENSES["Apache-2.0"][1] if refer else "the file LICENSE beside this one"
        lines = [*head, "", "License: Apache-2.0", f" The full text is {where}."]
        for library, one in sorted(found.items()):
            if library != "quaymaster":
                lines += library_license(one, refer)
        (directory / name).write_text("\n".join(lines) + "\n")


def library_license(one: importlib.metadata.Distribution, refer: bool) -> list[str]:
    """``refer`` to the texts of /usr/share/common-licenses instead of repeating them."""
    name, meta = one.metadata["Name"], one.metadata
    texts = [Path(str(one.locate_file(path))).read_text(errors="replace") for path in license_files(one)]
    holders = re.findall(r"(?mi)^\s*(copyright (?:\(c\)|©|\d).*)$", "\n".join(texts))
    holder = str(meta.get("Author") or meta.get("Author-email") or f"the authors of {name}")
    tops = sorted({str(path).split("/")[0] for path in one.files or () if not str(path).startswith("..")})
    kind = f"{name.lower().replace('_', '-')}-license"
    for title, place in COMMON_LICENSES.values():
        if refer:
            texts = [f"The full text is {place}." if title in " ".join(text.split()) else text for text in texts]
    body = "\n\n".join(texts) or f"{meta.get('License-Expression') or meta.get('License')}"
    return [
        "",
        "Files: " + "\n ".join(f"{str(SITE)[1:]}/{top}*" for top in tops if not top.endswith(".dist-info")),
        f"Copyright: {holders[0].strip() if holders else holder}",
        f"License: {kind}",
        f"Comment: {name} {meta['Version']} from PyPI",
        "",
        f"License: {kind}",
        *(f" {line.rstrip()}" if line.strip() else " ." for line in body.splitlines()),
    ]


def license_files(one: importlib.metadata.Distribution) -> list[importlib.metadata.PackagePath]:
    wanted = re.compile(r"\.dist-info/(?:.*/)?(?:LICEN[CS]E|COPYING|NOTICE)[^/]*$", re.I)
    return [path for path in sorted(one.files or (), key=str) if wanted.search(str(path))]


def settle(root: Path) -> None:
    """Modes and times as packages have them, whatever the umask and the hour were."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            runs = path.is_dir() or (path.stat().st_mode & stat.S_IXUSR and path.suffix != ".so")
            path.chmod(0o755 if runs else 0o644)
            os.utime(path, (epoch(), epoch()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
