"""The page for people in a real browser, from a file, without network. pytest -m browser"""

import json
import time

import pytest

from minirlhf.cli.eval_human import main
from minirlhf.evaluation.human.analysis import read_ratings, tally

from .picture import browser as open_browser
from .picture import draw

pytestmark = pytest.mark.browser

STRANGE = {
    "</script><script>document.title = 'taken'</script>": "<img src=x onerror=document.title=1> &amp; <b>x</b>",
    "如何学习强化学习？\n第二行": "先读论文。\n\n再写代码。",
    "a long prompt " * 200: "word " * 5000,
    "one word": "x" * 5000,
    "كيف حالك؟": "بخير",
    "an empty answer": "",
}


@pytest.fixture(scope="module")
def down(tmp_path_factory):
    return tmp_path_factory.mktemp("down")


@pytest.fixture(scope="module")
def browser(down):
    pytest.importorskip("selenium")
    with open_browser(1100, 760, down) as browser:
        yield browser


def write_page(folder, texts, name="page.html"):
    """A page that compares "zebra" and "walrus"; zebra's answers begin with Z and walrus' with W."""
    for model in ("zebra", "walrus"):
        first = model[0].upper()
        rows = [{"prompt": p, "response": "" if a == "" and first == "Z" else first + a} for p, a in texts.items()]
        (folder / f"{model}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = folder / name
    main([str(folder / "zebra.jsonl"), str(folder / "walrus.jsonl"), "--output", str(page)])
    return page


def start(browser, page, rater="anna"):
    browser.get(page.as_uri())
    press(browser, rater + "\n")
    for _ in range(200):  # the page handles the keys after a moment
        if text(browser, "done"):
            return
        time.sleep(0.05)


def press(browser, keys):
    browser.switch_to.active_element.send_keys(keys)


def text(browser, name):
    """textContent: the exact text, as the page put it in."""
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def exported(browser, down, count):
    """The newest exported file, once there are `count`."""
    browser.find_element("id", "export").click()
    for _ in range(100):
        files = sorted(down.glob("*.json"), key=lambda path: path.stat().st_mtime)
        if len(files) >= count:
            return files[-1]
        time.sleep(0.1)
    raise AssertionError(f"no file in {list(down.iterdir())}")


def errors(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_a_rater_works_through_the_page_with_the_keyboard(browser, tmp_path, down):
    start(browser, write_page(tmp_path, {f"p{n}": f"{n}" for n in range(8)}))
    assert text(browser, "done") == "0 of 8 rated"
    prefers = []
    for _ in range(5):  # always zebra
        assert browser.switch_to.active_element.get_attribute("id") == "number"
        side = "left" if text(browser, "left").startswith("Z") else "right"
        prefers.append(side)
        press(browser, {"left": "1", "right": "2"}[side])
    press(browser, "3")
    press(browser, "4")
    assert text(browser, "done") == "7 of 8 rated"
    press(browser, "c")  # a comment takes letters and digits and rates nothing
    press(browser, "1 n p 你好")
    assert text(browser, "done") == "7 of 8 rated"
    browser.find_element("id", "comment").send_keys("\ue00c")  # Escape
    assert browser.switch_to.active_element.get_attribute("id") == "number"
    path = exported(browser, down, 1)
    found = read_ratings([str(path)])
    assert path.name == "ratings-anna.json"
    zebra = tally(found.rows)
    assert zebra.results == {"first": 5, "tie": 1, "both bad": 1} and zebra.share == pytest.approx(6 / 7)
    assert [comment.text for comment in found.comments] == ["1 n p 你好"]
    assert not errors(browser)


def test_progress_is_kept_per_rater_and_per_page(browser, tmp_path):
    page = write_page(tmp_path, {f"p{n}": f"{n}" for n in range(4)})
    start(browser, page, "berta")
    sides = []
    for _ in range(2):
        sides.append(text(browser, "left"))
        press(browser, "1")
    start(browser, page, "berta")  # as after a crash of the browser
    assert text(browser, "done") == "2 of 4 rated" and text(browser, "number") == "Comparison 3 of 4: prompt"
    press(browser, "p")
    assert text(browser, "left") == sides[1]  # the side stays
    pressed = browser.find_elements("css selector", "[aria-pressed=true]")
    assert [button.get_attribute("data-choice") for button in pressed] == ["left"]
    press(browser, "2")  # a change of mind
    assert text(browser, "done") == "2 of 4 rated"
    start(browser, page, "carl")
    assert text(browser, "done") == "0 of 4 rated"
    (tmp_path / "other").mkdir()
    start(browser, write_page(tmp_path / "other", {f"q{n}": f"{n}" for n in range(4)}), "berta")
    assert text(browser, "done") == "0 of 4 rated"


def test_sides_change_at_random_from_comparison_to_comparison_and_from_rater_to_rater(browser, tmp_path):
    start(browser, write_page(tmp_path, {f"p{n}": f"{n}" for n in range(400)}))
    program = """
        const first = [];
        for (const name of ["anna", "berta"]) { rater = name; first.push(data.comparisons.map((_, i) => left(i))); }
        return first;
    """
    anna, berta = browser.execute_script(program)
    for sides in (anna, berta):
        assert 160 < sum(sides) < 240  # 200 +- 10
        assert 160 < sum(a == b for a, b in zip(sides, sides[1:], strict=False)) < 240
    assert 160 < sum(a == b for a, b in zip(anna, berta, strict=True)) < 240


def test_texts_of_strangers_are_shown_as_texts(browser, tmp_path):
    start(browser, write_page(tmp_path, STRANGE))
    seen = {}
    for _ in STRANGE:
        seen[text(browser, "prompt")] = {text(browser, "left"), text(browser, "right")}
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert browser.execute_script(wide)  # a long word does not push the buttons out of the window
        press(browser, "n")
    answers = {p: {"Z" + a, "W" + a} if a else {"(empty)", "W"} for p, a in STRANGE.items()}
    assert seen == answers
    assert browser.title == "Which answer is better?"
    assert not browser.find_elements("css selector", "main img, main b")
    assert not errors(browser)


def test_the_page_fetches_nothing_and_refuses_to(browser, tmp_path):
    page = write_page(tmp_path, {"p": "a"})
    start(browser, page)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    program = "fetch('http://127.0.0.1:1/').then(() => arguments[0]('sent'), () => arguments[0]('refused'))"
    assert browser.execute_async_script(program) == "refused"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_the_keys_can_be_switched_off_and_the_buttons_have_names(browser, tmp_path):
    start(browser, write_page(tmp_path, {"p": "a", "q": "b"}))
    browser.find_element("id", "keys").click()
    press(browser, "1")
    assert text(browser, "done") == "0 of 2 rated"
    for name, role in {"left": "region", "prompt": "region", "comment": "textbox", "bar": "progressbar"}.items():
        element = browser.find_element("id", name)
        assert element.aria_role == role and element.accessible_name, name
    names = [button.accessible_name for button in browser.find_elements("css selector", "#rate button")]
    assert all(names) and len(set(names)) == len(names)


def luminance(colour):
    parts = [int(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    r, g, b = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_have_the_contrast_of_wcag_aa(browser, tmp_path, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    start(browser, write_page(tmp_path, {"p": "a", "q": ""}))
    press(browser, "1")
    press(browser, "p")  # a pressed button is on the screen
    program = """
        const back = (e) => { const c = getComputedStyle(e).backgroundColor;
                              return c === "rgba(0, 0, 0, 0)" ? back(e.parentElement) : c; };
        return ["#prompt", "#left", "#number", "#done", "[data-choice=left]", "[data-choice=right]", ".soft"]
            .map((name) => document.querySelector(name)).map((e) => [getComputedStyle(e).color, back(e)]);
    """
    pairs = browser.execute_script(program)
    dark = luminance(browser.execute_script("return getComputedStyle(document.body).backgroundColor")) < 0.1
    assert dark == (scheme == "dark")
    for colours in pairs:
        low, high = sorted(map(luminance, colours))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colours
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_page_of_500_long_comparisons_opens(browser, tmp_path):
    page = write_page(tmp_path, {f"{n} 如何学习强化学习？" * 5: "答案很长。" * 200 for n in range(500)})
    assert page.stat().st_size < 5_000_000
    start(browser, page)
    assert text(browser, "done") == "0 of 500 rated" and len(text(browser, "left")) == 1001
    assert not errors(browser)


def test_the_picture_in_docs_can_be_drawn_again(browser, tmp_path):
    draw(tmp_path / "human.png")
    assert (tmp_path / "human.png").stat().st_size < 100_000
