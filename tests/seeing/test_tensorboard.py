"""Event files: the bytes worked by hand, and read by the tensorboard package if it is installed."""

import struct
import time

import pytest

from minirlhf.seeing.tensorboard import EventFile, crc32c, masked, record, varint


def test_checksums_of_the_standard():
    # the check value of CRC-32C, and RFC 3720, B.4: 32 bytes of zeros, 32 bytes of ones
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    # 0xE3069283 turned right by 15 bits: 0x1C60D, and its low 15 bits 0x1283 above: 0x2507C60D; plus 0xA282EAD8
    assert masked(b"123456789") == 0xC78AB0E5


def test_varints_have_seven_bits_in_a_byte():
    assert [varint(n) for n in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]


def records(path):
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(content[12 : 12 + length])
        assert content[: 16 + length] == record(found[-1])
        content = content[16 + length :]
    return found


def test_the_bytes_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.0)
    events = EventFile(tmp_path / "new" / "tensorboard", step=4)
    events.log(5, {"a": 1.0, "text": "x", "none": None, "true": True})
    events.close()
    (path,) = (tmp_path / "new" / "tensorboard").iterdir()
    now = b"\x09" + struct.pack("<d", 1.0)  # field 1, 8 bytes: the time
    version, start, numbers = records(path)
    assert version == now + b"\x1a\x0dbrain.Event:2"  # field 3, 13 bytes
    assert start == now + b"\x10\x05" + b"\x3a\x02\x08\x01"  # field 2: step 5; field 7, 2 bytes: its field 1 is 1
    # field 2: step 5; field 5, 10 bytes: field 1, 8 bytes: field 1 is "a", field 2 is 1.0 in 4 bytes
    assert numbers == now + b"\x10\x05" + b"\x2a\x0a\x0a\x08" + b"\x0a\x01a" + b"\x15\x00\x00\x80\x3f"


def test_numbers_that_no_float32_holds_become_infinite(tmp_path):
    events = EventFile(tmp_path, step=0)
    events.log(2**40, {"a": -1e300, "b": float("nan"), "c": 10**400, "\ud800": 3})
    events.close()
    last = records(next(tmp_path.iterdir()))[-1]
    assert struct.pack("<f", float("-inf")) in last and struct.pack("<f", float("inf")) in last


@pytest.mark.parity
def test_tensorboard_reads_the_numbers_and_drops_those_that_a_resumed_run_makes_anew(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator as reading

    first = EventFile(tmp_path, step=0)
    for step in range(1, 6):
        first.log(step, {"loss": step / 2, "eval/gold_reward": step})
    second = EventFile(tmp_path, step=3)  # from the checkpoint of step 3
    second.log(4, {"loss": 40.0})
    found = reading.EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in found.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 40.0)]
    assert [point.step for point in found.Scalars("eval/gold_reward")] == [1, 2, 3]
