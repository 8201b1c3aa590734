"""Event files that TensorBoard reads, written without its package.

A file is a row of records: length [8 bytes], its checksum [4], the record, its checksum [4]; all little-endian. A
record is an Event of TensorFlow's event.proto, in the encoding of protocol buffers: each field is a key, number * 8 +
wire type, and a value (wire type 0: a varint, 1: 8 bytes, 2: length and bytes, 5: 4 bytes).
Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, RFC 3720 appendix B.4 (CRC-32C).
"""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

POLYNOMIAL = 0x82F63B78  # of CRC-32C, bits reversed
TABLE = [0] * 256
for _byte in range(256):
    _crc = _byte
    for _ in range(8):
        _crc = _crc >> 1 ^ (POLYNOMIAL if _crc & 1 else 0)
    TABLE[_byte] = _crc
LARGEST = 3.4028234e38  # float32
START = 1  # of SessionLog: TensorBoard then drops the points of later steps; the resumed run writes these points again


class EventFile:
    """One file for each start of a run.   folder: made if it is absent.   step: the number of steps that are done."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._write(_field(3, b"brain.Event:2"))  # file_version
        self._write(_step(step + 1) + _field(7, _number(1, START)))  # session_log.status

    def log(self, step: int, metrics: Mapping[str, object]) -> None:
        """Write the numbers of a step. Another value than a number is left out."""
        numbers = {name: value for name, value in metrics.items() if type(value) in (int, float)}
        values = [
            _field(
                1, _field(1, name.encode("utf-8", errors="replace")) + _key(2, 5) + struct.pack("<f", _single(value))
            )
            for name, value in numbers.items()
        ]  # Summary.value: tag, simple_value
        self._write(_step(step) + _field(5, b"".join(values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, content: bytes) -> None:
        """content: an Event without its time."""
        self._file.write(record(_key(1, 1) + struct.pack("<d", time.time()) + content))


def record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked(length)) + content + struct.pack("<I", masked(content))


def masked(content: bytes) -> int:
    """The checksum of a record. It is masked, because a checksum of bytes that hold checksums is weak."""
    crc = crc32c(content)
    return (crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    """A number >= 0: 7 bits in a byte, the lowest first; the eighth bit says that more bytes follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _key(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def _field(number: int, content: bytes) -> bytes:
    return _key(number, 2) + varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _key(number, 0) + varint(value)


def _step(step: int) -> bytes:
    return _number(2, step)


def _single(value: float) -> float:
    """The value as float32 can hold it."""
    if abs(value) > LARGEST:
        return math.inf if value > 0 else -math.inf
    return value
