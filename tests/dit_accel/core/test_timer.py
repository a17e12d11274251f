"""The timer on CUDA, whose events are replaced by ones that a test lets pass."""

import pytest
import torch

from dit_accel.core.timer import Timer

CUDA = torch.device("cuda")


class Event:
    """An event that the device passes when `now` reaches it."""

    clock = 0
    now = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        Event.clock += 1
        self.at = Event.clock

    def query(self) -> bool:
        return self.at <= Event.now

    def synchronize(self) -> None:
        Event.now = max(Event.now, self.at)

    def elapsed_time(self, end: "Event") -> float:
        assert end.at <= Event.now, "the device has not passed this event yet"
        return 1e3 * (end.at - self.at)


@pytest.fixture(autouse=True)
def _fake_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "clock", 0)
    monkeypatch.setattr(Event, "now", 0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)


@pytest.mark.parametrize("lag", [0, 20, 10**9], ids=["in step", "behind", "stalled"])
def test_events_are_read_without_waiting_and_none_is_lost(lag: int) -> None:
    timer, most = Timer(), 0
    for _ in range(500):
        with timer("kmeans", CUDA), timer("selection", CUDA):
            pass
        Event.now = max(Event.now, Event.clock - lag)
        most = max(most, len(timer._events))
    assert most <= 2 + lag
    assert timer.seconds() == {"kmeans": 1500.0, "selection": 500.0}
    assert timer.seconds() == {"kmeans": 1500.0, "selection": 500.0}
