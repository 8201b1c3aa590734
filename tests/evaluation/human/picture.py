"""Draws docs/human.png: python tests/evaluation/human/picture.py"""

import json
import tempfile
from pathlib import Path

from minirlhf.cli.eval_human import main

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "Why does a kettle whistle? Answer for a child of eight."
ANSWERS = {
    "base": "A kettle whistles since the steam escapes through a narrow opening, which produces vortices whose "
    "frequency depends on the flow velocity and the geometry of the spout.",
    "tuned": "When water boils, it turns into steam.\n\nThe steam wants to get out, but the hole in the lid is tiny. "
    "So it rushes through very fast, and the air starts to sing. You do the same when you whistle with your lips!",
}


def browser(width, height, folder):
    """A headless Chromium that saves its downloads in `folder`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")  # a path: selenium then fetches no driver
    return webdriver.Chrome(options=options, service=service)


def draw(path):
    with tempfile.TemporaryDirectory() as folder, browser(980, 800, folder) as chromium:
        files = []
        for model, answer in ANSWERS.items():
            files.append(Path(folder, f"{model}.jsonl"))
            rows = [{"prompt": PROMPT, "completion": answer}]
            rows += [{"prompt": f"{n}", "completion": f"{n}{model}"} for n in range(24)]
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
        page = Path(folder, "page.html")
        main([*map(str, files), "--output", str(page)])
        chromium.get(page.as_uri())
        chromium.switch_to.active_element.send_keys("anna\n")
        for _ in range(25):
            if chromium.find_element("id", "prompt").text == PROMPT:
                break
            chromium.switch_to.active_element.send_keys("1")
        chromium.find_element("id", "comment").send_keys("Left: words that a child knows")
        chromium.save_screenshot(str(path))


if __name__ == "__main__":
    draw(ROOT / "docs" / "human.png")
