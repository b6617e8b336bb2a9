"""What the command line of ``quaymaster sync`` means."""

from __future__ import annotations

import pytest

from quaymaster.cli.sync import _Following, _lines, _spread
from quaymaster.service.summary import Moment, Summary


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["w", "--type", "fastq", "txt", "--quiet"], ["w", "--type=fastq", "--type=txt", "--quiet"]),
        (["--type", "fastq,txt", "w"], ["--type=fastq,txt", "w"]),
        (["--type=vcf", "w"], ["--type=vcf", "w"]),
        (["--type", "vcf", "--", "-w"], ["--type=vcf", "--", "-w"]),
        (["--", "--type", "x"], ["--", "--type", "x"]),
    ],
)
def test_types_are_all_words_up_to_the_next_option(given: list[str], meant: list[str]) -> None:
    assert _spread(given) == meant


def test_what_is_shown_is_the_newest_moment() -> None:
    following = _Following()
    assert following.view() is None
    following.note(Moment("scan", 1_234))
    seen = following.view()
    assert seen
    assert seen.whole[0] == "scanning: 1,234 files"
    following.note(Moment("compare", 1, 10))
    following.note(Moment("send", 1, 10, 0, 100 << 20, (("a.fastq", 1, 4),)))
    seen = following.view()
    assert seen
    assert (seen.whole[0], seen.files) == (
        "sending: 1 of 10 files, 0 B of 100 MiB (0 %)",
        (("a.fastq", 1, 4),),
    )


def test_the_summary_names_only_what_there_was() -> None:
    summary = Summary(files=5, sent=2, skipped=3, bytes_in=4 << 20, bytes_out=1 << 20, ratio=4.0, seconds=2.0)
    summary.stages = {"scan": 0.1, "compare": 0.0, "send": 2.0}
    assert _lines(summary) == [
        "2 sent, 3 unchanged; 5 files looked at, 2.0 s",
        "  4.00 MiB in, 1.00 MiB out (4.00:1), 2.00 MiB/s",
        "  scan 0.1 s, send 2.0 s",
    ]
    assert _lines(Summary())[0].startswith("nothing to do")
