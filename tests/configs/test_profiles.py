import pytest

from configs.profiles import load_profile, parse_profile, profile_names
from configs.settings import SettingsError

MINIMAL = "description: Any\nslots: 2\nmax_lora_rank: 16\n"


def test_every_profile_of_the_package_is_valid() -> None:
    assert {"cpu", "gpu", "h200"} <= set(profile_names())
    for name in profile_names():
        assert load_profile(name).name == name


def test_the_cpu_profile_keeps_white_space_out_of_structures() -> None:
    assert load_profile("cpu").args["structured_outputs_config"] == {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MINIMAL + "slot: 3\n", "slot"),
        (MINIMAL.replace("16", "17"), "max_lora_rank"),
        (MINIMAL.replace("slots: 2", "slots: 0"), "slots"),
        (MINIMAL + "device: tpu\n", "device"),
        (MINIMAL + "env: {OMP_NUM_THREADS: [1]}\n", "env"),
        ("- a list\n", "mapping"),
        ("a: [", "YAML"),
    ],
)
def test_a_malformed_profile_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as error:
        parse_profile("mine", text)
    assert "mine" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tpu", "../cpu", "cpu.yaml", ""])
def test_an_unknown_profile_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(SettingsError, match=r"auto, cpu, gpu, h200"):
        load_profile(name)
