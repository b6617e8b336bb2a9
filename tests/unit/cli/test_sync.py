"""What the command line of ``quaymaster sync`` means."""

from __future__ import annotations

import pytest

from quaymaster.cli.sync import _how_far, _lines, _Rate, _spread
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


def test_the_progress_tells_files_bytes_rate_time_left_and_each_file() -> None:
    rate = _Rate()
    first = Moment("send", 1, 10, 0, 100 << 20, (("a.fastq", 1, 4),))
    assert _how_far(first, rate, 10.0) == "sending: 1 of 10 files, 0 B of 100 MiB (0 %); a.fastq 25 %"
    later = Moment("send", 2, 10, 20 << 20, 100 << 20)
    assert _how_far(later, rate, 12.0) == "sending: 2 of 10 files, 20.0 MiB of 100 MiB (20 %), 10.0 MiB/s, 8 s left"
    assert _how_far(Moment("scan", 1_234), rate, 0.0) == "scanning: 1,234 files"


def test_the_summary_names_only_what_there_was() -> None:
    summary = Summary(files=5, sent=2, skipped=3, bytes_in=4 << 20, bytes_out=1 << 20, ratio=4.0, seconds=2.0)
    summary.stages = {"scan": 0.1, "compare": 0.0, "send": 2.0}
    assert _lines(summary) == [
        "2 sent, 3 unchanged; 5 files looked at, 2.0 s",
        "  4.00 MiB in, 1.00 MiB out (4.00:1), 2.00 MiB/s",
        "  scan 0.1 s, send 2.0 s",
    ]
    assert _lines(Summary())[0].startswith("nothing to do")
