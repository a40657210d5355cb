"""The page of ``guidefold compare`` in a real browser: somebody types, draws, wipes and stops."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from browser.chromium import Browser, wait_for
from pages import HOSTILE
from painter import Painter, make_session, working
from PIL import ImageColor
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from guidefold.ground.errors import InputError
from guidefold.show.server import serving

RED, LIME, BLUE = (ImageColor.getrgb(name) for name in ("red", "lime", "blue"))


class Page(Browser):
    """The page in a browser, and what draws behind it."""

    def __init__(self, driver: webdriver.Chrome, live: Painter, address: str) -> None:
        super().__init__(driver)
        self.live, self.address = live, address

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def write(self, prompt: str, seed: int = 0) -> None:
        self.js("(arguments[0].value = arguments[1])", self.one("#prompt"), prompt)
        self.js("(arguments[0].value = arguments[1])", self.one("#seed"), seed)

    def wait_for(self, progress: str) -> None:
        wait_for(lambda: self.text("#progress") == progress)

    def draw(self) -> None:
        self.one("#draw").click()
        wait_for(lambda: self.one("#draw").is_enabled())
        assert self.text("#progress") == "Drawn."

    def caption(self, kind: str) -> str:
        found: str = self.js(f"document.querySelector('[data-kind={kind}]').textContent")
        return found

    def figures(self) -> dict[str, tuple[str, str]]:
        """By kind, what stands beside each picture: its text for those who do not see it, and its
        caption.
        """
        found = {}
        for figure in self.visible("figure"):
            (picture, *_) = figure.find_elements("css selector", "img")
            caption = figure.find_element("css selector", "figcaption").text
            found[figure.get_attribute("data-kind")] = (picture.get_attribute("alt"), caption)
        return found


def stand(driver: webdriver.Chrome, live: Painter) -> Iterator[Page]:
    with working(live), serving(live) as address:
        page = Page(driver, live, address)
        page.complaints()  # those of the test before
        page.open(address)
        yield page
        live.gate.set()
        page.driver.get("about:blank")


@pytest.fixture
def spoken(driver: webdriver.Chrome) -> Iterator[Page]:
    """A page whose console may hold something."""
    yield from stand(driver, Painter())


@pytest.fixture
def page(spoken: Page) -> Iterator[Page]:
    """A page of which nothing may complain."""
    yield spoken
    assert spoken.complaints() == []
    loaded = spoken.js("performance.getEntriesByType('resource').map((entry) => entry.name)")
    home = spoken.address.split("?")[0]
    foreign = [name for name in loaded if not name.startswith((home, f"blob:{home}", "data:"))]
    assert foreign == []
    assert not [name for name in loaded if "token" in name]


# Drawing


def test_a_prompt_is_typed_the_dial_set_and_all_three_are_drawn(page: Page) -> None:
    page.one("#prompt").clear()
    page.one("#prompt").send_keys("a small blue dog")
    page.press("#seed", Keys.ARROW_UP, Keys.ARROW_UP)
    dial = page.press("#dial", *[Keys.ARROW_LEFT] * 10)
    assert page.text("#stands") == "strength 0.5 = guidance 3"
    assert dial.get_attribute("aria-valuetext") == "strength 0.5 = guidance 3"
    assert page.live.painted == [], "nothing is drawn before somebody asks"
    page.draw()
    assert page.text("#title") == "a small blue dog (seed 2)"
    assert page.figures() == {
        "student": (
            "student: a small blue dog",
            "student\nstrength 0.5, 4 passes, 0.250 s fused, 0.250 s loaded",
        ),
        "teacher": ("CFG teacher: a small blue dog", "CFG teacher\nguidance 3, 8 passes, 0.250 s"),
        "unguided": ("unguided: a small blue dog", "unguided\nguidance 1, 4 passes, 0.250 s"),
    }
    asked = {(request.prompt.text, request.seed) for request in page.live.painted}
    assert asked == {("a small blue dog", 2)}
    for kind, colour in (("student", BLUE), ("teacher", RED), ("unguided", LIME)):
        (picture,) = page.visible(f'[data-kind="{kind}"] img:not(.over)')
        assert page.colours(picture, 0.5) == [colour]


def test_enter_draws_and_shift_enter_begins_a_line(page: Page) -> None:
    page.press("#prompt", Keys.CONTROL + "a")
    page.one("#prompt").send_keys("a cat", Keys.SHIFT + Keys.ENTER + Keys.NULL, "asleep")
    assert page.live.painted == []
    page.one("#prompt").send_keys(Keys.ENTER)
    wait_for(lambda: len(page.live.painted) == 3)
    assert page.live.painted[0].prompt.text == "a cat\nasleep"


def test_the_dial_draws_again_by_itself_where_that_is_quick(page: Page) -> None:
    page.draw()
    page.press("#dial", Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    wait_for(lambda: "strength 0.9," in page.caption("student"))
    wait_for(lambda: "guidance 4.6," in page.caption("teacher"))
    page.wait_for("Drawn.")
    unguided = [
        request
        for request in page.live.painted
        if request.strength is None and request.guidance == 1
    ]
    assert len(unguided) == 1, "what the dial does not change stands"


def test_another_seed_is_another(page: Page) -> None:
    page.one("#another").click()
    seed = int(page.one("#seed").get_property("value"))
    page.draw()
    assert seed != 0
    assert {request.seed for request in page.live.painted} == {seed}


# Wiping


def test_the_wipe_pulls_the_chosen_picture_over_the_students(page: Page) -> None:
    page.draw()
    stack = page.one(".stack")
    assert page.colours(stack, 0.02, 0.5, 0.98) == [BLUE] * 3
    page.press("#wipe", *[Keys.ARROW_RIGHT] * 30)
    assert page.one("#wipe").get_attribute("aria-valuetext") == "30% CFG teacher"
    assert page.colours(stack, 0.02, 0.25, 0.35, 0.98) == [RED, RED, BLUE, BLUE]
    page.press('[name="against"]:checked', Keys.ARROW_RIGHT)
    assert page.one("#wipe").get_attribute("aria-valuetext") == "30% unguided"
    assert page.colours(stack, 0.02, 0.25, 0.35, 0.98) == [LIME, LIME, BLUE, BLUE]


def test_dragging_across_the_picture_wipes_and_the_wipe_stays_for_the_next_one(page: Page) -> None:
    page.draw()
    stack = page.one(".stack")
    page.js("arguments[0].scrollIntoView({block: 'center'})", stack)
    drag = ActionChains(page.driver, duration=20).move_to_element_with_offset(stack, -60, 0)
    drag.click_and_hold().move_to_element_with_offset(stack, 0, 0).release().perform()
    assert int(page.one("#wipe").get_property("value")) == pytest.approx(50, abs=1)
    page.write("another", seed=5)
    page.draw()
    assert page.colours(stack, 0.4, 0.6) == [RED, BLUE]


# Waiting


def test_steps_are_counted_and_stop_ends_the_drawing(page: Page) -> None:
    page.live.gate.clear()
    page.one("#draw").click()
    page.wait_for("Drawing, step 0 of 12")
    assert not page.one("#draw").is_enabled()
    assert page.visible("#steps")
    page.one("#stop").click()
    page.live.gate.set()
    page.wait_for("Stopped.")
    assert page.live.painted == []
    assert not page.one("#stop").is_enabled()
    assert not page.visible("#steps")
    page.draw()


def test_what_is_old_is_dimmed_and_not_wiped_until_the_new_one_is_there(page: Page) -> None:
    page.draw()
    page.press("#wipe", Keys.END)
    page.live.gate.clear()
    page.write("another", seed=5)
    page.one("#draw").click()
    page.wait_for("Drawing, step 0 of 12")
    assert len(page.visible("figure.waiting")) == 3
    assert not page.one("#wipe").is_enabled()
    assert not page.visible(".over")
    page.live.gate.set()
    page.wait_for("Drawn.")
    assert page.visible("figure.waiting") == []
    assert page.colours(page.one(".stack"), 0.5) == [RED]


# What goes wrong


def test_what_goes_wrong_is_said_in_words(page: Page) -> None:
    page.live.fault = InputError("prompt: <b>unheard of</b>", "Say something else.")
    page.one("#draw").click()
    wait_for(lambda: page.text("#fault") == "prompt: <b>unheard of</b>\nSay something else.")
    page.live.fault = None
    page.draw()
    assert not page.visible("#fault")


def test_a_seed_that_is_none_is_not_sent(page: Page) -> None:
    page.write("a cat", seed=-1)
    page.one("#draw").click()
    assert page.js("document.activeElement.id") == "seed"
    assert page.text("#progress") == ""


def test_two_pages_do_not_draw_at_once(spoken: Page) -> None:
    from guidefold.show.live import Comparison

    spoken.live.gate.clear()
    spoken.live.begin(Comparison(prompt="somebody else's", seed=0, strength=1))
    spoken.one("#draw").click()
    wait_for(lambda: "Another drawing is under way" in spoken.text("#fault"))
    assert all("429" in line for line in spoken.complaints())


def test_when_the_command_has_ended_the_page_says_so(driver: webdriver.Chrome) -> None:
    live = Painter()
    with serving(live) as address:
        page = Page(driver, live, address)
        page.open(address)
    page.one("#draw").click()
    wait_for(lambda: "'guidefold compare' has ended" in page.text("#fault"))
    page.complaints()


def test_without_the_token_there_is_no_page(spoken: Page) -> None:
    spoken.open(spoken.address.split("?")[0])
    assert "Open the address that 'guidefold compare' printed" in spoken.text("body")
    assert spoken.visible("form") == []


# Strangers


def test_hostile_words_are_shown_and_run_nothing(driver: webdriver.Chrome) -> None:
    live = Painter(make_session(run=HOSTILE.replace("/", "|"), prompt=HOSTILE))
    for page in stand(driver, live):
        assert page.text("h1") == HOSTILE.replace("/", "|")
        assert page.one("#prompt").get_property("value") == HOSTILE
        page.draw()
        assert page.text("#title") == f"{HOSTILE} (seed 0)"
        assert page.figures()["student"][0] == f"student: {HOSTILE}"
        assert page.js("'__hit' in window") is False
        assert page.js("document.scripts.length") == 1
        assert page.complaints() == []


STRANGER = """(async (home, token) => {
  const asked = [], wish = '{"prompt": "a", "seed": 0, "strength": 1}';
  for (const [path, options] of [
    ["", {}], [`?token=${token}`, {}], ["drawings", {method: "POST", body: "{}"}],
    ["drawings", {method: "POST", headers: {"X-Guidefold-Token": token}, body: wish}],
    ["drawings", {method: "POST", mode: "no-cors", body: wish}],
  ]) {
    try { asked.push((await fetch(home + path, options)).status); } catch { asked.push("refused"); }
  }
  return asked;
})(arguments[0], arguments[1])
"""


class Elsewhere(BaseHTTPRequestHandler):
    """Somebody else's page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_page_from_elsewhere_learns_nothing_even_with_the_token(spoken: Page) -> None:
    """Another port of the same machine: the same site, but another origin."""
    home, _, token = spoken.address.partition("?token=")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        spoken.open(f"http://127.0.0.1:{server.server_port}/")
        assert spoken.js(STRANGER, home, token) == ["refused"] * 5
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert spoken.live.painted == []
    assert spoken.complaints() != []


# Readers


@pytest.mark.parametrize("width", [320, 390, 1180])
def test_nothing_sticks_out_sideways(page: Page, width: int) -> None:
    page.open(page.address, width)
    page.write("a" * 300)
    page.draw()
    root = page.one("html")
    assert root.get_property("scrollWidth") <= root.get_property("clientWidth") <= width
    (student,) = page.visible('[data-kind="student"] .stack')
    assert student.size["width"] > 200


def test_the_page_follows_the_readers_light_or_dark(page: Page) -> None:
    seen = {}
    for theme in ("light", "dark"):
        page.open(page.address, prefers_color_scheme=theme)
        seen[theme] = page.js("getComputedStyle(document.documentElement).backgroundColor")
    assert seen == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 28)"}


def test_every_control_has_a_name_and_is_reached_by_tab_in_the_order_of_reading(
    page: Page,
) -> None:
    page.draw()
    found = page.visible("textarea, button, input:not([type=radio]), input:checked")
    expected = [element for element in found if element.is_enabled()]
    assert len(expected) == 7  # prompt, dial, seed, another, draw, against, wipe
    page.js("arguments[0].focus()", expected[0])
    for number, element in enumerate(expected):
        if number:
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
        active: Any = page.driver.switch_to.active_element
        assert active == element
        assert active.accessible_name
        assert page.js("getComputedStyle(arguments[0]).outlineStyle", element) == "solid"


def test_nothing_of_the_page_is_kept_by_the_browser(page: Page) -> None:
    page.draw()
    assert page.js("document.cookie") == ""
    assert page.js("localStorage.length + sessionStorage.length") == 0
    assert page.js("document.referrer") == ""
