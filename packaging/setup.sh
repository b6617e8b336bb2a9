#!/usr/bin/env bash
# Makes .venv in this checkout, with quaymaster installed in it (editable).
#
#   packaging/setup.sh runtime    what `make demo` and the service need
#   packaging/setup.sh dev        that, and what `make lint`, `make test` and `make bench` need
#
# Installs the system packages that are missing when it runs as root, and names them otherwise. Does nothing, in some
# milliseconds, when all is in place. PYTHON=/path/to/python chooses the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

level=${1:-runtime}
constraints=packaging/constraints.txt
started=$SECONDS
missing=()

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

case $level in
    runtime) what=. ;;
    dev) what='.[dev]' ;;
    *) fail "unknown level '$level': use runtime or dev" ;;
esac

if command -v apt-get >/dev/null; then manager=apt-get
elif command -v dnf >/dev/null; then manager=dnf
else manager=none; fi

recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# A set-up is finished when its stamp holds this. The directory is part of it: a virtualenv cannot be moved.
state_wanted() {
    { cat pyproject.toml "$constraints" packaging/setup.sh; .venv/bin/python -VV; pwd; } | sha256sum
}

finished() {
    .venv/bin/python -V >/dev/null 2>&1 || return 1
    local wanted stamp
    wanted=$(state_wanted)
    for stamp in .venv/.setup-dev ".venv/.setup-$level"; do
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return 0; fi
    done
    return 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
        if recent_enough "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# want APT-PACKAGE DNF-PACKAGE TEST...: remembers the package if the test fails.
want() {
    local name=$1
    if [ $manager = dnf ]; then name=$2; fi
    shift 2
    if ! "$@" >/dev/null 2>&1; then missing+=("$name"); fi
}

can_compile() { echo '#include <stdio.h>' | cc -x c -c -o /dev/null -; }
has_headers() {
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}
has_sftp_server() {
    [ -x /usr/lib/openssh/sftp-server ] || [ -x /usr/libexec/openssh/sftp-server ] || [ -x /usr/lib/ssh/sftp-server ]
}

has_browser() {
    local name
    for name in chromium-headless-shell chromium chromium-browser google-chrome; do
        if command -v "$name"; then return 0; fi
    done
    return 1
}

want_build_tools() { # systemd-python comes as source
    local version
    version=$(version_of "$python")
    want "python$version-venv" "python$version" "$python" -c 'import ensurepip, venv'
    want "python$version-dev" "python$version-devel" has_headers
    want gcc gcc command -v cc
    want libc6-dev glibc-devel can_compile
    want pkg-config pkgconf-pkg-config command -v pkg-config
    want libsystemd-dev systemd-devel pkg-config --exists libsystemd
}

want_test_tools() { # the programs that tests compare with, and a network filesystem without a network
    want zstd zstd command -v zstd
    want gzip gzip command -v gzip
    want openssl openssl command -v openssl
    want xz-utils xz command -v xz
    want sshfs fuse-sshfs command -v sshfs
    want openssh-sftp-server openssh-server has_sftp_server
    want fuse3 fuse3 command -v fusermount3
    want util-linux util-linux command -v unshare
    want procps procps-ng command -v ps
    want systemd-container systemd-container command -v systemd-nspawn # the service is tested in a booted system
    want mmdebstrap mmdebstrap command -v mmdebstrap # the packages are built and tried in roots of their own
    want chromium-headless-shell chromium-headless has_browser # the page is tried in a real browser
    want tmux tmux command -v tmux # and what is drawn on a terminal in a real one
}

logged() { # runs a command, and shows what it printed only if it fails
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ $status -ne 0 ]; then cat "$log" >&2; fi
    rm -f "$log"
    return $status
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    if ! apt-cache show -- "${missing[@]}" >/dev/null 2>&1; then logged apt-get update -q || return 1; fi
    apt-get install -y -q --no-install-recommends -- "${missing[@]}" >/dev/null 2>&1 </dev/null && return 0
    # Lists that are out of date name files that are gone: once more with fresh ones.
    logged apt-get update -q && logged apt-get install -y -q --no-install-recommends -- "${missing[@]}"
}

install_missing() {
    if [ ${#missing[@]} -eq 0 ]; then return 0; fi
    local command="$manager install -y ${missing[*]}"
    if [ $manager = none ]; then
        fail "neither apt-get nor dnf is here. Install what your system calls: ${missing[*]}"
    elif [ "$(id -u)" != 0 ]; then
        fail "system packages are missing. Run this as root, then make again: $command"
    fi
    say "installing system packages: ${missing[*]}"
    if [ $manager = apt-get ]; then
        apt_install || fail "that failed (see above). Make this work, then make again: $command"
    else
        logged dnf install -y "${missing[@]}" || fail "that failed (see above). Make this work, then make again: $command"
    fi
    missing=()
}

choose_python() {
    if python=$(find_python); then return 0; fi
    if [ -z "${PYTHON:-}" ]; then
        # Debian's python3 is the newest it has; the rpm distributions keep a newer one beside theirs.
        want python3 python3.11 test $manager = apt-get -a -x /usr/bin/python3
        install_missing
        if python=$(find_python); then return 0; fi
    fi
    fail "Python 3.11 or newer is needed, and ${PYTHON:-python3, python3.11, python3.12, python3.13} did not give one." \
        "Install it, or say where it is: make PYTHON=/path/to/python3.11 …"
}

install_python_packages() {
    if ! recent_enough .venv/bin/python || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        say "making .venv with $python"
        logged "$python" -m venv --clear .venv || fail "no virtualenv could be made (see above)"
    fi
    say "installing Python packages ($level)"
    # The build tools are pinned by the same file: pip reads the first name before version 25.3, the second after it.
    export PIP_CONSTRAINT=$PWD/$constraints PIP_BUILD_CONSTRAINT=$PWD/$constraints PIP_DISABLE_PIP_VERSION_CHECK=1
    logged .venv/bin/python -m pip install --quiet --no-input --use-pep517 --editable "$what" ||
        fail "pip could not install them (see above): is a package index in reach?"
}

if finished; then exit 0; fi
exec 9<"$constraints"
if command -v flock >/dev/null; then flock 9; fi # two makes at once: the second waits, and finds the work done
if finished; then exit 0; fi

choose_python
want_build_tools
if [ "$level" = dev ]; then want_test_tools; fi
install_missing
install_python_packages
state_wanted >".venv/.setup-$level"
say "$level ready in $((SECONDS - started)) s: .venv/bin/quaymaster"
