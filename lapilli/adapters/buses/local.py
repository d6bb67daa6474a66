"""A bus for the processes of one host: a datagram socket each, in one directory.

A topic is sent to every socket; receivers pick what they subscribed to. Nothing is kept: who is not there
does not hear it, and finds the work at its next sweep.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable

_TICK = 100_000_000  # nanoseconds, with room to spare


class WaitingSubscription:
    """See `ports.bus.Subscription`. `longest` bounds every sleep, for a bus that does not hear everything."""

    def __init__(self, all_of_them: Subscribers, topics: tuple[str, ...], longest: float | None) -> None:
        self.topics = topics
        self._all = all_of_them
        self._longest = longest
        self._event = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Sleep until woken, or until the time is over."""
        woken = self._event.wait(seconds if self._longest is None else min(seconds, self._longest))
        self._event.clear()
        return woken

    def notify(self) -> None:
        """Wake the waiting thread."""
        self._event.set()

    def close(self) -> None:
        """End it."""
        self._all.forget(self)


class Subscribers:
    """Who listens in this process, by topic: every bus has it."""

    def __init__(self, longest: float | None = None) -> None:
        self._longest = longest
        self._lock = threading.Lock()
        self._by_topic: dict[str, set[WaitingSubscription]] = {}

    def add(self, topics: Iterable[str]) -> WaitingSubscription:
        """A new subscription."""
        subscription = WaitingSubscription(self, tuple(topics), self._longest)
        with self._lock:
            for topic in subscription.topics:
                self._by_topic.setdefault(topic, set()).add(subscription)
        return subscription

    def forget(self, subscription: WaitingSubscription) -> None:
        """Take a subscription out."""
        with self._lock:
            for topic in subscription.topics:
                members = self._by_topic.get(topic, set())
                members.discard(subscription)
                if not members:
                    self._by_topic.pop(topic, None)

    def deliver(self, topic: str) -> None:
        """Wake who listens to a topic."""
        with self._lock:
            members = list(self._by_topic.get(topic, ()))
        for member in members:
            member.notify()

    def deliver_all(self) -> None:
        """Wake everybody."""
        with self._lock:
            members = {each for several in self._by_topic.values() for each in several}
        for member in members:
            member.notify()


class LocalBus:
    """See `ports.bus.Bus`."""

    def __init__(self, directory: str, *, longest: float | None = None) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # relative to a descriptor, since the path of a UNIX socket may have 107 characters only
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._subscribers = Subscribers(longest)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path(self._name))
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._peers: list[str] = []
        self._seen = -1
        threading.Thread(target=self._receive, name="bus", daemon=True).start()

    def _path(self, name: str) -> str:
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def wake(self, topic: str) -> None:
        """Wake every subscriber of a topic, here and in the other processes."""
        self._subscribers.deliver(topic)
        data = topic.encode()
        for peer in self._others():
            try:
                self._sender.sendto(data, self._path(peer))
            except (ConnectionRefusedError, FileNotFoundError):
                with contextlib.suppress(OSError):
                    os.unlink(self._path(peer))  # its process is gone
            except OSError:
                pass  # a full queue: that process has wakes enough

    def _others(self) -> list[str]:
        try:
            changed = os.stat(self._directory).st_mtime_ns
            if changed != self._seen:
                self._peers = [name for name in os.listdir(self._directory) if name != self._name]
                # files' times tick every few milliseconds: another may still appear in this tick
                settled = time.time_ns() - changed > _TICK
                self._seen = changed if settled else -1
        except OSError:
            return []  # somebody has removed the directory: nobody can be reached
        return self._peers

    def subscribe(self, *topics: str) -> WaitingSubscription:
        """Begin to listen."""
        return self._subscribers.add(topics)

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(1024)
            except OSError:
                return
            self._subscribers.deliver(data.decode(errors="replace"))

    def close(self) -> None:
        """Stop listening and remove the socket; a second time does nothing."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(self._path(self._name))
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._sender.close()
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
