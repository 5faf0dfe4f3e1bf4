"""Samples go in by frame and come out by series."""

import numpy as np
import pytest
from instep_agent.wire import Dictionary
from instep_collector.errors import Refused
from instep_collector.hot_window import HotWindow

SERIES = (("gpu_power_watts", (("gpu", "0"),)), ("gpu_power_watts", (("gpu", "1"),)))


def window(ticks=4):
    made = HotWindow(ticks)
    made.learn(Dictionary(hash="h", series=SERIES))
    return made


def test_a_series_comes_back_oldest_first_and_bounded():
    made = window()
    for tick in range(6):
        made.write("n", "h", np.array([tick, 10.0 * tick]).tobytes(), at=float(tick))
    at, values = made.series("n", "gpu_power_watts", {"gpu": "1"})
    assert at.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert values.tolist() == [20.0, 30.0, 40.0, 50.0]
    assert made.latest("n") == {"gpu_power_watts{'gpu': '0'}": 5.0, "gpu_power_watts{'gpu': '1'}": 50.0}


def test_what_is_not_there_is_empty():
    at, values = window().series("n", "nothing", {})
    assert at.size == values.size == 0


def test_values_that_do_not_fit_their_dictionary_are_refused():
    made = window()
    with pytest.raises(Refused, match="need 16") as refused:
        made.check("h", b"12345678")
    assert refused.value.status == 400
    with pytest.raises(Refused, match="send it to /ingest/v1/dictionary") as refused:
        made.check("unknown", b"")
    assert refused.value.status == 409
