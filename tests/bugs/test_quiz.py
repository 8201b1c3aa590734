"""The quiz in a real browser, from a file, without network. pytest -m browser"""

import pytest

from ..evaluation.human.picture import browser as open_browser
from ..evaluation.human.test_browser import errors
from .faults import FAULTS
from .test_museum import FOLDER

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("selenium")
    with open_browser(1100, 900, tmp_path_factory.mktemp("down")) as browser:
        yield browser


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector
    )


def test_a_run_is_asked_answered_and_followed_by_the_next(browser):
    browser.get((FOLDER / "quiz.html").as_uri())
    assert not errors(browser)
    assert texts(browser, "#where")[0].startswith(f"Run 1 of {len(FAULTS)}: ")
    assert len(texts(browser, "#charts figure")) >= 5 and len(texts(browser, "#choices button")) == 4
    asked = browser.execute_script("return order[at].name")
    names = browser.execute_script(
        "return [...document.querySelectorAll('#choices button')].map((x) => x.dataset.name)"
    )
    assert asked in names and len({*names}) == 4
    body = browser.find_element("css selector", "body")
    body.send_keys(str(names.index(asked) + 1))
    answer = texts(browser, "#answer")[0]
    assert answer.startswith(f"Right: {FAULTS[asked].title}") and FAULTS[asked].effect in answer
    assert texts(browser, "#score") == ["1 of 1 right"]
    body.send_keys("1")  # a run is answered once
    assert texts(browser, "#score") == ["1 of 1 right"]
    body.send_keys("n")
    asked = browser.execute_script("return order[at].name")
    wrong = browser.find_element("css selector", f"#choices button:not([data-name={asked}])")
    wrong.click()
    assert texts(browser, "#answer")[0].startswith("No, it is: ") and texts(browser, "#score") == ["1 of 2 right"]
    assert len(browser.find_elements("css selector", "button.right")) == 1
    assert not errors(browser)


def test_every_run_is_asked_once_before_the_first_comes_again(browser):
    browser.get((FOLDER / "quiz.html").as_uri())
    seen = [browser.execute_script("const name = order[at].name; ask(); return name") for _ in FAULTS]
    assert sorted(seen) == sorted(FAULTS) and not errors(browser)
