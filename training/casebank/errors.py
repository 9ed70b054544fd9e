"""What the CaseBank refuses, as types. Each message is one line.

RegistryError
├── ResourceNotFound
│   └── CaseNotFound    no case has this id, or answered with this response id
└── CaseBankError
    ├── CaseInvalid     a case or a piece of feedback breaks a rule; `param` names the field
    └── ImportFailed    a file cannot be read at all; nothing was stored
"""

from __future__ import annotations

from adapters_registry.errors import RegistryError, ResourceNotFound


class CaseNotFound(ResourceNotFound):
    """No such case."""

    code = "case_not_found"


class CaseBankError(RegistryError):
    """Base of what is wrong with cases."""

    code = "casebank_error"


class CaseInvalid(CaseBankError):
    """The case or the feedback cannot be taken."""

    code = "case_invalid"


class ImportFailed(CaseBankError):
    """The file cannot be read or written."""

    code = "import_failed"
