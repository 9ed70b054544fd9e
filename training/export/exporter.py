"""From a version in the registry to a folder for others: written, read back, checked, and only then in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from adapters_registry import AdapterRegistry, AdapterVersion
from adapters_registry.digest import CONFIG_FILE
from training.export.card import CARD, Card, license_of
from training.export.cases import CaseSet
from training.export.check import LIMIT, LossReport, Model, check_loss
from training.export.checkpoint import Checkpoint, read_json
from training.export.errors import ExportRefused, TooMuchLost
from training.export.gguf_file import GgufModel, Quantisation
from training.export.merge import Merge
from training.export.merged import Dtype, merged_bytes, write_merged
from training.export.models import LlamaCppModel, adapter_model, dequantised_model, has_llama_cpp, merged_model
from training.export.place import MARK, check_free, check_space, new_folder

Format = Literal["peft", "merged", "gguf-q8_0", "gguf-f16"]
FORMATS: tuple[str, ...] = get_args(Format)
SIDE_BYTES = 64 << 20
"""room for what lies beside the weights"""

Progress = Callable[[str, int, int], None]
"""told the step, and how much of how much is done"""


@dataclass(frozen=True)
class ExportOrder:
    """What to export and how.

    `base` is the folder of the 16-bit base, not needed for `peft`. Without `cases` nothing is checked. `keep` leaves a
    model that lost too much at its destination. `figures` go into the card.
    """

    ref: str
    destination: Path
    format: Format = "peft"
    base: Path | None = None
    dtype: Dtype = "bf16"
    cases: CaseSet | None = None
    limit: float = LIMIT
    force: bool = False
    keep: bool = False
    license: str | None = None
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class ExportReport:
    """What was written. `loss` is None where nothing was checked."""

    adapter: str
    digest: str
    format: str
    folder: Path
    files: tuple[str, ...]
    size_bytes: int
    loss: LossReport | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "adapter": self.adapter,
            "digest": self.digest,
            "format": self.format,
            "folder": str(self.folder),
            "files": list(self.files),
            "size_bytes": self.size_bytes,
            "loss": self.loss.to_dict() if self.loss else None,
        }


def export(registry: AdapterRegistry, order: ExportOrder, progress: Progress) -> ExportReport:
    """Export one adapter. Raises ExportError (TooMuchLost after the check) and the registry's errors.

    Whatever goes wrong, the destination is as it was; only with `keep` does a model that lost too much stay there.
    """
    version = registry.resolve(order.ref)
    check_free(order.destination, force=order.force)
    with new_folder(order.destination, force=order.force) as folder:
        base, loss, file = version.base, None, None
        if order.format == "peft":
            registry.export(version.engine_name, folder)
            base = str(read_json(folder / CONFIG_FILE)["base_model_name_or_path"])
        else:
            loss, file = _write_model(order, version, folder, progress)
        failure = _too_much(loss) if loss is not None and not loss.passed else None
        if failure is not None and not order.keep:
            raise failure
        license_name = order.license or (license_of(order.base) if order.base else None)
        card = Card(version, base, order.format, license_name, order.figures, loss, file)
        (folder / CARD).write_text(card.text(), encoding="utf-8")
        report = _report(order, version, folder, loss)
        (folder / MARK).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if failure is not None:
        raise failure
    return report


def _write_model(
    order: ExportOrder, version: AdapterVersion, folder: Path, progress: Progress
) -> tuple[LossReport | None, str | None]:
    """Write a merged model; its loss, and the name of the file where it is a single one."""
    if order.base is None:
        raise ExportRefused(f"format {order.format} needs the base model's folder")
    merge = Merge.plan(Checkpoint.open(order.base), version.path)
    parameters = merge.base.parameters
    exported: Model
    if order.format == "merged":
        check_space(order.destination, merged_bytes(merge.base) + SIDE_BYTES)
        write_merged(merge, folder, order.dtype, lambda done, total: progress("merging", done, total))
        file, exported = None, merged_model(folder, parameters)
    else:
        file = _write_gguf(order, version, merge, folder, progress)
        exported = (
            LlamaCppModel(folder / file, order.base)
            if has_llama_cpp()
            else dequantised_model(folder / file, order.base, parameters)
        )
    if order.cases is None:
        return None, file
    progress("checking", 0, 0)
    reference = adapter_model(order.base, version.path, parameters)
    return check_loss(reference, exported, order.cases, limit=order.limit), file


def _write_gguf(order: ExportOrder, version: AdapterVersion, merge: Merge, folder: Path, progress: Progress) -> str:
    quantisation: Quantisation = "q8_0" if order.format == "gguf-q8_0" else "f16"
    about = {
        "name": version.engine_name,
        "version": version.version,
        "basename": version.base,
        "finetune": version.name,
        "description": f"{version.base} with the loradock adapter {version.engine_name} of agent {version.agent}",
        "license": order.license or license_of(merge.base.folder) or "",
    }
    model = GgufModel.plan(merge, quantisation, about)
    check_space(order.destination, model.size_bytes() + SIDE_BYTES)
    file = f"{version.name}-{version.version}-{quantisation.upper()}.gguf"
    model.write(folder / file, lambda done, total: progress("writing", done, total))
    progress("reading back", 0, 0)
    model.read_back(folder / file)
    return file


def _report(order: ExportOrder, version: AdapterVersion, folder: Path, loss: LossReport | None) -> ExportReport:
    names = sorted(file.name for file in folder.iterdir())
    return ExportReport(
        adapter=version.engine_name,
        digest=version.digest,
        format=order.format,
        folder=order.destination,
        files=tuple(names),
        size_bytes=sum((folder / name).stat().st_size for name in names),
        loss=loss,
    )


def _too_much(loss: LossReport) -> TooMuchLost:
    parts = {
        "of right answers": loss.accuracy_lost,
        "of perplexity": loss.perplexity_lost,
        "of texts split alike": loss.tokens_lost,
    }
    worst = max(parts, key=lambda part: parts[part])
    return TooMuchLost(
        f"the exported model lost {parts[worst]:.1%} {worst} on {loss.cases} cases ({loss.source}); at most "
        f"{loss.limit:.0%} is allowed",
        loss,
    )
