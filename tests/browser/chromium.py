"""A real browser, asked through its own protocol."""

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
)


def start(profile: Path) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    for argument in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox does not work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With paths to both, selenium has no reason to look for them on the network.
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class Browser:
    """A page in Chromium."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path | str, width: int = 1180, **media: str) -> None:
        """Show a file or an address; ``prefers_color_scheme="dark"`` and the like are what the
        reader prefers.
        """
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = {"prefers-color-scheme": "light", "prefers-reduced-motion": "reduce"}
        features |= {name.replace("_", "-"): value for name, value in media.items()}
        given = [{"name": name, "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": given})
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def visible(self, selector: str) -> list[WebElement]:
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return [element for element in found if element.is_displayed()]

    def press(self, selector: str, *keys: str) -> WebElement:
        """Press keys while an element has the focus."""
        element = self.one(selector)
        self.js("arguments[0].focus()", element)
        self.driver.switch_to.active_element.send_keys(*keys)
        return element

    def picture(self, element: WebElement) -> Image.Image:
        """An element as it is seen."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        return Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")

    def colours(self, element: WebElement, *places: float) -> list[tuple[int, ...]]:
        """What is seen at these parts of an element's width."""
        seen = self.picture(element)
        return [seen.getpixel((int(place * seen.width), seen.height // 2)) for place in places]

    def complaints(self) -> list[str]:
        """What the console holds: faults of the script, and what the content policy refused."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)
