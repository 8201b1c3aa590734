"""Rows: reading, checking, converting, splitting, encoding, batching."""

from minirlhf.data.batches import Batches, Draw, Sequences, microbatches, pad_sequences
from minirlhf.data.encoding import Encoded, EncodedRow, encode_rows
from minirlhf.lazy import lazy

# names of leaves
LEAVES = {"minirlhf.data.formats": "Dataset read_rows"}
__getattr__, __dir__ = lazy(__name__, LEAVES)
