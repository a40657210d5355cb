"""The picture page in a real browser: its sliders are moved, its pictures looked at."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.chromium import Browser, wait_for
from pages import HOSTILE, PROMPTS, begun, measured, previewed, recorded, trained, write
from PIL import ImageColor
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from guidefold.run.files import read_json
from guidefold.run.folder import RunFolder
from guidefold.show.charts import INKS
from guidefold.show.report import gather, render

RED, LIME, BLUE = (ImageColor.getrgb(name) for name in ("red", "lime", "blue"))
LONG = "a" * 300
LONG_NAME = "a" * 170  # with more a setting could not name a file


@pytest.fixture
def browser(driver: webdriver.Chrome) -> Iterator[Browser]:
    """A browser in which nothing may complain."""
    opened = Browser(driver)
    opened.complaints()  # those of the test before
    yield opened
    assert opened.complaints() == []
    loaded = opened.js("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def write_page(run: Path, prompts: tuple[str, ...] = PROMPTS, text: str = "") -> Path:
    measured(previewed(trained(recorded(begun(run, text))), prompts[:2]), prompts)
    results = read_json(run / "results.json")
    shares = results["categories"][prompts[0]]
    # Of prompts that are not shown; and a name that every JavaScript object knows.
    results["categories"]["constructor"] = shares
    write(run / "results.json", results)
    page = run / "report.html"
    page.write_text(render(gather(RunFolder(run))), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = (f"{HOSTILE} 0", f"{HOSTILE} 1", f"{HOSTILE} {LONG}")
    name = HOSTILE.replace("/", "|")
    return write_page(tmp_path_factory.mktemp("hostile") / name, prompts, f"{HOSTILE} {LONG_NAME}")


# Wiping


def test_arrow_keys_pull_the_other_picture_over_the_students(browser: Browser, page: Path):
    browser.open(page)
    stack = browser.one(".stack")
    assert browser.colours(stack, 0.01, 0.5, 0.99) == [BLUE, BLUE, BLUE]
    slider = browser.press(".wipe", *[Keys.ARROW_RIGHT] * 30)
    assert slider.get_property("value") == "30"
    assert slider.get_attribute("aria-valuetext") == "30% CFG teacher"
    assert browser.colours(stack, 0.01, 0.25, 0.35, 0.99) == [RED, RED, BLUE, BLUE]
    handle = browser.js("getComputedStyle(arguments[0], '::after').left", stack)
    assert float(handle[:-2]) == pytest.approx(0.3 * stack.rect["width"], abs=0.5)
    assert "70%" in browser.js("getComputedStyle(arguments[0]).clipPath", browser.one(".over"))
    browser.press(".wipe", Keys.ARROW_LEFT)
    assert slider.get_property("value") == "29"
    browser.press(".wipe", Keys.END)
    assert browser.colours(stack, 0.02, 0.5, 0.95) == [RED, RED, RED]
    browser.press(".wipe", Keys.HOME)
    assert browser.colours(stack, 0.01, 0.5, 0.99) == [BLUE, BLUE, BLUE]
    others = browser.driver.find_elements(By.CSS_SELECTOR, ".wipe")[1:]
    assert [other.get_property("value") for other in others] == ["0", "0"]


def test_dragging_across_a_picture_wipes_to_where_the_pointer_is(browser: Browser, page: Path):
    browser.open(page)
    stack, slider = browser.one(".stack"), browser.one(".wipe")
    width = stack.rect["width"]

    def drag(*places: float) -> ActionChains:
        """Press at the first part of the width, measured from the middle, and pull on."""
        actions = ActionChains(browser.driver, duration=20)
        for number, place in enumerate(places):
            actions.move_to_element_with_offset(stack, round(place * width), 0)
            if number == 0:
                actions.click_and_hold()
        return actions.release()

    drag(-0.25, 0.25).perform()
    assert int(slider.get_property("value")) == pytest.approx(75, abs=1)
    assert browser.colours(stack, 0.1, 0.7, 0.8) == [RED, RED, BLUE]
    actions = drag(0, 1)  # beyond the edge
    actions.move_to_element_with_offset(stack, 0, 0).perform()  # not held any more
    assert slider.get_property("value") == "100"


def test_the_choice_decides_which_picture_is_wiped_over(browser: Browser, page: Path):
    browser.open(page)
    browser.press(".wipe", Keys.END)
    stack = browser.one(".stack")
    assert browser.colours(stack, 0.5) == [RED]
    browser.press('input[name="against"]:checked', Keys.ARROW_RIGHT)
    assert browser.js("document.querySelector('[name=against]:checked').value") == "unguided"
    assert browser.colours(stack, 0.5) == [LIME]
    assert browser.one(".wipe").get_attribute("aria-valuetext") == "100% unguided"
    browser.one('input[value="teacher"]').click()
    assert browser.colours(stack, 0.5) == [RED]


def test_one_slider_wipes_all(browser: Browser, page: Path):
    browser.open(page)
    browser.press("#all", Keys.END)
    assert [s.get_property("value") for s in browser.visible(".wipe")] == ["100"] * 3
    for stack in browser.visible(".stack"):
        assert browser.colours(stack, 0.5) == [RED]


# Enlarging


def large(browser: Browser) -> tuple[str, list[str]]:
    """The words of the picture in the open dialog, and its colours."""
    (picture,) = browser.visible("#enlarged img")
    return picture.get_attribute("alt"), browser.colours(picture, 0.5)


def test_enter_enlarges_a_picture_and_arrows_go_on_to_its_neighbours(browser: Browser, page: Path):
    browser.open(page)
    button = browser.press("#cards .zoom", Keys.ENTER)
    assert large(browser) == (f"CFG teacher: {PROMPTS[0]}", [RED])
    assert browser.visible("#enlarged img")[0].size["width"] > 500
    keyboard = ActionChains(browser.driver)
    keyboard.send_keys(Keys.ARROW_RIGHT).perform()
    assert large(browser) == (f"unguided: {PROMPTS[0]}", [LIME])
    ActionChains(browser.driver).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT).perform()
    assert large(browser) == (f"student: {PROMPTS[0]}", [BLUE])
    ActionChains(browser.driver).send_keys(Keys.ESCAPE).perform()
    assert browser.visible("#enlarged") == []
    assert browser.driver.switch_to.active_element == button


def test_a_click_enlarges_each_picture_the_students_too_and_a_drag_does_not(
    browser: Browser, page: Path
):
    browser.open(page)
    for number, colour in enumerate((RED, LIME, BLUE)):
        browser.visible("#cards img")[number].click()
        assert large(browser)[1] == [colour]
        browser.one("#enlarged img").click()
        assert browser.visible("#enlarged") == []
    stack = browser.one(".stack")
    drag = ActionChains(browser.driver, duration=20).move_to_element(stack).click_and_hold()
    drag.move_by_offset(30, 0).release().perform()
    assert browser.visible("#enlarged") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_pictures_drawn_large_are_shown_at_256_pixels_or_more(
    browser: Browser, tmp_path: Path, width: int
):
    run = measured(previewed(begun(tmp_path / "run"), size=600), size=600)
    page = run / "report.html"
    page.write_text(render(gather(RunFolder(run))), encoding="utf-8")
    browser.open(page, width)
    assert {p.size["width"] >= 256 for p in browser.visible("article img:not(.over)")} == {True}
    root = browser.one("html")
    assert root.get_property("scrollWidth") <= width


# Filtering


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ("every prompt", PROMPTS),
        (PROMPTS[2], PROMPTS[2:]),
        ("where the student is wrong", PROMPTS[1:2]),
        ("where student and teacher differ", PROMPTS[1:2]),
        ("constructor", ()),
    ],
)
def test_a_filter_leaves_what_it_names_and_says_when_nothing_is_left(
    browser: Browser, page: Path, choice: str, left: tuple[str, ...]
):
    browser.open(page)
    select = Select(browser.one("#filter"))
    select.select_by_visible_text(choice)
    assert tuple(card.text for card in browser.visible("#cards h3")) == left
    assert bool(browser.visible("#none")) == (not left)
    select.select_by_visible_text("every prompt")
    assert len(browser.visible("#cards .card")) == 3
    assert not browser.visible("#none")


# Slides


def slide(browser: Browser, of: str) -> tuple[str, list[str], list[tuple[int, ...]]]:
    """What a slider shows: its heading, the pictures' words, their colours."""
    (heading,) = browser.visible(f'.slide[data-of="{of}"] > h3')
    pictures = browser.visible(f'.slide[data-of="{of}"] img')
    words = [picture.get_attribute("alt").split(":")[0] for picture in pictures]
    return heading.text, words, [browser.colours(picture, 0.5)[0] for picture in pictures]


def test_the_dial_shows_each_strength_beside_the_guidance_it_stands_for(
    browser: Browser, page: Path
):
    browser.open(page)
    student, teacher = "student at strength", "CFG teacher at guidance"
    assert slide(browser, "dial") == (
        "strength 1 = guidance 5",
        [f"{student} 1", f"{teacher} 5"] * 2,
        [(0, 160, 200), (200, 160, 0)] * 2,
    )
    slider = browser.press("#dial-slider", *[Keys.ARROW_LEFT] * 2)
    assert slider.get_attribute("aria-valuetext") == "strength 0.5 = guidance 3"
    assert slide(browser, "dial") == (
        "strength 0.5 = guidance 3",
        [f"{student} 0.5", f"{teacher} 3"] * 2,
        [(0, 80, 200), (200, 80, 0)] * 2,
    )
    browser.press("#dial-slider", Keys.HOME)
    assert slide(browser, "dial")[:2] == (
        "strength 0 = guidance 1",
        [f"{student} 0", "unguided at guidance 1"] * 2,
    )
    browser.press("#dial-slider", Keys.END)
    assert slide(browser, "dial")[0] == "strength 1.25 = guidance 6"


def test_the_previews_show_the_student_step_by_step(browser: Browser, page: Path):
    browser.open(page)
    kinds = ["CFG teacher", "unguided"]
    for keys, step, colour in (
        ([], 40, (0, 80, 200)),
        ([Keys.ARROW_LEFT], 20, (0, 40, 200)),
        ([Keys.HOME], 0, (0, 0, 200)),
    ):
        browser.press("#previews-slider", *keys)
        assert slide(browser, "previews") == (
            f"step {step}",
            [*kinds, f"student at step {step}"] * 2,
            [RED, LIME, colour] * 2,
        )


# Readers


def test_the_page_follows_the_readers_light_or_dark(browser: Browser, page: Path):
    seen = {}
    for theme in ("light", "dark"):
        browser.open(page, prefers_color_scheme=theme)
        ground = browser.js("getComputedStyle(document.documentElement).backgroundColor")
        chart = browser.js("document.querySelector('.chart img').currentSrc")
        named = {
            "light": browser.one(".chart img").get_attribute("src"),
            "dark": browser.one(".chart source").get_attribute("srcset"),
        }
        assert chart == named[theme]
        assert INKS[theme] in base64.b64decode(chart.split(",")[1]).decode()
        assert browser.js("document.querySelector('.chart img').naturalWidth") > 0
        seen[theme] = ground
    assert seen == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 28)"}


@pytest.mark.parametrize("width", [320, 390, 1180])
@pytest.mark.parametrize("which", ["page", "hostile"])
def test_nothing_sticks_out_sideways(
    browser: Browser, request: pytest.FixtureRequest, width: int, which: str
):
    browser.open(request.getfixturevalue(which), width)
    browser.js("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    root = browser.one("html")
    assert root.get_property("scrollWidth") <= root.get_property("clientWidth") <= width


def test_the_names_of_rows_stay_readable_on_a_phone(browser: Browser, page: Path):
    browser.open(page, 390)
    names = browser.visible("section[aria-labelledby=table] tbody th")
    assert names[0].text == "CFG teacher"
    assert all(name.size["width"] >= 80 for name in names), "a name is not a column of letters"


def test_every_control_is_reached_by_tab_in_the_order_of_reading(browser: Browser, page: Path):
    browser.open(page)
    browser.js("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    # of radio buttons, Tab reaches the one that is chosen
    expected = browser.visible(
        "a, select, summary, pre, .scroll[tabindex], input:not([type=radio]), input:checked, .zoom"
    )
    pictures = 9 + 4 + 6
    others = 7 + 1 + 1 + 1 + 3 + 2 + 3 * 2 + 1 + 3 + 1  # links, ..., table, settings
    assert len(expected) == pictures + others
    for element in expected:
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        assert browser.driver.switch_to.active_element == element
        assert browser.js("getComputedStyle(arguments[0]).outlineStyle", element) == "solid"


def test_links_lead_to_their_sections(browser: Browser, page: Path):
    browser.open(page)
    browser.press('a[href="#dial"]', Keys.ENTER)
    wait_for(
        lambda: abs(browser.js("document.getElementById('dial').getBoundingClientRect().top")) < 50
    )


def test_without_its_script_every_picture_is_shown_and_no_dead_control(
    browser: Browser, page: Path
):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(page)
        assert browser.visible("input, select") == []
        assert len(browser.visible("noscript p")) == 1
        assert len(browser.visible(".slide h3")) == 6 + 3
        assert len(browser.visible("#cards img")) == 9
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_on_paper_there_are_no_controls(browser: Browser, page: Path):
    browser.open(page)
    assert browser.visible("input, select, nav")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert browser.visible("input, select, nav") == []
        assert len(browser.visible("#cards img:not(.over)")) == 9
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


# Strangers' words


def test_hostile_words_are_shown_and_run_nothing(browser: Browser, hostile: Path):
    browser.open(hostile)
    assert browser.js("'__hit' in window") is False
    assert browser.js("document.scripts.length") == 1
    assert (
        browser.js("[...document.images].filter((image) => !image.src.startsWith('data:'))") == []
    )
    assert browser.one("h1").text == HOSTILE.replace("/", "|")
    assert browser.visible("#cards h3")[0].text == f"{HOSTILE} 0"
    Select(browser.one("#filter")).select_by_visible_text(f"{HOSTILE} 1")
    assert [card.text for card in browser.visible("#cards h3")] == [f"{HOSTILE} 1"]
    browser.press("#dial-slider", Keys.HOME)
    browser.press("#previews-slider", Keys.HOME)
    assert browser.js("'__hit' in window") is False


def test_a_handler_in_the_page_would_be_refused_and_heard(
    browser: Browser, page: Path, tmp_path: Path
):
    """So that silence elsewhere means something."""
    text = page.read_text(encoding="utf-8")
    spoilt = tmp_path / "report.html"
    inserted = (
        '<main><img src="data:," alt="" onerror="window.__hit = 1"><script>window.__hit=1</script>'
    )
    spoilt.write_text(text.replace("<main>", inserted), encoding="utf-8")
    browser.open(spoilt)
    assert browser.js("'__hit' in window") is False
    refused = [line for line in browser.complaints() if "Content Security Policy" in line]
    assert len(refused) == 2
