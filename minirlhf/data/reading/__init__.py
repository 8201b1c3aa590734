"""A data file's bytes -> its JSON values, each with its line number.

files.py        a source  -> its files
kinds.py        the first bytes -> binary formats and encodings
spool.py        packed and foreign-encoded files -> a copy in UTF-8
recognise.py    the first lines -> the container
wrapped.py      a list of rows inside a JSON object
containers.py   JSONL, JSON, tables, text -> values with offsets
bounded.py      lines and values of strangers, within bounds
values.py       all of it: `open_values`, `Values`
"""

from minirlhf.data.reading.values import Source, Values, open_values
