"""Parquet files that pyarrow wrote."""

import datetime
import decimal

import pytest

from minirlhf.data.reading import open_values
from minirlhf.errors import InputError

pytestmark = pytest.mark.parity


@pytest.fixture
def written(tmp_path):
    def written(columns, **options):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        table = pyarrow.table(columns) if isinstance(columns, dict) else columns
        parquet.write_table(table, tmp_path / "rows.parquet", **options)
        return tmp_path / "rows.parquet"

    return written


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_rows_are_those_of_pyarrow(written, compression):
    rows = [
        {
            "prompt": f"猫 {i}",
            "turns": [{"role": "user", "content": "a\nb"}],
            "label": i % 2 == 0,
            "none": None,
            "n": i / 4,
        }
        for i in range(3000)
    ]
    path = written({key: [row[key] for row in rows] for key in rows[0]}, compression=compression, row_group_size=500)
    values = open_values(path)
    found = list(values)
    assert values.format == "parquet" and [source.value for source in found] == rows
    assert (found[-1].unit, found[-1].number, values.at(found[-1].at)) == ("row", 3000, rows[-1])


def test_values_that_json_lacks(written):
    day, number = datetime.date(2024, 2, 29), decimal.Decimal("1.5")
    (source,) = open_values(written({"day": [day], "number": [number]}))
    assert source.value == {"day": "2024-02-29", "number": 1.5}


def test_bytes_and_names_that_stand_twice_are_refused(written):
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"rows.parquet: needed a parquet file .*, got: a column of bytes \(b'x'\)"):
        open_values(written({"image": [b"x"]}))
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    with pytest.raises(InputError, match=r"got: two columns with the name 'a'; rename"):
        open_values(written(table))


def test_a_broken_file_is_named(written):
    path = written({"a": list(range(1000))})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"rows.parquet: needed a parquet file that pyarrow reads, got: "):
        open_values(path)
