"""What every flow and handler is given: the store, the journal, the image source, and the options."""

from __future__ import annotations

from dataclasses import dataclass

from lapilli.config import Config, ServiceOptions
from lapilli.flows.journal import Journal
from lapilli.ports.images import ImageSource
from lapilli.store.session import Store


@dataclass(frozen=True)
class Core:
    """The middle of the house, put together by `compose`."""

    config: Config
    store: Store
    journal: Journal
    images: ImageSource

    @property
    def service(self) -> ServiceOptions:
        """Options that every role reads."""
        return self.config.read(ServiceOptions)
