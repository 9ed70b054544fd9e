"""The CaseBank for routes: its cases as plain documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.casebank.bank import CaseBank
from training.casebank.case import Case
from training.casebank.chats import from_messages

Document = dict[str, Any]


class CaseService:
    """Fits `serving.services.Cases`. All methods wait for the database. `deleted` is called when cases were."""

    def __init__(self, bank: CaseBank, deleted: Callable[[], object] = lambda: None) -> None:
        self._bank = bank
        self._deleted = deleted

    def feedback(
        self,
        response_id: str,
        *,
        reward: float | None,
        label: str | None,
        correction: str | None,
        source: str,
        owner: str | None,
    ) -> Document:
        """Note what an answer was worth. Raises CaseNotFound and CaseInvalid."""
        return document(self._bank.feedback(response_id, reward, label, correction, source=source, owner=owner))

    def case(self, case_id: str, *, owner: str | None) -> Document:
        """One case. Raises CaseNotFound."""
        return document(self._bank.get(case_id, owner=owner))

    def cases(self, *, limit: int, after: str | None, **wanted: Any) -> Sequence[Document]:
        """Cases behind the case `after`, the newest first; `wanted` as `CaseBank.list` takes it."""
        return [document(case) for case in self._bank.list(limit=limit, after=after, **wanted)]

    def add_case(self, case: Mapping[str, Any], *, owner: str) -> tuple[Document, bool]:
        """Store a case of these fields; the case, and whether it is new. Raises CaseInvalid."""
        fields = dict(case) | {"messages": from_messages(case["messages"]), "source": "api", "owner": owner}
        if isinstance(fields.get("response"), str):
            fields["response"] = {"role": "assistant", "content": fields["response"]}
        if fields.get("reward") is not None:
            fields["reward_source"] = owner
        added = self._bank.add([Case(**fields)])
        return document(self._bank.get((added.ids or added.existing)[0])), bool(added.ids)

    def delete_cases(self, *, case_id: str | None = None, user: str | None = None, session: str | None = None) -> int:
        """Remove cases for good, and return how many."""
        count = self._bank.delete(ids=None if case_id is None else [case_id], user=user, session=session)
        if count:
            self._deleted()
        return count


def document(case: Case) -> Document:
    """A case as clients see it; times in ISO 8601."""
    told = dataclasses.asdict(case) | {"target": case.target}
    for name in ("created_at", "rewarded_at"):
        told[name] = told[name] and told[name].isoformat()
    return told
