"""What an adapter is, where its versions live, and which of them serves.

Lifecycle: `open_database(url)` migrates and opens; `AdapterRegistry(database, root, bases=...)` is the service;
`recover()` cleans up after processes that died; then `register`, `promote`, `rollback`, `retire`, and `snapshot()` for
the request path; `collect_garbage(grace_s)` now and then; `database.close()` at the end.
"""

from adapters_registry.base import BaseModelSpec
from adapters_registry.database import Database, DatabaseError, migrate, open_database
from adapters_registry.errors import AdapterInvalid, AdapterNotFound, LifecycleError, RegistryError, SourceError
from adapters_registry.model import AdapterVersion, AgentAliases, Alias, AliasMove, AuditEntry, RegistrySnapshot, State
from adapters_registry.registry import AdapterRegistry

__all__ = [
    "AdapterInvalid",
    "AdapterNotFound",
    "AdapterRegistry",
    "AdapterVersion",
    "AgentAliases",
    "Alias",
    "AliasMove",
    "AuditEntry",
    "BaseModelSpec",
    "Database",
    "DatabaseError",
    "LifecycleError",
    "RegistryError",
    "RegistrySnapshot",
    "SourceError",
    "State",
    "migrate",
    "open_database",
]
