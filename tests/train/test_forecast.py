"""What training is going to take, by its first steps."""

import pytest
from work import Work

from guidefold.train.forecast import STEPS, Forecast


def test_the_forecast_comes_once_and_leaves_the_first_step_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = Work()
    work.train()
    forecast = Forecast(1000, work.adapter, work.optimizer, keep=3)
    for seconds in (60.0, *[0.5] * 20):
        forecast.count(seconds)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("To take 1000 training steps: about 8 min 20 s, ")
    assert "peak memory so far" in line
    tensors = work.tensors()
    parameters = sum(t.nbytes for n, t in tensors.items() if "exp_avg" not in n and "step" not in n)
    assert forecast.disk_bytes == pytest.approx(3 * 3 * parameters, rel=0.1)


def test_where_few_steps_are_left_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    work = Work()
    forecast = Forecast(STEPS, work.adapter, work.optimizer, keep=1)
    for _ in range(STEPS):
        forecast.count(1.0)
    assert capsys.readouterr().out == ""
