"""JSON values of a data file -> rows of one of six kinds. `LAYOUTS` lists the ways to write a row."""

from minirlhf.data.formats.dataset import Dataset, Refusal, read_rows
from minirlhf.data.formats.layouts import LAYOUTS

__all__ = ["LAYOUTS", "Dataset", "Refusal", "read_rows"]
