"""CRC-64/NVME as S3 tells it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quaymaster.destinations import crc64

_POLYNOMIAL = 0x9A6C9329AC4BC9B5  # reflected; the NVM Express NVM Command Set Specification 1.0, 5.2.1.3.4


def _bit_by_bit(data: bytes) -> int:
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ (1 << 64) - 1


def test_the_check_value_of_the_catalogue_comes_out() -> None:
    # https://reveng.sourceforge.io/crc-catalogue/all.htm
    assert crc64.crc64nvme(b"123456789") == 0xAE8B14860A799888
    assert crc64.text(0xAE8B14860A799888) == "rosUhgp5mIg="


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_it_is_what_the_standard_says_and_can_be_joined(first: bytes, second: bytes) -> None:
    whole = _bit_by_bit(first + second)
    assert crc64.crc64nvme(first + second) == whole
    assert crc64.crc64nvme(second, crc64.crc64nvme(first)) == whole
    assert crc64.joined(crc64.crc64nvme(first), crc64.crc64nvme(second), len(second)) == whole
