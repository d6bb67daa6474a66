"""The composition root: from a configuration to store, bus, adapters, roles and application.

The only module that imports adapters. They are loaded by their configured names.
"""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import exc

from lapilli import events
from lapilli.adapters.auth.none import NoAuthenticator
from lapilli.adapters.auth.own import OwnIdentity
from lapilli.adapters.auth.users import BasicAuthenticator, BasicOptions, OwnAuthenticator, UserFile, line_for
from lapilli.adapters.buses.local import LocalBus
from lapilli.adapters.buses.polling import PollingBus
from lapilli.adapters.images.directory import DirectoryImages
from lapilli.adapters.images.image_api import GlanceOptions, ServiceUserOptions
from lapilli.adapters.keys.barbican import Barbican, BarbicanOptions, Login
from lapilli.adapters.keys.fixed import FixedKey
from lapilli.adapters.keys.local import LocalKeys
from lapilli.api.options import ApiOptions, BodyOptions, PolicyOptions
from lapilli.config import Config, ServiceOptions, option
from lapilli.context import Authenticator, Context
from lapilli.domain import placement
from lapilli.domain.quotas import QuotaOptions
from lapilli.errors import ConfigError, DatabaseUnavailable
from lapilli.flows import (  # noqa: F401 - they declare operations
    attachment_tasks,
    audits,
    encryption,
    managing_tasks,
    retype,
    rewriting,
    snapshots,
    volume_tasks,
    volume_types,
)
from lapilli.flows.core import Core
from lapilli.flows.definitions import Backend, deadlines
from lapilli.flows.explain import Explanation, explain as explain_create
from lapilli.flows.journal import Journal
from lapilli.flows.notices import Notices
from lapilli.flows.options import IdentityOptions, ImageCacheOptions, TypeOptions, VolumeOptions
from lapilli.flows.volumes import VolumeRequest
from lapilli.ports.bus import Bus
from lapilli.ports.driver import Driver, Noting, OwnFunctions
from lapilli.ports.images import Converter, ImageSource
from lapilli.ports.keys import KeyStore, Luks
from lapilli.ports.target import Target
from lapilli.runtime.relay import Relay
from lapilli.runtime.service import RoleService, WorkerOptions
from lapilli.store import records, schema
from lapilli.store.notes import BackendNotes
from lapilli.store.session import DatabaseOptions, Store, postgres_lifeline

if TYPE_CHECKING:
    from lapilli.api.rules import Policy


@dataclass(frozen=True)
class AuthOptions:
    """How callers are known."""

    auth_strategy: str = option(
        "identity",
        "How callers prove who they are: identity: the service's own log-in with tokens, or HTTP Basic; "
        "keystone: tokens of Keystone, which the section [keystone_authtoken] tells of; "
        "http_basic: HTTP Basic only; none: not at all.",
        choices=("identity", "keystone", "http_basic", "none", "noauth"),
    )


@dataclass(frozen=True)
class BusOptions:
    """How processes wake each other; what a wake misses is found by looking."""

    bus: str = option(
        "auto",
        "auto: postgres with a PostgreSQL database, polling with MariaDB, local with SQLite.",
        choices=("auto", "local", "postgres", "polling"),
    )
    bus_poll_interval: float = option(0.25, "Seconds between looks of the polling bus.", minimum=0.01)


@dataclass(frozen=True)
class BackendOptions:
    """What every back end's section may hold; drivers and targets add their own."""

    volume_driver: str = option("filepool", "Storage driver.")
    target_helper: str | None = option(
        None, "Target that serves its volumes; default: cinder and rbd for drivers of those names, tgt else."
    )
    backend_host: str | None = option(None, "Host part of this back end's name.")
    backend_availability_zone: str | None = option(None, "Zone of this back end.")
    reserved_percentage: int = option(
        0, "Share of the capacity that is never placed.", minimum=0, maximum=100
    )
    max_over_subscription_ratio: str | None = option(None, "Thin provisioning ratio, a number or auto.")
    extra_capabilities: str = option("{}", "JSON object merged into the statistics.")


@dataclass(frozen=True)
class FunctionOptions:
    """Expressions by which a back end has a say in placements; in `[DEFAULT]` they hold for all back ends."""

    filter_function: str | None = option(
        None, "Expression that must be true of a request (DriverFilter); what the driver reports wins."
    )
    goodness_function: str | None = option(
        None, "Expression that rates a request, 0 to 100 (GoodnessWeigher); what the driver reports wins."
    )


@dataclass(frozen=True)
class ImageOptions:
    """Where images are."""

    image_source: str = option("directory", "Image source.", choices=("directory", "glance"))
    image_directory: str | None = option(None, "Directory of the images; default: in the state directory.")


@dataclass(frozen=True)
class MessagingOptions:
    """Where the broker is, for all that goes over oslo.messaging."""

    transport_url: str | None = option(
        None, "Where the message broker is: rabbit://USER:PASSWORD@HOST:PORT/", secret=True
    )
    control_exchange: str = option("openstack", "Exchange that notifications are published to.")
    volume_usage_audit_period: str = option(
        "month", "Period of `lapilli audit`: hour, day, month or year, begun at UNIT@OFFSET, such as day@6."
    )


@dataclass(frozen=True)
class NotificationOptions:
    """Section [oslo_messaging_notifications]: whether and where other programs are told of changes."""

    driver: list[str] = option([], "messagingv2, or messaging for the envelope of old; none: nobody is told.")
    topics: list[str] = option(["notifications"], "Topics; the priority is added: notifications.info.")
    transport_url: str | None = option(
        None, "As transport_url of [DEFAULT], for notifications only.", secret=True
    )


_BARBICAN = ("barbican", "castellan.key_manager.barbican_key_manager.BarbicanKeyManager")


@dataclass(frozen=True)
class KeyOptions:
    """Section [key_manager]: where the keys of encrypted volumes are."""

    backend: str = option(
        "local",
        "local: in files of this machine, wrapped by a master key; barbican: in OpenStack's key manager, "
        "asked by the user of [service_user]; none: encrypted volumes are refused.",
        choices=("local", *_BARBICAN, "none"),
    )
    key_directory: str | None = option(
        None, "Files of the local key store; default: `keys` in the state directory."
    )
    master_key_file: str | None = option(
        None,
        "Master keys of the local key store, a line each: the first wraps, all unwrap; "
        "default: `master.key` in the state directory, made at the first use.",
    )
    fixed_key: str | None = option(
        None, "One key for all volumes, in hexadecimal digits; the key store is not used then.", secret=True
    )


_SECTIONS: tuple[tuple[type, str], ...] = (
    *((each, "DEFAULT") for each in (ServiceOptions, WorkerOptions, AuthOptions, ImageOptions)),
    *((each, "DEFAULT") for each in (ApiOptions, VolumeOptions, TypeOptions, QuotaOptions)),
    *((each, "DEFAULT") for each in (placement.SchedulerOptions, FunctionOptions, ImageCacheOptions)),
    (GlanceOptions, "DEFAULT"),
    (MessagingOptions, "DEFAULT"),
    (NotificationOptions, "oslo_messaging_notifications"),
    (ServiceUserOptions, "service_user"),
    (DatabaseOptions, "database"),
    (BasicOptions, "http_basic"),
    (PolicyOptions, "oslo_policy"),
    (IdentityOptions, "identity"),
    (KeyOptions, "key_manager"),
    (BarbicanOptions, "barbican"),
    (BodyOptions, "oslo_middleware"),
    (BodyOptions, "healthcheck"),
)


def state_file(config: Config, name: str) -> str:
    """Path of a file in the state directory."""
    return os.path.join(config.state_dir, name)


def host_of(config: Config) -> str:
    """This host's name in service and pool names."""
    return config.read(ServiceOptions).hostname


def start_logging(config: Config) -> None:
    """Structured logs, as configured. Raises `ConfigError`."""
    options = config.read(ServiceOptions)
    try:
        events.log_to(options.log_file, options.log_level)
    except OSError as problem:
        raise ConfigError(f"[DEFAULT] log_file = {options.log_file!r}: {problem.strerror}.") from problem


def check_values(config: Config) -> None:
    """Read every section that is not a back end's, so that a wrong value is told at the start. Raises
    `ConfigError`."""
    for section_type, name in _SECTIONS:
        config.read(section_type, name)


def make_state_dir(config: Config) -> None:
    """See that the state directory is there, for its owner only. Raises `ConfigError`."""
    try:
        os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
    except OSError as problem:
        raise ConfigError(
            f"State directory {config.state_dir} cannot be made: {problem.strerror}."
        ) from problem


def database_url(config: Config) -> str:
    """Where the database is: as configured, or SQLite in the state directory."""
    url = config.read(DatabaseOptions, "database").connection
    if url is not None:
        return url
    make_state_dir(config)
    return f"sqlite:///{state_file(config, 'lapilli.sqlite')}"


def make_store(config: Config) -> Store:
    """The database, of this code's version. Raises `ConfigError`."""
    with _told_plainly():
        store = Store(database_url(config), config.read(DatabaseOptions, "database"))
        schema.prepare(store)
    return store


def database_version(config: Config) -> str | None:
    """The version that the database says it has; None for an empty one. Raises `ConfigError`."""
    with _told_plainly():
        return schema.version(Store(database_url(config)))


@contextmanager
def _told_plainly() -> Iterator[None]:
    """Why a database cannot be used, in one line, without its URL: that may hold a password."""
    try:
        yield
    except (exc.ArgumentError, exc.DBAPIError, DatabaseUnavailable, ImportError, OSError) as problem:
        cause = problem.__cause__ if isinstance(problem, DatabaseUnavailable) else problem
        why = str(getattr(cause, "orig", None) or cause or problem).splitlines()[0]
        raise ConfigError(f"[database] connection: the database cannot be used: {why}") from problem


def make_images(config: Config) -> ImageSource:
    """The image source. Raises `ConfigError`."""
    if config.read(ImageOptions).image_source == "directory":
        return make_directory_images(config)
    from lapilli.adapters.images.glance import GlanceImages  # noqa: PLC0415 - heavy

    user = config.read(ServiceUserOptions, "service_user", fallback="keystone_authtoken")
    for name in ("auth_url", "username", "password"):
        if getattr(user, name) is None:
            raise ConfigError(
                f"[service_user] {name}: image_source = glance needs it here or in [keystone_authtoken]."
            )
    scratch = config.read(VolumeOptions).image_conversion_dir or state_file(config, "conversion")
    return GlanceImages(config.read(GlanceOptions), user, scratch)


def make_directory_images(config: Config) -> DirectoryImages:
    """The directory of images, which can be added to from the command line. Raises `ConfigError`."""
    options = config.read(ImageOptions)
    if options.image_source != "directory":
        raise ConfigError(
            f"[DEFAULT] image_source = {options.image_source!r}: the images are in another service."
        )
    return DirectoryImages(options.image_directory or state_file(config, "images"))


def delete_image(config: Config, reference: str) -> None:
    """Remove an image of the directory, and the key that is its own."""
    images, keys = make_directory_images(config), make_keys(config)
    image = images.get(reference)
    images.delete(image.id)
    encryption.forget_image(keys, image)


def make_bus(config: Config, store: Store) -> Bus:
    """What wakes other processes: as configured, or as fits the database. Raises `ConfigError`."""
    options = config.read(BusOptions)
    kind = options.bus
    if kind == "auto":
        kind = {"postgresql": "postgres", "mariadb": "polling"}.get(store.kind, "local")
    directory = os.path.join(config.state_dir, "run", "bus")
    if kind == "local":
        return LocalBus(directory)
    if kind == "polling":
        return PollingBus(directory, options.bus_poll_interval)
    if store.kind != "postgresql":
        raise ConfigError("[DEFAULT] bus = postgres: this needs a PostgreSQL database.")
    from lapilli.adapters.buses.postgres import PostgresBus  # noqa: PLC0415 - its driver is an extra

    dsn = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return PostgresBus(dsn, postgres_lifeline({}))


def make_core(config: Config) -> Core:
    """The middle of the house. Raises `ConfigError`."""
    scheduler = config.read(placement.SchedulerOptions)
    _add_plugins("lapilli.filters", scheduler.scheduler_default_filters, placement.FILTERS)
    _add_plugins("lapilli.weighers", scheduler.scheduler_default_weighers, placement.WEIGHERS)
    placement.check_names(scheduler)
    store = make_store(config)
    bus = make_bus(config, store)
    convert = importlib.import_module("lapilli.adapters.images.convert")
    told = Notices(host_of(config)) if notification_drivers(config) else None
    journal = Journal(store, bus, deadlines(config.read(VolumeOptions).operation_deadlines), told)
    core = Core(
        config,
        store,
        journal,
        make_images(config),
        cast(Converter, convert),
        cast(Luks, importlib.import_module("lapilli.adapters.images.luks")),
        make_keys(config),
        make_identity(config),
    )
    volume_types.ensure_default(core)
    return core


def _make_barbican(config: Config) -> KeyStore:
    user = config.read(ServiceUserOptions, "service_user", fallback="keystone_authtoken")
    domains = {"user_domain_id": user.user_domain_id, "user_domain_name": user.user_domain_name}
    auth = {"auth_url": user.auth_url, "username": user.username, "password": user.password, **domains}
    for name in ("auth_url", "username", "password"):
        if auth[name] is None:
            raise ConfigError(
                f"[service_user] {name}: [key_manager] backend = barbican needs it here or in "
                "[keystone_authtoken]."
            )
    try:
        importlib.import_module("keystoneauth1")
    except ImportError as problem:
        raise ConfigError(
            "[key_manager] backend = barbican: keystoneauth1 is missing; install the extra `barbican`."
        ) from problem
    verify = False if user.insecure else user.cafile or True
    login = Login(auth, user.region_name, user.interface, verify)
    return Barbican(config.read(BarbicanOptions, "barbican"), login)


def make_keys(config: Config) -> KeyStore | None:
    """Where keys of encrypted volumes are kept; None where there shall be none. Raises `ConfigError`."""
    options = config.read(KeyOptions, "key_manager")
    if options.fixed_key is not None:
        return FixedKey(options.fixed_key)
    if options.backend == "none":
        return None
    if options.backend in _BARBICAN:
        return _make_barbican(config)
    return LocalKeys(
        options.key_directory or state_file(config, "keys"),
        options.master_key_file or state_file(config, "master.key"),
    )


def _add_plugins(group: str, wanted: list[str], known: dict[str, Any]) -> None:
    """Register other packages' filters or weighers, when a name is wanted that is not one of ours."""
    if set(wanted) <= known.keys():
        return
    for found in metadata.entry_points(group=group):
        if found.name in known:
            continue
        try:
            loaded = found.load()
        except Exception as problem:
            if found.name not in wanted:
                continue
            raise ConfigError(f"{found.name} of {group} cannot be loaded: {problem}") from problem
        known[found.name] = loaded if known is placement.FILTERS else (loaded, None)


def make_authenticator(core: Core) -> Authenticator:
    """Who tells who asks. Raises `ConfigError`."""
    if is_open(core.config):
        return NoAuthenticator()
    if has_keystone(core.config):
        return make_keystone(core.config)
    if isinstance(core.identity, OwnIdentity):
        revoked = core.revocations
        return OwnAuthenticator(
            core.identity.file, core.identity, lambda token: revoked.hold(token.audit_id, token.credential_id)
        )
    return BasicAuthenticator(_user_file(core.config))


def make_keystone(config: Config) -> Authenticator:
    """Keystone tells who asks; it is not spoken to yet. Raises `ConfigError`."""
    try:
        from lapilli.adapters.auth.keystone import KeystoneAuthenticator  # noqa: PLC0415 - an extra; heavy
    except ImportError as problem:
        raise ConfigError(
            f"[DEFAULT] auth_strategy = keystone: {problem.name} is missing; install the extra `keystone`."
        ) from problem
    return KeystoneAuthenticator(config)


def _user_file(config: Config) -> UserFile:
    options = config.read(BasicOptions, "http_basic")
    return UserFile(options.user_file or state_file(config, "htpasswd"))


def make_identity(config: Config) -> OwnIdentity | None:
    """The service's own identity, unless others tell who asks."""
    if config.read(AuthOptions).auth_strategy != "identity":
        return None
    options = config.read(IdentityOptions, "identity")
    return OwnIdentity(_user_file(config), options.key_file or state_file(config, "identity.keys"))


def user_line(name: str, password: str, project_id: str, roles: str) -> str:
    """A line of the user file."""
    return line_for(name, password, project_id, roles)


def has_keystone(config: Config) -> bool:
    """Whether Keystone tells who asks."""
    return config.read(AuthOptions).auth_strategy == "keystone"


def is_open(config: Config) -> bool:
    """Whether anybody who reaches the service is believed."""
    return config.read(AuthOptions).auth_strategy in ("none", "noauth")


def check_exposure(config: Config, address: str) -> None:
    """Raises `ConfigError` for a service that would be open to everybody beyond this machine."""
    if not is_open(config):
        return
    try:
        loopback = ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        loopback = address == "localhost"
    if not loopback:
        raise ConfigError(
            f"[DEFAULT] auth_strategy = none makes everybody an administrator: it is served on a loopback "
            f"address only, not on {address}."
        )


def make_backends(config: Config) -> list[Backend]:
    """Every enabled back end. Raises `ConfigError` for a name that is not known."""
    service = config.read(ServiceOptions)
    _check_backends(config, service.enabled_backends)
    return [_make_backend(config, service, name) for name in service.enabled_backends]


def give_notes(core: Core, backends: Sequence[Backend]) -> None:
    """Let drivers remember, in the database, what they need to; before they are started."""
    for each in backends:
        if isinstance(each.driver, Noting):
            notes = BackendNotes(core.store, each.cluster or each.host, shared=each.cluster is not None)
            each.driver.keep_in(notes)


def _check_backends(config: Config, names: Sequence[str]) -> None:
    """Raises `ConfigError` for a name given twice, or without a section (the default one needs no file)."""
    others = {
        "DEFAULT",
        "backend_defaults",
        "keystone_authtoken",
        "oslo_messaging_rabbit",
        *(section for _, section in _SECTIONS),
    }
    known = {*ServiceOptions().enabled_backends, *config.sections()} - others
    for name in names:
        if name not in known:
            raise ConfigError(
                f"[DEFAULT] enabled_backends = {name!r}: unknown; sections are {', '.join(sorted(known))}."
            )
        if list(names).count(name) > 1:
            raise ConfigError(f"[DEFAULT] enabled_backends = {name!r}: named twice.")


_PROTOCOLS = {"tgt": "iSCSI", "lio": "iSCSI", "nvmet": "NVMe-oF", "rbd": "ceph"}


def _make_backend(config: Config, service: ServiceOptions, name: str) -> Backend:
    options = config.read(BackendOptions, name, fallback="backend_defaults")
    driver = cast(Driver, _adapter("drivers", config, name, options.volume_driver, "volume_driver"))
    named = options.target_helper or _USUAL_TARGETS.get(options.volume_driver, "tgt")
    helper = _UPSTREAM.get(named, named)
    target = cast(Target, _adapter("targets", config, name, helper, "target_helper"))
    _check_fit(name, options.volume_driver, driver, helper, target)
    cluster = None if options.backend_host else service.cluster
    _check_sharing(name, cluster, helper, target)
    extra: dict[str, Any] = {"reserved_percentage": options.reserved_percentage}
    if helper != "cinder":  # there the driver tells it
        extra["storage_protocol"] = _PROTOCOLS.get(helper, helper)
    if options.max_over_subscription_ratio is not None:
        placement.check_ratio(name, options.max_over_subscription_ratio)
        extra["max_over_subscription_ratio"] = options.max_over_subscription_ratio
    extra |= _json_object(name, options.extra_capabilities)
    return Backend(
        name=name,
        host=f"{options.backend_host or service.cluster or host_of(config)}@{name}",
        cluster=f"{cluster}@{name}" if cluster else None,
        shared=bool(options.backend_host or cluster),
        availability_zone=options.backend_availability_zone or service.storage_availability_zone,
        driver=driver,
        target=target,
        extra=extra,
        functions=_functions(config, name, driver),
        images=config.read(ImageCacheOptions, name, fallback=("backend_defaults", "DEFAULT")),
    )


def _check_fit(name: str, driver_name: str, driver: Driver, helper: str, target: Target) -> None:
    """Raises `ConfigError` for a target that cannot serve what the driver's volumes are."""
    if driver.kind is not None and driver.kind not in target.kinds:
        raise ConfigError(
            f"[{name}] target_helper = {helper!r}: volume_driver = {driver_name} has volumes of the kind "
            f"{driver.kind}; this target serves {' and '.join(target.kinds)}."
        )


_SERVING_FROM_ANYWHERE = ("cinder", "sim")  # an array serves; and nothing does


def _check_sharing(name: str, cluster: str | None, helper: str, target: Target) -> None:
    """Raises `ConfigError` for a back end of a cluster whose volumes would be served by one of its hosts."""
    if cluster and target.serves and helper not in _SERVING_FROM_ANYWHERE:
        raise ConfigError(
            f"[{name}] target_helper = {helper!r}: any host of the cluster {cluster} may do its work, but "
            "this target serves from one host, and goes on when another detaches a volume. Use the target "
            "local, rbd or cinder, or leave [DEFAULT] cluster out."
        )


def _functions(config: Config, name: str, driver: Driver) -> dict[str, str]:
    """The expressions of a back end: its section's, else those for all, else the driver's own."""
    found = dict(driver.functions()) if isinstance(driver, OwnFunctions) else {}
    for section in ("DEFAULT", name):
        options = config.read(
            FunctionOptions, section, fallback=None if section == "DEFAULT" else "backend_defaults"
        )
        for key in ("filter_function", "goodness_function"):
            text = getattr(options, key)
            if text is not None:
                placement.check_function(section, key, text)
                found[key] = text
    return found


def _json_object(section: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"[{section}] extra_capabilities: a JSON object expected.")
    return found


_USUAL_TARGETS = {"cinder": "cinder", "rbd": "rbd"}
_KNOWN = {
    "drivers": {
        "cinder": ("CinderDriver", "CinderOptions"),
        "filepool": ("FilePool", "FilePoolOptions"),
        "lvm": ("Lvm", "LvmOptions"),
        "rbd": ("Rbd", "RbdOptions"),
        "sim": ("Sim", "SimOptions"),
    },
    "targets": {
        "cinder": ("CinderTarget", "CinderOptions"),
        "tgt": ("Tgt", "TgtOptions"),
        "lio": ("Lio", "LioOptions"),
        "local": ("Local", "LocalOptions"),
        "nbd": ("Nbd", "NbdOptions"),
        "nvmet": ("Nvmet", "NvmetOptions"),
        "rbd": ("RbdTarget", "RbdTargetOptions"),
        "sim": ("SimTarget", "SimTargetOptions"),
    },
}

_UPSTREAM = {"tgtadm": "tgt", "lioadm": "lio"}  # names that a configuration of Cinder has


def _adapter(kind: str, config: Config, section: str, name: str, option_name: str) -> object:
    known = _KNOWN[kind]
    if name not in known:
        raise ConfigError(
            f"[{section}] {option_name} = {name!r}: unknown; known are {', '.join(sorted(known))}."
        )
    module: ModuleType = importlib.import_module(f"lapilli.adapters.{kind}.{name}")
    class_name, options_name = known[name]
    options = config.read(getattr(module, options_name), section, fallback="backend_defaults")
    made: object = getattr(module, class_name)(options, name=section, state_dir=config.state_dir)
    return made


def notification_drivers(config: Config) -> list[str]:
    """How other programs are told of changes; nothing for not at all. Raises `ConfigError`."""
    named = config.read(NotificationOptions, "oslo_messaging_notifications").driver
    for name in named:
        if name not in ("messagingv2", "messaging", "noop"):
            raise ConfigError(
                f"[oslo_messaging_notifications] driver = {name!r}: messagingv2, messaging or noop expected."
            )
    return [name for name in named if name != "noop"]


def make_relay(core: Core) -> Relay | None:
    """What sends notices, where any are written. Raises `ConfigError`."""
    drivers = notification_drivers(core.config)
    if not drivers:
        return None
    try:
        from lapilli.adapters.notifiers.messaging import MessagingNotifier  # noqa: PLC0415 - an extra; heavy
    except ImportError as problem:
        raise ConfigError(
            f"[oslo_messaging_notifications] driver: {problem.name} is missing; install the extra "
            "`messaging`."
        ) from problem
    options = core.config.read(NotificationOptions, "oslo_messaging_notifications")
    broker = core.config.read(MessagingOptions)
    notifier = MessagingNotifier(
        core.config,
        options.transport_url or broker.transport_url,
        drivers=drivers,
        exchange=broker.control_exchange,
        topics=options.topics,
    )
    return Relay(core, notifier)


def make_roles(core: Core, roles: tuple[str, ...]) -> list[RoleService]:
    """Services for the roles named: `scheduler`, `volume`."""
    host = host_of(core.config)
    made = []
    if "scheduler" in roles:
        made.append(RoleService(core, "scheduler", host))
    if "volume" in roles:
        backends = make_backends(core.config)
        give_notes(core, backends)
        made.append(RoleService(core, "volume", host, backends))
    return made


def passphrase(config: Config, volume_id: str) -> str:
    """What opens an encrypted volume. Raises `NotFound`, `InvalidInput`, `KeyStoreError`."""
    core = make_core(config)
    try:
        return encryption.passphrase(core, volume_id)
    finally:
        core.journal.bus.close()
        core.store.close()


def make_caller(
    *, user: str, project: str, roles: Sequence[str], domain: str | None, system: bool
) -> Context:
    """A caller, to ask the policy about."""
    return Context(
        user_id=user,
        project_id=project,
        roles=frozenset(role.lower() for role in roles),
        domain_id=domain,
        system_scope="all" if system else None,
    )


def make_policy(config: Config) -> Policy:
    """The rules in force. Raises `ConfigError`."""
    from lapilli.api import policy  # noqa: PLC0415 - the roles do without the API

    return policy.make_policy(config)


def preload_api(config: Config) -> None:
    """Load the API's code before processes are forked, so that they share it. Raises `ConfigError`."""
    from lapilli.api import app  # noqa: F401, PLC0415 - the roles alone do without the API

    if has_keystone(config):
        make_keystone(config)  # what is wrong with its options is told at the start
    make_policy(config)


def make_application(config: Config) -> Any:
    """The WSGI application, with a core of its own."""
    from lapilli.api.app import make_app  # noqa: PLC0415 - the roles do without the API
    from lapilli.facades.old import Old  # noqa: PLC0415
    from lapilli.facades.v1 import V1  # noqa: PLC0415
    from lapilli.facades.v2 import V2  # noqa: PLC0415

    check_values(config)
    core = make_core(config)
    app = make_app(core, make_authenticator(core))
    options = config.read(ApiOptions)
    old = [
        version for version, wanted in ((V1, options.enable_v1_api), (V2, options.enable_v2_api)) if wanted
    ]
    return Old(app, old, options.public_endpoint) if old else app


def tell_existing(config: Config, period: str | None) -> str:
    """Tell of every volume and snapshot of the last whole period; what was told. Raises `ConfigError`."""
    core = make_core(config)
    try:
        unit = period or config.read(MessagingOptions).volume_usage_audit_period
        begin, end = audits.last_period(records.now(), unit)
        volumes, snapshots = audits.tell_existing(core, begin, end)
    finally:
        core.journal.bus.close()
        core.store.close()
    return f"From {begin} to {end}: {volumes} volumes and {snapshots} snapshots."


def explain(config: Config, **wanted: Any) -> Explanation:
    """Where a volume would be placed now, and why not elsewhere. Raises as a create does."""
    core = make_core(config)
    try:
        operator = Context(user_id="operator", project_id="operator", roles=frozenset({"admin"}))
        return explain_create(core, operator, VolumeRequest(**wanted))
    finally:
        core.journal.bus.close()
        core.store.close()
