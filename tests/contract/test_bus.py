"""What a bus must do: wake across threads and processes; forget the dead; lose nothing that matters."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lapilli.adapters.buses.local import LocalBus
from lapilli.ports.bus import Bus
from tests.service import until

# a process that says "ready", then answers every wake of its topic on standard output
PEER = """
import sys
from lapilli.adapters.buses.local import LocalBus
bus = LocalBus(sys.argv[1])
listening = bus.subscribe(sys.argv[2])
print("ready", flush=True)
while True:
    if listening.wait(60):
        print("woken", flush=True)
        bus.wake("answer")
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A path longer than the name of a UNIX socket may be."""
    return tmp_path / ("deep" * 20) / ("deeper" * 10) / "bus"


@pytest.fixture
def make(directory: Path) -> Iterator[Callable[[], Bus]]:
    made: list[Bus] = []

    def new() -> Bus:
        made.append(LocalBus(str(directory)))
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture
def peer(directory: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(topic: str = "work") -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", PEER, str(directory), topic], stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for each in started:
        each.kill()
        each.wait()


def test_wakes_threads_of_the_same_process(make: Callable[[], Bus]) -> None:
    bus = make()
    woken: list[bool] = []
    listening = [bus.subscribe("work") for _ in range(3)]
    threads = [threading.Thread(target=lambda each=each: woken.append(each.wait(5))) for each in listening]
    for thread in threads:
        thread.start()
    bus.wake("work")
    for thread in threads:
        thread.join()
    assert woken == [True] * 3


def test_wakes_only_who_asked(make: Callable[[], Bus]) -> None:
    bus, other = make(), make()
    mine, theirs = bus.subscribe("a", "b"), other.subscribe("c")
    for topic, heard in (("a", True), ("b", True), ("c", False), ("ab", False)):
        other.wake(topic)
        assert mine.wait(1 if heard else 0.1) is heard, topic
    assert theirs.wait(1)
    bus.wake("a")
    assert not theirs.wait(0.1)


def test_a_wake_before_the_wait_counts_once(make: Callable[[], Bus]) -> None:
    bus = make()
    listening = bus.subscribe("work")
    bus.wake("work")
    bus.wake("work")
    assert listening.wait(0)
    assert not listening.wait(0.05)


def test_one_subscriber_can_be_woken_alone(make: Callable[[], Bus]) -> None:
    bus = make()
    first, second = bus.subscribe("work"), bus.subscribe("work")
    first.notify()
    assert first.wait(1)
    assert not second.wait(0.05)


def test_time_runs_out(make: Callable[[], Bus]) -> None:
    listening = make().subscribe("work")
    started = time.monotonic()
    assert not listening.wait(0.2)
    assert 0.15 < time.monotonic() - started < 2


def test_closed_subscription_hears_nothing(make: Callable[[], Bus]) -> None:
    bus = make()
    gone, stays = bus.subscribe("work"), bus.subscribe("work")
    gone.close()
    gone.close()
    bus.wake("work")
    assert stays.wait(1)
    assert not gone.wait(0.05)


def test_wakes_another_process_and_is_woken_by_it(make: Callable[[], Bus], peer: Start) -> None:
    bus = make()
    listening = bus.subscribe("answer")
    children = [peer(), peer(), peer("other")]
    bus.wake("work")
    for child in children[:2]:
        assert child.stdout is not None
        assert child.stdout.readline() == "woken\n"
    assert listening.wait(5)
    started = time.monotonic()
    bus.wake("other")
    assert listening.wait(5)
    assert time.monotonic() - started < 0.5, "it was not a wake but a sweep that came"


def test_a_peer_that_comes_in_the_same_tick_is_found(make: Callable[[], Bus]) -> None:
    """Files' times are coarse: whoever looked before may not take the directory for unchanged."""
    first = make()
    for _ in range(50):
        late = make()
        listening = late.subscribe("work")
        first.wake("work")
        assert listening.wait(1)
        late.close()


def test_sockets_of_the_dead_are_removed(make: Callable[[], Bus], peer: Start, directory: Path) -> None:
    bus = make()
    alive, dead = peer(), peer()
    assert len(os.listdir(directory)) == 3
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    bus.wake("work")
    until(lambda: len(os.listdir(directory)) == 2)
    bus.wake("work")  # and it goes on for the others
    assert alive.stdout is not None
    assert alive.stdout.readline() == "woken\n"


def test_closing_removes_the_socket(directory: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    bus = LocalBus(str(directory))
    assert len(os.listdir(directory)) == 1
    bus.close()
    assert os.listdir(directory) == []
    until(lambda: set(os.listdir("/proc/self/fd")) <= before)
    bus.wake("work")  # never raises


def test_a_lost_wake_is_harmless(make: Callable[[], Bus], peer: Start, directory: Path) -> None:
    """A full queue, a missing directory, nobody there: `wake` never raises and never blocks."""
    bus = make()
    bus.wake("nobody")
    child = peer()
    child.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    for _ in range(2000):
        bus.wake("work")
    assert time.monotonic() - started < 5
    child.send_signal(signal.SIGCONT)
    assert child.stdout is not None
    assert child.stdout.readline() == "woken\n"
    shutil.rmtree(directory)
    bus.wake("work")


def test_many_at_once(make: Callable[[], Bus]) -> None:
    """No wake that follows a subscription is missed, with many threads on two buses."""
    buses = [make(), make()]
    missed = []

    def ask(number: int) -> None:
        mine, other = buses[number % 2], buses[(number + 1) % 2]
        for turn in range(40):
            topic = f"operation:{number}-{turn}"
            listening = mine.subscribe(topic)
            other.wake(topic)
            if not listening.wait(2):
                missed.append(topic)
            listening.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not missed
