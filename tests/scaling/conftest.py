"""Tests import the programs beside this file, and `tiny` of tests/algorithms."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "algorithms"))
