"""Parquet files, by the package pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal

from minirlhf.errors import InputError, shown

ROWS = 1024  # at a time


def json_lines(path: str) -> Iterator[bytes]:
    """The rows as JSONL.   Raises: InputError if pyarrow is missing, or cannot read the file."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        advice = 'install it (pip install "minirlhf[parquet]"), or convert the file to JSONL'
        raise InputError(f"needed the package pyarrow to read parquet, got none; {advice}") from None
    try:
        with ParquetFile(path) as file:
            if twice := [name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1]:
                raise InputError(f"two columns with the name {shown(twice[0])}; rename one of them")
            for batch in file.iter_batches(ROWS):
                rows = (json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in batch.to_pylist())
                yield "".join(rows).encode("utf-8", "surrogatepass")
    except (ArrowException, OSError, ValueError) as error:
        fault = error if isinstance(error, InputError) else shown(str(error), 200)
        raise InputError(f"needed a parquet file that pyarrow reads, got: {fault}") from None


def _plain(value: object) -> str | float:
    """A value that JSON lacks."""
    if isinstance(value, Decimal):
        return float(value)
    if hasattr(value, "isoformat"):  # dates and times
        return value.isoformat()
    if isinstance(value, bytes):
        raise InputError(f"a column of bytes ({shown(value, 20)}); leave such columns out")
    return str(value)
