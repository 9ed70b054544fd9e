"""Errors of router versions; see `adapters_registry.errors` for the tree they belong to."""

from __future__ import annotations

from adapters_registry.errors import RegistryError, ResourceNotFound


class VersionNotFound(ResourceNotFound):
    """No router version of that name is kept, or no folder holds one."""

    code = "router_version_not_found"


class NothingToRollBack(RegistryError):
    """No earlier router version served."""

    code = "nothing_to_roll_back"
