"""What the model is made of: who calls, types, volumes, snapshots, attachments, and a refusal."""

from __future__ import annotations

from dataclasses import dataclass, field

YES = "<is> True"


class Refused(Exception):
    """The service must answer with this code; `word` begins the message of a 413."""

    def __init__(self, code: int, word: str = "") -> None:
        super().__init__(f"{code} {word}".strip())
        self.code = code
        self.word = word


@dataclass(frozen=True)
class Actor:
    """Who calls."""

    name: str
    project: str
    role: str  # member, reader, or admin

    @property
    def admin(self) -> bool:
        return self.role == "admin"


@dataclass(eq=False)
class Kind:
    """A volume type."""

    id: str
    name: str
    public: bool = True
    specs: dict[str, str] = field(default_factory=dict)
    grants: set[str] = field(default_factory=set)

    def visible(self, actor: Actor) -> bool:
        return actor.admin or self.public or actor.project in self.grants


@dataclass(eq=False)
class Volume:
    """A volume; `hosts` is where it may be, one back end as soon as somebody has looked."""

    project: str
    size: int
    kind: Kind
    name: str | None = None
    id: str = ""
    status: str = "creating"
    metadata: dict[str, str] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    snapshot_id: str | None = None
    source_id: str | None = None
    multiattach: bool = False
    attached_mode: str | None = None
    growing: int = 0

    @property
    def host(self) -> str | None:
        assert len(self.hosts) <= 1, "nobody has looked where it is"
        return next(iter(self.hosts), None)

    @property
    def shown_metadata(self) -> dict[str, str]:
        mode = {"attached_mode": self.attached_mode} if self.attached_mode else {}
        return {**self.metadata, **mode}


@dataclass(eq=False)
class Snapshot:
    """A snapshot."""

    project: str
    volume: Volume
    size: int
    kind: Kind
    name: str | None = None
    id: str = ""
    status: str = "creating"
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Attachment:
    """An attachment."""

    volume: Volume
    instance: str | None
    mode: str | None = None
    id: str = ""
    status: str = "reserved"
    connected: bool = False

    @property
    def project(self) -> str:
        return self.volume.project


@dataclass
class Request:
    """What a create asks for."""

    size: int | None = None
    name: str | None = None
    kind: str | None = None
    snapshot_id: str | None = None
    source_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
