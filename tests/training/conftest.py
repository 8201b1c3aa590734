"""Makes tests/algorithms/tiny.py importable, for runs with real trainers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "algorithms"))
