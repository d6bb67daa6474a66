"""Options of the API edge."""

from __future__ import annotations

from dataclasses import dataclass

from lapilli.config import option


@dataclass(frozen=True)
class ApiOptions:
    """What the API edge reads of section [DEFAULT]."""

    osapi_max_limit: int = option(1000, "Most items that one list answer holds; also the default.", minimum=1)
    public_endpoint: str | None = option(None, "Base URL for links, when it is not the request's own.")
    project_id_regex: str = option(r"[0-9a-f\-]+", "What a project id in a URL looks like.")
    resource_query_filters_file: str | None = option(
        None, "JSON file that names the filters open to everybody; default: a built-in list."
    )
    enable_v1_api: bool = option(True, "Serve version 1 of the API, for old clients.")
    enable_v2_api: bool = option(True, "Serve version 2 of the API, for old clients.")
    metrics_public: bool = option(
        False, "Answer /metrics to everybody, not only to this machine and to administrators."
    )


@dataclass(frozen=True)
class BodyOptions:
    """Section [oslo_middleware]."""

    max_request_body_size: int = option(114688, "Largest request body in bytes.", minimum=1)
    disable_by_file_path: str | None = option(None, "While this file exists, /healthcheck answers 503.")


@dataclass(frozen=True)
class PolicyOptions:
    """Section [oslo_policy]."""

    policy_file: str = option(
        "policy.yaml", "Rules that differ from the defaults; its place is told from the configuration file's."
    )
