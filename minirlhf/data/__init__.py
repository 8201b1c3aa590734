"""Rows: reading, checking, converting, splitting, encoding, batching."""

from minirlhf.data.batches import Batches, Draw, Sequences, microbatches, pad_sequences
from minirlhf.data.encoding import Encoded, EncodedRow, encode_rows
from minirlhf.data.formats import Dataset, read_rows
