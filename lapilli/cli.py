"""The `lapilli` command."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lapilli import compose
from lapilli.config import Config, ServiceOptions
from lapilli.errors import LapilliError

LISTEN = "127.0.0.1:8776"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)
    try:
        status: int | None = options.run(options)
        return status or 0
    except LapilliError as error:
        print(f"lapilli: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lapilli", description="Block storage that speaks the OpenStack API."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        _common(made)
        return made

    serve = command("serve", _serve, "Run everything: API, scheduler and volume service.")
    api = command("api", _serve_api, "Run the API alone.")
    for each in (serve, api):
        each.add_argument("--listen", default=LISTEN, metavar="ADDRESS:PORT", help=f"default: {LISTEN}")
        each.add_argument("--workers", type=int, default=1, help="HTTP worker processes")
        each.add_argument("--threads", type=int, default=16, help="threads of an HTTP worker")
    scheduler = command("scheduler", _role("scheduler"), "Run a scheduler alone.")
    _scheduler_commands(scheduler)
    command("volume", _role("volume"), "Run a volume service alone.")
    command("roles", _role("scheduler", "volume"), "Run a scheduler and a volume service together.")

    database = commands.add_parser("db", help="Look after the database.")
    actions = database.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("upgrade", _db_upgrade, "Bring the database to this version of the code."),
        ("version", _db_version, "Print the database's version."),
    ):
        each = actions.add_parser(name, help=text)
        each.set_defaults(run=run)
        _common(each)
    doctor = command("doctor", _doctor, "Compare the database with quota, pools, back ends and targets.")
    doctor.add_argument("--fix", action="store_true", help="mend what can be mended safely")
    told = "Tell listeners of notifications of every volume and snapshot: volume.exists, snapshot.exists."
    audit = command("audit", _audit, told)
    audit.add_argument("--period", metavar="UNIT", help="hour, day, month or year; default: as configured")
    told = "Print the passphrase that opens an encrypted volume, for a host that opens it by hand."
    passphrase = command("passphrase", _passphrase, told)
    passphrase.add_argument("volume", metavar="ID")
    _policy_commands(commands)
    _operation_commands(commands)
    _service_commands(commands)
    _image_commands(commands)
    return parser


def _common(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument("--state-dir", metavar="DIR", default=default, help="state directory; default: ./var")
    parser.add_argument("--config", metavar="FILE", default=default, help="configuration file; default: none")


def _config(options: argparse.Namespace) -> Config:
    config = Config.load(options.config, state_dir=options.state_dir)
    compose.check_values(config)
    return config


# --- serving ---------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from lapilli.runtime import embedded  # noqa: PLC0415 - what only serving needs

    config = _config(options)
    compose.preload_api(config)
    address, port = _address(options.listen)
    compose.check_exposure(config, address)
    _check_listen(address, port)
    compose.make_state_dir(config)
    compose.start_logging(config)
    shown = "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104 - compared only
    url = f"http://{shown}:{port}"
    clouds = ""
    if not compose.has_keystone(config):
        clouds = embedded.make_credentials(config.state_dir, url, compose.user_line)
    compose.make_store(config).close()
    arguments = ["--state-dir", config.state_dir]
    if options.config:
        arguments += ["--config", os.path.abspath(options.config)]
    command = [sys.executable, "-m", "lapilli.cli", "roles", *arguments]
    roles = embedded.RolesProcess(lambda: _run_roles(config, ("scheduler", "volume")), command)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the HTTP server has its own
    try:
        roles.fork()
        _tell_how_to_begin(config, clouds, url)
        roles.watch()
        _http(config, options, address, port)
    except KeyboardInterrupt:
        pass  # told to stop before there was an HTTP server
    finally:
        roles.stop(config.read(ServiceOptions).graceful_shutdown_timeout + 1)
    return 1 if roles.failed else 0


def _tell_how_to_begin(config: Config, clouds: str, url: str) -> None:
    if compose.is_open(config):
        print("Everybody on this machine is an administrator. With the cinder client:")
        print(
            f"cinder --os-auth-type noauth --os-endpoint {url}/v3 --os-user-id me --os-project-id demo list"
        )
    elif compose.has_keystone(config):
        print(
            f"Callers are those of Keystone. The catalog's endpoint of this service: {url}/v3/%(project_id)s"
        )
    else:
        print("Copy these two lines, then use the openstack client:")
        print(f"export OS_CLIENT_CONFIG_FILE={clouds}")
        print("export OS_CLOUD=lapilli")
    sys.stdout.flush()


def _http(config: Config, options: argparse.Namespace, address: str, port: int) -> None:
    from lapilli.runtime import embedded  # noqa: PLC0415 - what only serving needs

    os.environ["LAPILLI_STATE_DIR"] = config.state_dir
    if options.config:
        os.environ["LAPILLI_CONFIG"] = os.path.abspath(options.config)
    embedded.serve_http(address, port, workers=options.workers, threads=options.threads)


def _serve_api(options: argparse.Namespace) -> None:
    config = _config(options)
    compose.preload_api(config)
    address, port = _address(options.listen)
    compose.check_exposure(config, address)
    _check_listen(address, port)
    _http(config, options, address, port)


def _run_roles(config: Config, names: tuple[str, ...]) -> None:
    from lapilli.runtime import embedded, service  # noqa: PLC0415 - what only serving needs

    told = embedded.listen_for_stop()
    core = compose.make_core(config)
    roles, relay = compose.make_roles(core, names), compose.make_relay(core)
    for role in roles:
        role.start()
    if relay is not None:
        relay.start()
    told.wait()
    if relay is not None:
        relay.stop()
    service.leave_nothing_running(roles, core.service.graceful_shutdown_timeout)
    core.journal.bus.close()


def _role(*names: str) -> Callable[[argparse.Namespace], None]:
    def run(options: argparse.Namespace) -> None:
        config = _config(options)
        compose.start_logging(config)
        _run_roles(config, names)

    return run


def _address(text: str) -> tuple[str, int]:
    address, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65536:
        raise LapilliError(f"--listen {text}: ADDRESS:PORT expected.")
    return address.strip("[]") or "127.0.0.1", int(port)


def _check_listen(address: str, port: int) -> None:
    """Raises `LapilliError` where nobody can listen, before anything is started that would have to end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, port), family=family).close()
    except OSError as problem:
        why = (problem.strerror or "").partition(" (")[0]
        raise LapilliError(f"--listen {address}:{port}: {why}.") from problem


# --- database --------------------------------------------------------------------------------------------


def _db_upgrade(options: argparse.Namespace) -> None:
    from lapilli.migrations import upgrade  # noqa: PLC0415 - Alembic is heavy, and only needed here

    print(f"The database is at {upgrade(compose.database_url(_config(options)))}.")


def _db_version(options: argparse.Namespace) -> None:
    print(compose.database_version(_config(options)) or "empty")


# --- doctor ----------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    from lapilli.runtime.doctor import Doctor  # noqa: PLC0415 - what only this command needs

    config = _config(options)
    core = compose.make_core(config)
    backends = compose.make_backends(config)
    compose.give_notes(core, backends)
    doctor = Doctor(core, backends)
    found = doctor.examine()
    for remark in doctor.remarks():
        print(remark)
    for difference in found:
        mended = options.fix and difference.mend is not None
        if mended and difference.mend is not None:
            difference.mend()
        print(difference.text + (" - mended" if mended else ""))
    left = [each for each in found if not (options.fix and each.mend is not None)]
    if not found:
        print("Everything is as the database says.")
    core.journal.bus.close()
    return 1 if left else 0


# --- encryption ------------------------------------------------------------------------------------------


def _passphrase(options: argparse.Namespace) -> None:
    # in a pipe there is nothing behind it: programs take all that they read
    print(compose.passphrase(_config(options), options.volume), end="\n" if sys.stdout.isatty() else "")


# --- policy ----------------------------------------------------------------------------------------------


def _policy_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    policy = commands.add_parser("policy", help="See who may do what.")
    actions = policy.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list", help="List the rules in force, and which of them the policy file gives."
    )
    listing.set_defaults(run=_policy_list)
    told = "Tell whether a caller passes a rule, or which rules a caller passes."
    check = actions.add_parser("check", help=told, description=told)
    check.add_argument("rule", nargs="?", metavar="RULE", help="such as volume:create; default: all")
    check.add_argument("--roles", default="", metavar="ROLE,ROLE", help="of the caller")
    check.add_argument("--user", default="user", metavar="ID", help="the caller")
    check.add_argument(
        "--project", default="", metavar="ID", help="what the credentials are for; default: `project`"
    )
    check.add_argument("--domain", metavar="ID", help="what they are for instead of a project")
    check.add_argument("--system", action="store_true", help="they are for the system instead of a project")
    check.add_argument(
        "--target", action="append", default=[], metavar="KEY=VALUE",
        help="of the resource; project_id and user_id are the caller's unless told; may be repeated",
    )  # fmt: skip
    check.set_defaults(run=_policy_check)
    for each in (listing, check):
        _common(each)


def _policy_list(options: argparse.Namespace) -> None:
    for name, text, source in compose.make_policy(_config(options)).rules():
        print(f"{name}  {text or '@'}  ({source})")


def _policy_check(options: argparse.Namespace) -> int:
    policy = compose.make_policy(_config(options))
    scoped = options.project or ("" if options.domain or options.system else "project")
    caller = compose.make_caller(
        user=options.user,
        project=scoped,
        roles=[role.strip() for role in options.roles.split(",") if role.strip()],
        domain=options.domain,
        system=options.system,
    )
    target: dict[str, Any] = {
        "project_id": scoped or None,
        "user_id": options.user,
        "domain_id": options.domain,
    }
    for text in options.target:
        key, separator, value = text.partition("=")
        if not separator:
            raise LapilliError(f"--target {text}: KEY=VALUE expected.")
        target[key] = value
    passed = True
    for name, text, source in policy.rules():
        if options.rule in (None, name):
            passed = policy.judge(name, caller, target)
            print(f"{'allowed' if passed else 'refused'}  {name}  by {text or '@'}  ({source})")
    if options.rule is None:
        return 0
    policy.judge(options.rule, caller, target)  # tells of a name that is no rule
    return 0 if passed else 1


def _audit(options: argparse.Namespace) -> None:
    print(compose.tell_existing(_config(options), options.period))


# --- operations ------------------------------------------------------------------------------------------


def _operation_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    operation = commands.add_parser("operation", help="See what is under way, and help what is stuck.")
    actions = operation.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="List operations, the newest first.")
    listing.add_argument("--state", help="queued, running, reverting, done or failed")
    listing.add_argument("--kind", help="such as volume.create")
    listing.add_argument("--resource", metavar="ID")
    listing.add_argument("--limit", type=int, default=50)
    listing.set_defaults(run=_operation_list)
    show = actions.add_parser("show", help="Show tasks with their times, progress, last error and holder.")
    show.set_defaults(run=_operation_show)
    retry = actions.add_parser("retry", help="Have an unfinished operation claimed now, whoever holds it.")
    retry.set_defaults(run=_operation_retry)
    abandon = actions.add_parser("abandon", help="Have an unfinished operation reverted.")
    abandon.add_argument("--force", action="store_true", help="end it at once, and undo nothing outside")
    abandon.set_defaults(run=_operation_abandon)
    for each in (show, retry, abandon):
        each.add_argument("operation", metavar="ID")
    for each in (listing, show, retry, abandon):
        _common(each)


def _operation_list(options: argparse.Namespace) -> None:
    from lapilli.runtime import operations  # noqa: PLC0415 - what only this command needs

    core = compose.make_core(_config(options))
    for line in operations.listing(
        core, state=options.state, kind=options.kind, resource_id=options.resource, limit=options.limit
    ):
        print(line)
    core.journal.bus.close()


def _operation_show(options: argparse.Namespace) -> None:
    from lapilli.runtime import operations  # noqa: PLC0415 - what only this command needs

    core = compose.make_core(_config(options))
    for line in operations.show(core, options.operation):
        print(line)
    core.journal.bus.close()


def _operation_retry(options: argparse.Namespace) -> None:
    core = compose.make_core(_config(options))
    core.journal.retry(options.operation)
    print(f"Operation {options.operation} is claimed by the next worker.")
    core.journal.bus.close()


def _operation_abandon(options: argparse.Namespace) -> None:
    core = compose.make_core(_config(options))
    if options.force:
        core.journal.end_at_once(core, options.operation)
        print(f"Operation {options.operation} has ended.")
    else:
        core.journal.abandon(options.operation)
        print(f"Operation {options.operation} is reverted by the next worker.")
    core.journal.bus.close()


# --- services --------------------------------------------------------------------------------------------


def _service_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    service = commands.add_parser("service", help="See the services, and take a host out of work.")
    actions = service.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="List services, and the hosts that serve each back end.")
    listing.set_defaults(run=_service_list)
    drain = actions.add_parser(
        "drain", help="Let a volume host begin nothing new, and wait until it has nothing in hand."
    )
    drain.add_argument("--reason", help="shown to whoever asks why nothing is placed there")
    drain.add_argument(
        "--timeout", type=float, default=600, metavar="SECONDS", help="default: 600; 0: ask only"
    )
    drain.set_defaults(run=_service_drain)
    enable = actions.add_parser("enable", help="Let a host that is drained work again.")
    enable.set_defaults(run=_service_enable)
    for each in (drain, enable):
        each.add_argument("host", metavar="HOST", help="a host's name, or HOST@BACKEND")
    for each in (listing, drain, enable):
        _common(each)


def _service_list(options: argparse.Namespace) -> None:
    from lapilli.runtime import services  # noqa: PLC0415 - what only this command needs

    core = compose.make_core(_config(options))
    for line in services.listing(core):
        print(line)
    core.journal.bus.close()


def _service_drain(options: argparse.Namespace) -> int:
    from lapilli.runtime import services  # noqa: PLC0415 - what only this command needs

    core = compose.make_core(_config(options))
    for line in services.drain(core, options.host, options.reason, options.timeout):
        print(line, flush=True)
    empty = services.is_empty(core, options.host)
    core.journal.bus.close()
    return 0 if empty else 1


def _service_enable(options: argparse.Namespace) -> None:
    from lapilli.runtime import services  # noqa: PLC0415 - what only this command needs

    core = compose.make_core(_config(options))
    services.enable(core, options.host)
    print(f"Host {options.host} works again.")
    core.journal.bus.close()


# --- scheduler -------------------------------------------------------------------------------------------


def _scheduler_commands(scheduler: argparse.ArgumentParser) -> None:
    actions = scheduler.add_subparsers(metavar="ACTION")
    told = "Tell where a volume would be placed now, and why not elsewhere. Nothing is created."
    explain = actions.add_parser("explain", help=told, description=told)
    explain.add_argument("--size", type=int, metavar="GIB", help="default: the source's")
    explain.add_argument("--type", metavar="TYPE", help="id or name of a volume type")
    explain.add_argument("--availability-zone", metavar="ZONE")
    explain.add_argument("--snapshot", metavar="ID", help="a volume from this snapshot")
    explain.add_argument("--source", metavar="ID", help="a clone of this volume")
    explain.add_argument(
        "--hint", action="append", default=[], metavar="KEY=VALUE", help="as in a request; may be repeated"
    )
    explain.set_defaults(run=_explain)
    _common(explain, argparse.SUPPRESS)  # what was given before the word `explain` holds


def _explain(options: argparse.Namespace) -> int:
    told = compose.explain(
        _config(options),
        size=options.size,
        volume_type=options.type,
        availability_zone=options.availability_zone,
        snapshot_id=options.snapshot,
        source_volid=options.source,
        scheduler_hints=_hints(options.hint),
    )
    print(f"{told.size} GiB of type {told.volume_type}:")
    for rank, each in enumerate(told.weighed, 1):
        raw = ", ".join(f"{name} {value:.6g}" for name, value in each.raw.items())
        print(f"{rank:>4}  {each.pool.name}  passed, weight {each.weight:.6g}" + (f" ({raw})" if raw else ""))
    for refusal in (*told.refused, *told.absent):
        by = f"refused by {refusal.filter}" if refusal.filter else "not considered"
        print(f"   -  {refusal.pool}  {by}: {refusal.reason}")
    if not told.weighed:
        print("No pool would take it.")
    return 0 if told.weighed else 1


def _hints(given: list[str]) -> dict[str, Any]:
    """Hints as a request has them: a key given several times is a list."""
    found: dict[str, list[str]] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise LapilliError(f"--hint {text}: KEY=VALUE expected.")
        found.setdefault(key, []).append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


# --- images ----------------------------------------------------------------------------------------------


def _image_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    image = commands.add_parser("image", help="Add, list and delete images of the image directory.")
    actions = image.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="Add an image from a file or a URL.")
    add.add_argument("source", metavar="FILE|URL")
    add.add_argument("--name", help="default: the file's name")
    add.add_argument("--disk-format", help="default: told by the file's ending")
    add.add_argument("--min-disk", type=int, default=0, metavar="GIB")
    add.add_argument("--protected", action="store_true", help="refuse to delete it")
    add.set_defaults(run=_image_add)
    listing = actions.add_parser("list", help="List images.")
    listing.set_defaults(run=_image_list)
    delete = actions.add_parser("delete", help="Delete images.")
    delete.add_argument("images", nargs="+", metavar="IMAGE", help="id or name")
    delete.set_defaults(run=_image_delete)
    for each in (add, listing, delete):
        _common(each)


_ENDINGS = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw", ".vmdk": "vmdk", ".vdi": "vdi", ".vhdx": "vhdx",
            ".vhd": "vhd", ".iso": "iso"}  # fmt: skip


def _image_add(options: argparse.Namespace) -> None:
    from tqdm import tqdm  # noqa: PLC0415 - only for the progress bar

    name = (options.name or os.path.basename(options.source.rstrip("/"))).strip()
    if not name or options.min_disk < 0:
        raise LapilliError("An image needs a name, and a --min-disk of 0 GiB or more.")
    disk_format = options.disk_format or _ENDINGS.get(os.path.splitext(options.source)[1].lower())
    if disk_format is None:
        raise LapilliError("The file's ending does not tell its format: give --disk-format.")
    images = compose.make_directory_images(_config(options))
    with tqdm(unit="B", unit_scale=True, desc=name, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        image = images.add(
            options.source,
            name=name,
            disk_format=disk_format,
            min_disk=options.min_disk,
            protected=options.protected,
            progress=progress,
        )
    print(image.id)


def _image_list(options: argparse.Namespace) -> None:
    for image in compose.make_directory_images(_config(options)).all():
        size = f"{(image.virtual_size or image.size or 0) / 2**30:.2f} GiB"
        name = _printable(image.name or "-")
        print(f"{image.id}  {image.status:8}  {image.disk_format or '-':6}  {size:>11}  {name}")


def _printable(text: str) -> str:
    """A text that users have chosen, without what would move the terminal's cursor."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _image_delete(options: argparse.Namespace) -> None:
    config = _config(options)
    for reference in options.images:
        compose.delete_image(config, reference)


if __name__ == "__main__":
    sys.exit(main())
