"""All rules of all calls: for commands, and for oslo.policy's own tools (`--namespace lapilli`)."""

from __future__ import annotations

from typing import Any

from lapilli.api.resource import scan
from lapilli.api.rules import Policy, defaults
from lapilli.config import Config


def make_policy(config: Config) -> Policy:
    """The rules in force. Raises `ConfigError`."""
    scan()  # they are declared beside the calls
    return Policy(config)


def list_rules() -> list[Any]:
    """What `oslopolicy-sample-generator` and its like ask for."""
    from oslo_policy import policy as oslo  # noqa: PLC0415 - heavy, and its own tools have it anyway

    scan()
    return [oslo.RuleDefault(name, text) for name, text in defaults().items()]


def make_enforcer() -> Any:
    """What `oslopolicy-validator` asks for."""
    from oslo_config import cfg  # noqa: PLC0415
    from oslo_policy import policy as oslo  # noqa: PLC0415

    enforcer = oslo.Enforcer(cfg.CONF)
    enforcer.register_defaults(list_rules())
    return enforcer
