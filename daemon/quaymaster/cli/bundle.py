"""The evidence for one file, to be checked elsewhere with nothing but sha256sum (PRODUCT I8).

check.sh        does what README says
README          what is here, and how to check it by hand
entries/SEQ     the custody log's entries about the file: each exactly the bytes that are chained
chain           "SEQ SHA256-OF-ENTRY" for each entry from the file's first to the head, others by digest alone
start           the digest of the entry before the first
head            "SEQ:SHA256" that the chain must come to, and where it was noted outside the database
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quaymaster.errors import UsageError

if TYPE_CHECKING:
    from quaymaster.store import Entry, Store

_CHECK = """\
#!/bin/sh
# Checks this evidence. With the file, or the stored object, as argument, also that it is the one that was delivered.
set -eu
here=$(dirname "$0")
sha() { sha256sum | cut -c-64; }
for entry in "$here"/entries/*; do
  seq=${entry##*/}
  grep -qxF "$seq $(sha <"$entry")" "$here/chain" || { echo "entry $seq is not the one in the chain"; exit 1; }
done
link=$(cat "$here/start")
while read -r seq digest; do
  at=$seq link=$(printf '%s\\n%s\\n' "$link" "$digest" | sha)
done <"$here/chain"
found="$at:$link"
read -r head where <"$here/head"
[ "$found" = "$head" ] || { echo "the chain comes to $found, not to $head"; exit 1; }
echo "the entries are in the chain, and the chain comes to $head"
echo "compare that with $where"
for file in "$@"; do
  digest=$(sha <"$file")
  grep -F -e "\\"source_sha256\\":\\"$digest\\"" -e "\\"stored_sha256\\":\\"$digest\\"" \
    -e "\\"sha256\\":\\"$digest\\"" "$here"/entries/* >/dev/null ||
    { echo "no delivery or download of a file with SHA-256 $digest ($file) is recorded here"; exit 1; }
  echo "$file: its SHA-256 $digest is in the record"
done
"""

_README = """\
Evidence for {shown} ({of}), from quaymaster's custody log.

    sh check.sh [FILE or STORED OBJECT]

needs sh and sha256sum, and neither quaymaster nor the machine that made this. By hand:

1. sha256sum entries/N gives the digest that the line "N ..." of the file chain shows.
2. Begin with the digest in the file start. For each line of chain, in order, the next digest is the SHA-256 of: the
   digest so far, a newline, the line's digest, a newline.
3. The last one is the head in the file head. It was noted outside the database, in the place named there: compare.
   A head that is nowhere else proves only that the entries belong together.
"""


def write(directory: str, store: Store, entries: Sequence[Entry], *, shown: str, of: str) -> str:
    """Make ``directory``, which must not exist, with the evidence; returns the head that it comes to. ``entries`` are
    those about the file, at least one, in order; ``of`` names its watch or mirror."""
    first, last = entries[0].seq, entries[-1].seq
    head, where, lines = _chain(store, first, last)
    before = store.custody_entry(first - 1) if first > 1 else None
    files = {
        "README": _README.format(shown=shown, of=of),
        "check.sh": _CHECK,
        "chain": "".join(lines),
        "start": (before.sha256 if before else "0" * 64) + "\n",
        "head": f"{head} {where}\n",
        **{f"entries/{entry.seq}": entry.body for entry in entries},
    }
    try:
        os.makedirs(os.path.join(directory, "entries"), mode=0o755)
        for name, text in files.items():
            with open(os.path.join(directory, name), "x", encoding="utf-8", newline="") as file:
                file.write(text)
    except FileExistsError:
        raise UsageError(f"{directory} is there already", "Name a directory that does not exist yet") from None
    except OSError as error:
        raise UsageError(f"{directory} cannot be written ({error.strerror})", "Name another directory") from None
    return head


def _chain(store: Store, first: int, last: int) -> tuple[str, str, list[str]]:
    """The head to come to: the first after ``last`` that a destination holds, else the newest entry; where it was
    noted; and the lines of the chain up to it."""
    lines: list[tuple[int, str, str]] = []
    for entry in store.custody(first):
        lines.append((entry.seq, hashlib.sha256(entry.body.encode()).hexdigest(), entry.sha256))
        if entry.seq > last and '"kind":"head-kept"' in entry.body:
            seq, _, digest = str(entry.fields["head"]).partition(":")
            if last <= int(seq) < entry.seq:
                where = f"the object {entry.fields['key']} at the destination {entry.fields['destination']}"
                return f"{seq}:{digest}", where, _texts(lines, int(seq))
    end, _, link = lines[-1]
    return f"{end}:{link}", "the head in the journal (quaymaster audit verify prints it too)", _texts(lines, end)


def _texts(lines: list[tuple[int, str, str]], end: int) -> list[str]:
    return [f"{seq} {digest}\n" for seq, digest, _ in lines if seq <= end]
