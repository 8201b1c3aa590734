"""The parity tier compares with other libraries (pip install -e ".[parity]"); without them nothing is collected."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("transformers") else ["test_*.py"]
