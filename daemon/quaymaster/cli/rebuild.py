"""``quaymaster rebuild``: the queue and the ledger after a loss (PRODUCT I5, Q6)."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from quaymaster.cli import show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import QuaymasterError


@click.command("rebuild")
@click.option("--sources-only", is_flag=True, help="Leave out copies whose sources are not here any more.")
@in_session
def command(session: Session, sources_only: bool) -> int:
    """Make the queue and the ledger usable again after the database was lost, damaged or rolled back.

    Stop the service first. A damaged database is kept as it is in a folder beside it, and what can be read of it is
    carried over. Then each file of the watches that is not known is looked for at its destinations: by the metadata of
    S3 objects, elsewhere by comparing the content. What is there counts as delivered, and is not sent again. Nothing
    is sent, removed or changed outside the state directory.

    \b
    Examples:
      systemctl stop quaymaster && quaymaster rebuild && systemctl start quaymaster
      quaymaster rebuild --sources-only --json
    """
    from quaymaster.service.rebuild import rebuild

    def tell(line: str) -> None:
        if not session.json:
            print(show.plain(line), file=sys.stderr)

    summary = rebuild(session.config(), tell=tell, orphans=not sources_only)
    if session.json:
        print(show.as_json(asdict(summary)))
    else:
        print(f"lost: {show.plain(summary.loss)}" if summary.loss else "nothing was lost")
        print(f"{show.count(summary.files, 'file')} in the watches, {show.count(summary.known)} of them known already")
        print(f"{show.count(summary.adopted)} recognised at the destinations; the service sends the rest")
        print(f"{show.count(summary.orphans, 'copy', 'copies')} recorded whose sources are not here any more")
    if summary.problems:
        raise QuaymasterError(
            f"{show.count(len(summary.problems), 'thing')} could not be looked at; the first: {summary.problems[0]}",
            "Correct that and run it again: what is recorded already stays",
        )
    return 0
