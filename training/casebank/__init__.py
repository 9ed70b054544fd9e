"""The CaseBank: what was asked, what was answered, and what the answer was worth.

A case is *added* (served, imported, or given through the API), *rewarded* or corrected by feedback, *learned* from as a
part of a dataset, and *deleted* when it is too old or its user asks for it. At its writing it joins a cluster of near
duplicates and falls on one side of the split, where it stays: the holdout never moves. Of cases with the same content
one stands for all. Nothing here imports torch.
"""

from training.casebank.bank import Added, CaseBank
from training.casebank.case import Case
from training.casebank.duplicates import NearDuplicates, Signature, signature
from training.casebank.errors import CaseBankError, CaseInvalid, CaseNotFound, ImportFailed

__all__ = [
    "Added",
    "Case",
    "CaseBank",
    "CaseBankError",
    "CaseInvalid",
    "CaseNotFound",
    "ImportFailed",
    "NearDuplicates",
    "Signature",
    "signature",
]
