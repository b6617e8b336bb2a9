#!/usr/bin/env bash
# The first two commands of README on a machine that has nothing: a minimal Debian 12 with git, make and python3,
# a clone of this repository in it, then `make demo`, `make demo` again, and `make test`.
#
#   FRESH_TREE=worktree   take the files as they lie here instead of a clone of HEAD
#   FRESH_GOALS="demo;test TESTS=tests/unit"    other arguments than "demo;demo;test", one make each
#   FRESH_CACHE=DIR       where the root's tar is kept (/var/tmp/quaymaster-fresh; remove it to build a new one)
#   FRESH_MIRROR=URL      a Debian mirror other than the default
#
# Needs root and mmdebstrap. Uses the network as this host does: its resolver, its certificates, and its settings of
# apt and pip. Everything happens in namespaces and a directory of its own, which is removed at the end.
set -euo pipefail

# shellcheck source=packaging/host_network.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../packaging/host_network.sh"

say() { printf 'fresh: %s\n' "$*"; }
fail() { printf 'fresh: %s\n' "$*" >&2; exit 1; }

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${FRESH_CACHE:-/var/tmp/quaymaster-fresh}
IFS=";" read -ra goals <<<"${FRESH_GOALS:-demo;demo;test}"
base=$cache/bookworm-minbase.tar
standard_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

build_base() {
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap"
    say "building the minimal Debian 12 (once, about 30 s): $base"
    mkdir -p "$cache"
    host_apt_settings >"$cache/apt.conf"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,git,make,python3 --aptopt="$cache/apt.conf" \
        bookworm "$base.new" ${FRESH_MIRROR:+"$FRESH_MIRROR"}
    mv "$base.new" "$base"
}

take_checkout() { # the repository at $1, as a stranger gets it
    if [ "${FRESH_TREE:-}" = worktree ]; then
        mkdir -p "$1"
        (cd "$checkout" && git ls-files -z --cached --others --exclude-standard |
            tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null) | tar -C "$1" -xf -
    else
        git clone --quiet "$checkout" "$1"
    fi
}

enter() { # $1 becomes this shell's /. Not chroot: the kernel allows no user namespace in one, and tests make some
    cd "$1"
    mkdir .host
    pivot_root . .host
    cd /
    PATH=$standard_path
    hash -r
    umount -l /.host
    rmdir /.host
}

inside() { # a command in the fresh root, with nothing of this environment but its way to the network
    local settings
    mapfile -t settings < <(network_settings)
    env -i PATH="$standard_path" HOME=/root "${settings[@]}" /bin/sh -c "cd /root/quaymaster && $1" </dev/null
}

in_namespaces() { # in a mount and a process namespace of our own: all of it ends with this shell
    local root=$1 goal started
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$root/run"
    share_host_network "$root"
    enter "$root"
    inside 'cat /etc/debian_version; python3 -V; for t in gcc zstd pip3 sshfs; do ! command -v $t || exit 1; done' ||
        fail "the root is not bare: remove $base"
    for goal in "${goals[@]}"; do
        started=$SECONDS
        say "make $goal"
        inside "make $goal" || fail "make $goal failed on a fresh machine"
        say "make $goal took $((SECONDS - started)) s"
    done
}

if [ "${1:-}" = --in-namespaces ]; then
    in_namespaces "$2"
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "only root can make a fresh root: sudo make fresh"
[ -f "$base" ] || build_base
root=$(mktemp -d "$cache/root.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
tar -C "$root" --numeric-owner -xf "$base"
take_checkout "$root/root/quaymaster"
unshare --mount --propagation private --pid --fork --kill-child "${BASH_SOURCE[0]}" --in-namespaces "$root"
say "passed: ${goals[*]/#/make }"
