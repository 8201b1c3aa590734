"""Fixtures: files written here."""

import pytest

from minirlhf.data.reading import open_values


@pytest.fixture
def read(tmp_path):
    """read(content, name, **options): the values of a file. Each is read twice: in turn, and again by its position."""

    def read(content, name="data.jsonl", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        values = open_values(path, **options)
        found = list(values)
        for source in found:
            again = values.at(source.at)
            assert (type(again), repr(again)) == (type(source.value), repr(source.value))
        return found

    return read


@pytest.fixture
def faults(read):
    """faults(content, name, **options): {number: message} of the broken values."""

    def faults(*args, **options):
        found = read(*args, **options)
        return {source.number: str(source.value) for source in found if isinstance(source.value, Exception)}

    return faults
