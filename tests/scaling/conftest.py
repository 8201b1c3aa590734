"""Tests import the programs beside this file: grid, crash, ranks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
