"""Other libraries' notes are kept away from users of the Python API and of the command line."""

import logging
import subprocess
import sys

import pytest
from terminal import ENVIRONMENT

from guidefold import VERBOSITIES, quiet_libraries
from guidefold.pipeline.loading import quiet_loading

OPEN = """
from guidefold import api
pipeline = api.open_pipeline("bundled")
print(type(pipeline).__name__)
"""


def test_importing_the_api_and_opening_a_pipeline_prints_nothing() -> None:
    environment = {n: v for n, v in ENVIRONMENT.items() if n not in VERBOSITIES}
    done = subprocess.run(
        [sys.executable, "-c", OPEN], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "StableDiffusionPipeline\n"
    assert done.stderr == ""


def test_a_verbosity_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VERBOSITIES[0], "info")
    monkeypatch.delenv(VERBOSITIES[1], raising=False)
    quiet_libraries()
    import os

    assert os.environ[VERBOSITIES[0]] == "info"
    assert os.environ[VERBOSITIES[1]] == "error"


def test_loading_is_quiet_and_leaves_the_level_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("diffusers")
    for wanted, within in (("error", logging.ERROR), ("info", logging.WARNING)):
        monkeypatch.setenv(VERBOSITIES[0], wanted)
        monkeypatch.setattr(logger, "level", logging.WARNING)
        with pytest.raises(ZeroDivisionError), quiet_loading():
            assert logger.level == within
            raise ZeroDivisionError
        assert logger.level == logging.WARNING
