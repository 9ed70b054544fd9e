"""Everything the registry refuses, as types. Each message is one line that tells the user the reason.

RegistryError
├── AdapterInvalid      the adapter cannot be served; nothing was stored
├── SourceError         the source cannot be read or fetched
├── ResourceNotFound    what was asked for does not exist
│   └── AdapterNotFound no such name, version, agent or alias
└── LifecycleError      the transition is not allowed from the present state
"""

from __future__ import annotations


class RegistryError(Exception):
    """Base of all registry errors. `param` names the request field at fault, `code` is stable for programs."""

    code = "registry_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class AdapterInvalid(RegistryError):
    """The adapter breaks a rule of DESIGN's "Accepted" list; `code` says which."""

    code = "adapter_invalid"


class SourceError(RegistryError):
    """The source does not exist, cannot be fetched, or is not an adapter folder or archive."""

    code = "source_unavailable"


class ResourceNotFound(RegistryError):
    """What was asked for does not exist."""

    code = "not_found"


class AdapterNotFound(ResourceNotFound):
    """No such adapter, version, agent or alias."""

    code = "adapter_not_found"


class LifecycleError(RegistryError):
    """The state of the version does not allow this."""

    code = "lifecycle_conflict"
