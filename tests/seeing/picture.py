"""Draws docs/seeing.png from the folders of runs: python -m tests.seeing.picture runs/a runs/b"""

import sys
import tempfile
from pathlib import Path

from minirlhf.seeing.page import write_page

from ..evaluation.human.picture import ROOT, browser


def draw(path, *folders):
    with tempfile.TemporaryDirectory() as folder, browser(1280, 1500, folder) as chromium:
        page = Path(folder, "page.html")
        write_page([Path(each) for each in folders], page)
        chromium.get(page.as_uri())
        chromium.execute_script("document.getElementById('filter').value = 'eval'; curves()")
        chromium.save_screenshot(str(path))


if __name__ == "__main__":
    draw(ROOT / "docs" / "seeing.png", *sys.argv[1:])
