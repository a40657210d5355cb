"""One browser for each file of tests.

Skipped where there is no Chromium with its driver, unless ``GUIDEFOLD_BROWSER=required``.
"""

import os
from collections.abc import Iterator

import pytest
from browser.chromium import CHROMIUM, DRIVER, start
from selenium import webdriver


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        missing = "no Chromium with chromedriver (Debian: chromium, chromium-driver)"
        if os.environ.get("GUIDEFOLD_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()
