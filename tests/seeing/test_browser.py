"""The page about runs in a real browser, from a file, without network. pytest -m browser"""

import json
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from minirlhf.extras.png import png_bytes
from minirlhf.seeing.page import write_page

from ..evaluation.human.picture import browser as open_browser
from ..evaluation.human.test_browser import errors, luminance
from .made import lines, make_pipeline, make_run
from .picture import draw
from .test_page import STRANGE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("selenium")
    with open_browser(1100, 900, tmp_path_factory.mktemp("down")) as browser:
        yield browser


def show(browser, path, *folders):
    write_page(folders, path / "page.html")
    browser.get((path / "page.html").as_uri())
    assert not errors(browser)


def texts(browser, selector):
    program = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    return browser.execute_script(program, selector)


def choose(browser, name, value, event="input"):
    program = """
        const node = document.getElementById(arguments[0]);
        node.value = arguments[1];
        node.dispatchEvent(new Event(arguments[2], { bubbles: true }));
    """
    browser.execute_script(program, name, str(value), event)


def test_a_pipeline_is_shown_with_all_its_parts(browser, tmp_path):
    show(browser, tmp_path, make_pipeline(tmp_path / "job"))
    assert browser.title == "job" and len(texts(browser, ".sentence")) == 3
    assert texts(browser, "#charts h3") == ["sft", "reward_model", "ppo"]
    assert len(texts(browser, "#charts .chart")) == 12  # gold, loss, kl, score_mean of three runs
    assert texts(browser, "#times tbody tr td:first-child") == ["job sft", "job reward", "job ppo"]
    assert len(texts(browser, "#timeCharts .chart")) == 6 and len(texts(browser, "#bars .chart")) == 6
    assert len(texts(browser, "#tables table")) == 3


def test_the_images_of_a_job_are_drawn(browser, tmp_path):
    job = make_pipeline(tmp_path / "job")
    (job / "pictures.png").write_bytes(png_bytes(np.zeros((3, 5), np.uint8)))
    show(browser, tmp_path, job)
    program = "return [...document.images].map((image) => [image.naturalWidth, image.naturalHeight, image.alt])"
    assert browser.execute_script(program) == [[5, 3, "job, pictures.png"]]
    show(browser, tmp_path, make_run(tmp_path / "other/ppo"))
    assert browser.execute_script("return document.getElementById('images').hidden")


def test_a_finding_of_the_doctor_links_into_the_docs(browser, tmp_path):
    folder = make_run(tmp_path / "a folder/ppo", steps=1)
    lines(folder / "metrics.jsonl", [{"step": k, "clip_fraction": 0.5} for k in range(9)])
    show(browser, tmp_path, folder)
    (finding,) = texts(browser, ".finding")
    assert finding.startswith("ppo, step 5: the clip acts on too many tokens. in the last 5 steps the clip took")
    link = browser.find_element("css selector", ".finding a").get_attribute("href")
    assert link.startswith("file:///") and link.endswith("/docs/metrics.md#clip_fraction")
    assert Path(unquote(urlparse(link).path)).is_file()


def test_the_values_of_a_curve_are_read_with_the_keyboard(browser, tmp_path):
    show(browser, tmp_path, make_run(tmp_path / "a/ppo"), make_run(tmp_path / "b/ppo", steps=10))
    chart = browser.find_element("css selector", "[data-metric=kl] svg")
    read = lambda: texts(browser, "[data-metric=kl] .read")[0]  # noqa: E731
    meaning = read()
    browser.execute_script("arguments[0].focus()", chart)
    assert read().startswith("step 20: a/ppo 2 b/ppo 1 at step 10")
    chart.send_keys("\ue012" * 12)  # arrow left
    assert read().startswith("step 8: a/ppo 0.8 b/ppo 0.8")
    chart.send_keys("\ue011")  # home
    assert read().startswith("step 1: a/ppo 0.1")
    browser.execute_script("arguments[0].blur()", chart)
    assert read() == meaning != ""


def test_pointing_at_a_curve_reads_its_nearest_step(browser, tmp_path):
    from selenium.webdriver import ActionChains

    show(browser, tmp_path, make_run(tmp_path / "ppo", steps=21))
    chart = browser.find_element("css selector", "[data-metric=kl] svg")
    ActionChains(browser).move_to_element(chart).perform()
    assert texts(browser, "[data-metric=kl] .read")[0].startswith(("step 10:", "step 11:", "step 12:"))


def test_runs_smoothing_and_metrics_are_chosen(browser, tmp_path):
    show(browser, tmp_path, make_run(tmp_path / "a/ppo"), make_run(tmp_path / "b/ppo"))
    assert len(texts(browser, "[data-metric=kl] path.line")) == 2
    choose(browser, "smooth", 0.9)
    assert len(texts(browser, "[data-metric=kl] path.line")) == 4  # the raw curves stand behind, faint
    assert browser.execute_script("return smoothed([1, 1, 3], 0.5)") == pytest.approx(
        [1, 1, (0.5 + 1 + 6) / 3.5 - 0], 1
    )
    browser.find_element("css selector", "#legend input").click()
    assert len(texts(browser, "[data-metric=kl] path.line")) == 2
    choose(browser, "filter", "gold")
    assert texts(browser, "#charts h4") == ["eval/gold_reward"]
    choose(browser, "filter", "nothing")
    assert texts(browser, "#charts") == ["No metric to show."]


def test_samples_stand_side_by_side_with_the_scores_of_their_group(browser, tmp_path):
    show(browser, tmp_path, make_run(tmp_path / "ppo"))
    assert texts(browser, "#found") == ["2 prompts are on both sides."]  # after the first and after the last step
    first = texts(browser, ".sample")[0]
    assert "answer 0 of step 0" in first and "answer 2 of step 19" in first and "step 10" not in first
    # the scores of p0 after the first step are 0 and 0.2
    assert texts(browser, ".group")[0] == "2 scores of this prompt: mean 0.1, from 0 to 0.2"
    assert "score 0.2, above the mean by 0.1" in first
    choose(browser, "stepA", 11, "change")
    assert "answer 0 of step 10" in texts(browser, ".sample")[0]


def test_a_search_looks_into_all_steps(browser, tmp_path):
    show(browser, tmp_path, make_run(tmp_path / "ppo"))
    choose(browser, "search", "Of Step 7")
    assert texts(browser, "#found") == ["4 rows on the left and 4 on the right have this text."]
    assert set(texts(browser, ".sample mark")) == {"of step 7"} and "after 8 steps" in texts(browser, ".sample")[0]


def test_two_runs_stand_side_by_side_and_their_settings_are_compared(browser, tmp_path):
    show(browser, tmp_path, make_run(tmp_path / "a/ppo", lr=0.1, clip=1), make_run(tmp_path / "b/ppo", lr=0.3, clip=1))
    chosen = "return ['runA', 'runB', 'stepA'].map((name) => document.getElementById(name).selectedOptions[0].label)"
    assert browser.execute_script(chosen) == ["a/ppo", "b/ppo", "20"]
    assert texts(browser, "#tables td") == ["ppo.lr", "0.1", "0.3"]
    browser.find_element("id", "onlyOther").click()
    assert "ppo.clip" in texts(browser, "#tables td") and texts(browser, "#tables .other td") == [
        "ppo.lr",
        "0.1",
        "0.3",
    ]
    choose(browser, "setting", "clip")
    assert texts(browser, "#tables td") == ["ppo.clip", "1", "1"]


def test_tokens_are_coloured_by_their_numbers(browser, tmp_path):
    folder = make_run(tmp_path / "ppo")
    row = {"step": 0, "prompt": "p", "completion": "ab</b>", "tokens": ["ab", "</b>"], "logps": [-5.0, -0.0]}
    row |= {"ref_logps": [-1.0, -0.0], "token_rewards": [-0.5, None]}  # a tool wrote the second token
    lines(folder / "samples.jsonl", [row, {"step": 0, "prompt": "q", "completion": "c"}])
    show(browser, tmp_path, folder)
    assert texts(browser, "#paint option") == ["none", "log-prob", "KL to the reference", "reward"]
    choose(browser, "paint", "KL to the reference", "change")
    assert texts(browser, ".sample .answer .text span")[:2] == ["ab", "</b>"]
    program = (
        "return [...document.querySelectorAll('.answer .text span')].map((node) => [node.title, node.style.background])"
    )
    (title, cold), (_, none) = browser.execute_script(program)[:2]
    assert title == "logps -5\nref_logps -1\ntoken_rewards -0.5" and "--cold) 100%" in cold and " 0%" in none
    choose(browser, "paint", "reward", "change")
    (_, cold), (title, none) = browser.execute_script(program)[:2]
    assert title.endswith("token_rewards -") and "--cold) 25%" in cold and " 0%" in none


def test_texts_of_strangers_are_shown_as_texts(browser, tmp_path):
    folder = make_run(tmp_path / "<b>run")
    lines(folder / "samples.jsonl", [{"step": 0, "prompt": p, "completion": c} for p, c in STRANGE.items()])
    lines(folder / "metrics.jsonl", [{"step": k, "<img src=x onerror=document.title=1>": k} for k in range(3)])
    show(browser, tmp_path, folder)
    assert browser.title == "<b>run" and not browser.find_elements("css selector", "main img, main b")
    assert set(texts(browser, ".prompt")) == {text.replace("\ud800", "\ufffd") for text in STRANGE}
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_empty_and_broken_folders_are_shown(browser, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text("")
    show(browser, tmp_path, empty)
    assert texts(browser, "#charts") == ["No metric to show."] and texts(browser, "#found") == [
        "The runs have no samples."
    ]
    assert len(texts(browser, ".note")) == 4  # config.toml, log.txt, timings.jsonl, samples.jsonl
    (empty / "metrics.jsonl").write_text(json.dumps({"step": 0, "kl": 1.0}) + "\n")
    show(browser, tmp_path, empty)
    assert len(browser.find_elements("css selector", "#charts circle")) == 1


def test_the_page_fetches_nothing_and_refuses_to(browser, tmp_path):
    show(browser, tmp_path, make_run(tmp_path / "ppo"))
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    program = "fetch('http://127.0.0.1:1/').then(() => arguments[0]('sent'), () => arguments[0]('refused'))"
    assert browser.execute_async_script(program) == "refused"
    browser.get_log("browser")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_have_the_contrast_of_wcag_aa(browser, tmp_path, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    show(browser, tmp_path, make_run(tmp_path / "a/ppo", lr=1), make_run(tmp_path / "b/ppo", lr=2))
    choose(browser, "search", "answer")
    program = """
        const back = (e) => { const c = getComputedStyle(e).backgroundColor;
                              return c === "rgba(0, 0, 0, 0)" ? back(e.parentElement) : c; };
        return ["h1", ".sentence", "#charts h4", ".read", "#found", ".answer .text", ".sample .prompt", "mark", "nav a"]
            .map((name) => document.querySelector(name)).map((e) => [getComputedStyle(e).color, back(e)]);
    """
    for colours in browser.execute_script(program):
        low, high = sorted(map(luminance, colours))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colours
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_picture_in_docs_can_be_drawn_again(browser, tmp_path):
    draw(tmp_path / "seeing.png", make_pipeline(tmp_path / "job"))
    assert (tmp_path / "seeing.png").stat().st_size > 10_000
