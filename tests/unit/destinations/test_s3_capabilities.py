"""What counts as a downgrade of an endpoint, and what does not (PRODUCT P5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quaymaster.destinations.s3_probe import RANKS, Capabilities

BEST = Capabilities(**{name: values[0] for name, values in RANKS.items()})
BY_CRC = replace(
    BEST,
    checksum="crc64nvme",
    **dict.fromkeys(("put_checked", "put_proof", "part_checked", "parts_proof"), "crc64nvme"),
)
OLD = {name: value for name, value in BEST.pins().items() if name != "checksum"}
"""Pins of a version that knew one preference only."""


@pytest.mark.parametrize(
    ("now", "pins", "lost"),
    [
        (BEST, OLD, 0),
        (BY_CRC, OLD, 0),
        (BY_CRC, BEST.pins(), 0),
        (BEST, BY_CRC.pins(), 0),
        (BY_CRC, OLD | {"part_checked": "md5", "parts_proof": "md5-parts"}, 0),
        # The same preference as before, and less of it.
        (replace(BEST, parts_proof="crc64nvme"), OLD, 1),
        (replace(BY_CRC, put_proof="sha256"), BY_CRC.pins(), 1),
        # Less than either of the two, whatever was preferred.
        (replace(BY_CRC, put_checked="md5", put_proof="md5"), OLD, 2),
        (replace(BEST, parts_proof="readback"), BY_CRC.pins(), 1),
        (replace(BY_CRC, create="checked", metadata="lost"), OLD, 2),
        (replace(BEST, remove="denied"), OLD, 0),
    ],
)
def test_what_was_lost(now: Capabilities, pins: dict[str, str], lost: int) -> None:
    assert len(now.downgrades(pins)) == lost


def test_what_is_remembered_counts_only_for_the_same_preference() -> None:
    assert Capabilities.from_pins(OLD, "sha256") == BEST
    assert Capabilities.from_pins(BY_CRC.pins(), "crc64nvme") == BY_CRC
    assert Capabilities.from_pins(OLD, "crc64nvme") is None
    assert Capabilities.from_pins(BY_CRC.pins() | {"put_proof": "sha512"}, "crc64nvme") is None
