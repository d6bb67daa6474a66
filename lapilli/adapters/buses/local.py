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

_TICK = 100_000_000  # nanoseconds, with room to spare


class LocalSubscription:
    """See `ports.bus.Subscription`."""

    def __init__(self, bus: LocalBus, topics: tuple[str, ...]) -> None:
        self.topics = topics
        self._bus = bus
        self._event = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Sleep until woken, or until the time is over."""
        woken = self._event.wait(seconds)
        self._event.clear()
        return woken

    def notify(self) -> None:
        """Wake the waiting thread."""
        self._event.set()

    def close(self) -> None:
        """End it."""
        self._bus.forget(self)


class LocalBus:
    """See `ports.bus.Bus`."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # relative to a descriptor, since the path of a UNIX socket may have 107 characters only
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._subscribers: dict[str, set[LocalSubscription]] = {}
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
        self._deliver(topic)
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

    def subscribe(self, *topics: str) -> LocalSubscription:
        """Begin to listen."""
        subscription = LocalSubscription(self, topics)
        with self._lock:
            for topic in topics:
                self._subscribers.setdefault(topic, set()).add(subscription)
        return subscription

    def forget(self, subscription: LocalSubscription) -> None:
        """Take a subscription out."""
        with self._lock:
            for topic in subscription.topics:
                members = self._subscribers.get(topic, set())
                members.discard(subscription)
                if not members:
                    self._subscribers.pop(topic, None)

    def _deliver(self, topic: str) -> None:
        with self._lock:
            members = list(self._subscribers.get(topic, ()))
        for member in members:
            member.notify()

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(1024)
            except OSError:
                return
            self._deliver(data.decode(errors="replace"))

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
