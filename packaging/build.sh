#!/usr/bin/env bash
# Builds the packages of this checkout into dist/.
#
#   packaging/build.sh                    all of them (make package)
#   packaging/build.sh bookworm           the deb for Debian 12, with its Python 3.11
#   packaging/build.sh trixie             the deb for Debian 13, with its Python 3.13
#   packaging/build.sh rpm                the rpm, for Python 3.11
#   --out DIRECTORY                       another place than dist/
#   --version VERSION                     another version than the checkout's own, to try an upgrade with
#   --cached                              into a directory of the cache, and nothing to do when the same source was
#                                         built before: for tests. Whatever the commit, it is dated 2026-01-01
#
# Each is built in a root of its own (root.sh), by stage.py and nfpm (nfpm.yaml), from a copy of the files that git
# knows or would take (all, where there is no git). The libraries come from PyPI, at the versions of constraints.txt; nothing is fetched when a
# package is installed. The same source gives the same bytes: what is dated has SOURCE_DATE_EPOCH, which is the time of
# the last commit unless the environment says otherwise. Needs root, mmdebstrap, and a package index in reach.
# Prints the path of each package on standard output, and what it does on standard error.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$here")
cache=${QUAYMASTER_CACHE:-/var/cache/quaymaster-build}

say() { printf 'build: %s\n' "$*" >&2; }
fail() { printf 'build: %s\n' "$*" >&2; exit 1; }

listed() { # the files that a package is made of, each with a NUL
    local parts=(daemon units etc packaging pyproject.toml README.md CHANGELOG.md LICENSE)
    if [ -e .git ]; then
        git ls-files -z --cached --others --exclude-standard -- "${parts[@]}"
    else # an unpacked archive
        find "${parts[@]}" -type f ! -path '*/__pycache__/*' ! -path '*.egg-info/*' -print0
    fi
}

copy_source() { # to the directory $1
    mkdir -p "$1"
    (cd "$checkout" && listed | tar --null --files-from=- --ignore-failed-read -cf - 2>/dev/null) | tar -C "$1" -xf -
    if [ "$version" ]; then
        sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$1/daemon/quaymaster/__init__.py"
    fi
}

built_version() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$1/daemon/quaymaster/__init__.py"; }

build() { # the packages $2... (deb, rpm) in the build root of the release $1
    local release=$1 root python debian started=$SECONDS
    shift
    case $release in
        bookworm) python=python3.11 debian=12 ;;
        trixie) python=python3.13 debian=13 ;;
    esac
    root=$("$here/root.sh" make "$release" build)
    mkdir -p "$work/$release" "$cache/pip"
    say "$release: $*"
    "$here/root.sh" run "$root" --network --bind "$work/source:/source" --bind "$work/$release:/out" \
        --bind "$cache/pip:/root/.cache/pip" -- \
        env VERSION="$(built_version "$work/source")" PACKAGE_RELEASE="1+deb$debian" PYTHON_PACKAGE="$python" \
        SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 MAINTAINER="$maintainer" \
        SITE="/usr/lib/quaymaster/lib/$python/site-packages" \
        /bin/sh -ec '
            "$PYTHON_PACKAGE" /source/packaging/stage.py /source /stage "$0"
            for packager; do
                if [ $packager = rpm ]; then PACKAGE_RELEASE=1; fi
                /opt/tools/bin/nfpm package --config /source/packaging/nfpm.yaml --packager $packager --target /out/
            done
            # xz itself makes them a sixth smaller than nfpm, which has it in Go.
            for package in /out/*; do
                case $package in
                    *.deb)
                        dpkg-deb --raw-extract "$package" /again
                        dpkg-deb --build --root-owner-group -Zxz -z9 /again "$package" >/dev/null
                        rm -r /again ;;
                    *.rpm) "$PYTHON_PACKAGE" /source/packaging/smaller.py "$package" ;;
                esac
            done' "$release" "$@" >&2 || fail "$release: not built"
    mkdir -p "$out"
    mv "$work/$release"/* "$out/"
    say "$release took $((SECONDS - started)) s"
}

use_cache() { # a directory for this very source; builds that nobody used for hours go
    local key
    key=$(cd "$work/source" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
    out=$cache/packages/$key
    mkdir -p "$out"
    touch "$out"
    find "$cache/packages" -mindepth 1 -maxdepth 1 -mmin +240 -exec rm -rf {} +
    exec 8>"$out/.lock"
    flock 8 # a second one waits, and finds the work done
}

result_of() { # TARGET: the path of its package
    local version
    version=$(built_version "$work/source")
    case $1 in
        bookworm) echo "$out/quaymaster_$version-1+deb12_amd64.deb" ;;
        trixie) echo "$out/quaymaster_$version-1+deb13_amd64.deb" ;;
        rpm) echo "$out/quaymaster-$version-1.x86_64.rpm" ;;
    esac
}

out=$checkout/dist version="" targets=() cached="" bookworm=() trixie=()
maintainer="The quaymaster developers <quaymaster@localhost>"
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=$2; shift ;;
        --version) version=$2; shift ;;
        --cached) cached=yes ;;
        bookworm | trixie | rpm) targets+=("$1") ;;
        *) fail "unknown argument '$1': use bookworm, trixie, rpm, --out DIRECTORY, --version VERSION, --cached" ;;
    esac
    shift
done
if [ ${#targets[@]} = 0 ]; then targets=(bookworm trixie rpm); fi
[ "$(id -u)" = 0 ] || fail "only root can make the roots that packages are built in: sudo make package"

mkdir -p "$cache"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
copy_source "$work/source"
if [ $cached ]; then
    SOURCE_DATE_EPOCH=1767225600
    use_cache
fi
: "${SOURCE_DATE_EPOCH:=$(git -C "$checkout" log -1 --format=%ct)}"
for target in "${targets[@]}"; do
    if [ $cached ] && [ -e "$(result_of "$target")" ]; then continue; fi
    case $target in
        bookworm) bookworm+=(deb) ;;
        rpm) bookworm+=(rpm) ;; # the same tree as the deb for the same Python
        trixie) trixie+=(deb) ;;
    esac
done
if [ ${#bookworm[@]} -gt 0 ]; then build bookworm "${bookworm[@]}"; fi
if [ ${#trixie[@]} -gt 0 ]; then build trixie "${trixie[@]}"; fi
for target in "${targets[@]}"; do result_of "$target"; done
