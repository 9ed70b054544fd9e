from __future__ import annotations

from pathlib import Path

import pytest

from adapters_registry.model import RegistrySnapshot
from configs.embedded import BASE, BASE_NAME
from tests.adapters_registry.build import write_base
from training.jobs.bases import describe_base
from training.jobs.errors import Hopeless
from training.jobs.names import choose_base


def test_a_base_is_known_by_its_weights_and_its_template(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    first = describe_base("base", str(folder), 16)
    assert describe_base("base", str(folder), 16) == first
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    second = describe_base("base", str(folder), 16)
    assert (second.weights == first.weights, second.template == first.template) == (True, False)
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    third = describe_base("base", str(folder), 16)
    assert (third.weights == second.weights, third.template == second.template) == (False, True)


def test_the_embedded_base_has_both() -> None:
    base = describe_base(BASE_NAME, str(BASE), 64)
    assert len({base.weights, base.template}) == 2
    assert base.template


def test_a_base_that_lies_elsewhere_is_known_by_name() -> None:
    assert describe_base("b", "org/model", 16).weights == "org/model"


def test_the_base_is_the_one_asked_for_else_the_presets_else_the_weakest(tmp_path: Path) -> None:
    bases = {name: describe_base(name, f"org/{name}", 16) for name in ("small", "large")}
    none = RegistrySnapshot(revision=0)
    assert choose_base(None, "legal", bases, none, None).name == "small"
    assert choose_base(None, "legal", bases, none, "large").name == "large"
    assert choose_base("small", "legal", bases, none, "large").name == "small"
    assert choose_base(None, "legal", bases, none, "elsewhere").name == "small"
    with pytest.raises(Hopeless, match="no engine serves"):
        choose_base("huge", "legal", bases, none, None)
    with pytest.raises(Hopeless, match="no engine here"):
        choose_base(None, "legal", {}, none, None)
