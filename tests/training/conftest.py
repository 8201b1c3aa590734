"""The trainers of tests/algorithms/tiny.py, for a run around a real one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "algorithms"))
