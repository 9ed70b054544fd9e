"""The fast path computes what peft computes: loss, adapter gradients, saved adapters. Here with its PyTorch twins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from training.trainer.fast import accelerate_model, keep_layers, kept_bytes, layers_that_fit, unsupported  # noqa: E402
from training.trainer.fast.pointwise import dropped  # noqa: E402

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CPU = ("cpu",)


def causal(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SHAPE, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def adapted(model: Any, **changes: Any) -> Any:
    options = {"r": 4, "lora_alpha": 12, "target_modules": LINEARS, "lora_dropout": 0.0, **changes}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.train()


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, SHAPE["vocab_size"], (2, 24), generator=generator)
    labels = ids.clone()
    labels[0, :9] = -100
    labels[1, 20:] = -100
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def step(model: Any, rows: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    loss = model(**rows).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(fast: tuple[float, dict[str, Any]], plain: tuple[float, dict[str, Any]], tolerance: float) -> None:
    assert fast[0] == pytest.approx(plain[0], rel=tolerance)
    assert fast[1].keys() == plain[1].keys()
    for name, expected in plain[1].items():
        assert (fast[1][name] - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_loss_and_gradients_are_those_of_peft(family: str, kept: int) -> None:
    model = adapted(causal(family))
    plain = step(copy.deepcopy(model), batch())
    done = accelerate_model(model, kept_layers=kept, devices=CPU)
    assert (done.reason, done.layers, done.kept) == (None, 3, kept)
    assert_same(step(model, batch()), plain, 1e-4)
    assert_same(step(model, batch()), plain, 1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 1},
        {"r": 16, "use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["down_proj"]},
    ],
)
def test_any_rank_scale_and_choice_of_modules(changes: dict[str, Any]) -> None:
    model = adapted(causal("qwen2"), **changes)
    plain = step(copy.deepcopy(model), batch())
    assert accelerate_model(model, devices=CPU).active
    assert_same(step(model, batch()), plain, 1e-4)


class Draw(torch.nn.Module):  # type: ignore[misc]
    """The dropout of a linear, with the draw that the fast path makes for its group."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self.share, self.seed = share, seed

    def forward(self, x: Any) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        return x * dropped(torch.ones_like(flat), self.share, self.seed).view_as(x)


@pytest.mark.parametrize("kept", [0, 3])
def test_dropout_is_repeated_on_the_way_back(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    share, seeds = 0.3, dict(zip(LINEARS, (7, 7, 7, 8, 9, 9, 10), strict=True))
    model = adapted(causal("qwen2"), lora_dropout=share)
    plain = copy.deepcopy(model)
    for name, linear in plain.named_modules():
        if hasattr(linear, "lora_dropout"):
            linear.lora_dropout["default"] = Draw(share, seeds[name.rpartition(".")[2]])
    expected = step(plain, batch())
    monkeypatch.setattr("training.trainer.fast.patch._seed", lambda _: 7)
    assert accelerate_model(model, kept_layers=kept, devices=CPU).active
    assert_same(step(model, batch()), expected, 1e-4)


def test_dropout_follows_torchs_seed_and_drops_its_share() -> None:
    model = adapted(causal("qwen2"), lora_dropout=0.5)
    accelerate_model(model, devices=CPU)
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(step(model, batch())[0])
    assert losses[0] == losses[1] != losses[2]
    kept = dropped(torch.ones(200, 200), 0.2, seed=1)
    assert (kept == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)


def test_layers_can_be_kept_or_not_between_steps() -> None:
    model = adapted(causal("qwen2"))
    accelerate_model(model, kept_layers=3, devices=CPU)
    before = step(model, batch())
    keep_layers(model, 1)
    assert_same(step(model, batch()), before, 1e-6)


def test_more_layers_are_kept_where_more_memory_is_free() -> None:
    model = adapted(causal("qwen2"))
    layer = kept_bytes(model.config) * 1000
    room = 2**29 + 1000 * SHAPE["hidden_size"] * 2 * 3
    assert [layers_that_fit(model, 1000, room + layers * layer) for layers in (0, 4, 5, 6, 99)] == [0, 0, 1, 2, 3]


def test_a_quantised_base_in_16_bits() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = causal("qwen2").bfloat16()
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(block, name, nf4(bitsandbytes, linear))
    model = adapted(model)
    plain_model = copy.deepcopy(model)
    exact = step(copy.deepcopy(model).float(), batch())
    with torch.autocast("cpu", torch.bfloat16):
        plain = step(plain_model, batch())
        assert accelerate_model(model, devices=CPU).active
        fast = step(model, batch())
    assert fast[0] == pytest.approx(plain[0], rel=5e-3)
    plain_error, fast_error = (
        sum((run[1][name].float() - expected).norm() / expected.norm() for name, expected in exact[1].items())
        for run in (plain, fast)
    )
    assert fast_error <= 1.2 * plain_error


def nf4(bitsandbytes: Any, linear: Any) -> Any:
    made = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=torch.bfloat16,
        compress_statistics=True, quant_type="nf4",
    )  # fmt: skip
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")


def test_gradients_accumulate_and_the_divisor_is_the_callers() -> None:
    model = adapted(causal("qwen2"))
    rows = {**batch(), "num_items_in_batch": torch.tensor(50)}
    plain = step(copy.deepcopy(model), rows)
    accelerate_model(model, devices=CPU)
    once = step(model, rows)
    assert_same(once, plain, 1e-4)
    model(**rows).loss.backward()
    twice = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.allclose(twice[name], 2 * once[1][name]) for name in twice)


def test_losses_count_as_often_as_their_weights_say() -> None:
    from torch.nn.functional import cross_entropy

    model, rows = adapted(causal("qwen2")), batch()
    targets = torch.nn.functional.pad(rows.pop("labels"), (0, 1), value=-100)[:, 1:].contiguous()
    weights = torch.rand(targets.shape)
    plain = copy.deepcopy(model)
    losses = cross_entropy(plain(**rows).logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected = (losses * weights.flatten()).sum() / 7
    expected.backward()
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    accelerate_model(model, devices=CPU)
    got = step(model, {**rows, "shift_labels": targets, "loss_weights": weights, "num_items_in_batch": 7})
    assert_same(got, (expected.item(), gradients), 1e-4)


def test_packed_rows_keep_their_own_positions() -> None:
    model = adapted(causal("llama"))
    rows = {**batch(), "position_ids": torch.cat((torch.arange(10), torch.arange(14))).expand(2, 24)}
    del rows["attention_mask"]
    model.config.use_cache = False  # with a cache, transformers would take the row for one sequence
    plain = step(copy.deepcopy(model), rows)
    accelerate_model(model, devices=CPU)
    assert_same(step(model, rows), plain, 1e-4)


def test_generation_and_disabled_adapters_run_the_models_own_code() -> None:
    model = adapted(causal("qwen2"))
    rows = batch()
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=rows["input_ids"]).logits
    expected = model.eval().generate(rows["input_ids"][:1], max_new_tokens=4, do_sample=False)
    accelerate_model(model, devices=CPU)
    assert torch.equal(model.generate(rows["input_ids"][:1], max_new_tokens=4, do_sample=False), expected)
    with model.train().disable_adapter():
        assert torch.allclose(model(input_ids=rows["input_ids"]).logits, base, atol=1e-5)


def test_the_saved_adapter_has_the_same_names_and_values(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = adapted(causal("qwen2"))
    model.save_pretrained(tmp_path / "before")
    accelerate_model(model, devices=CPU)
    step(model, batch())
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / which / "adapter_model.safetensors") for which in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_embedding_may_live_on_the_host() -> None:
    model = adapted(causal("qwen2"))
    plain = step(copy.deepcopy(model), batch())
    assert accelerate_model(model, host_embedding=True, devices=CPU).active
    assert_same(step(model, batch()), plain, 1e-4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: causal("qwen2"), "not a PEFT model"),
        (lambda: adapted(causal("qwen2"), use_dora=True), "DoRA or LoRA with a bias"),
        (lambda: adapted(causal("llama", attention_dropout=0.1)), "attention dropout or an activation other than silu"),
        (lambda: adapted(causal("mistral")), "no fast path for mistral models"),
    ],
)
def test_what_it_does_not_know_is_left_alone(model: Any, reason: str) -> None:
    made = model()
    forward = made.forward
    done = accelerate_model(made, devices=CPU)
    assert done.reason == reason
    assert not done.active
    assert made.forward == forward


def test_a_cpu_takes_the_plain_path_by_default() -> None:
    assert unsupported(adapted(causal("qwen2"))) == "no fast path on cpu"


def test_a_kept_layer_of_a_7b_model_saves_106_kilobytes_a_token() -> None:
    config = transformers.Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4
    )
    assert kept_bytes(config) == 106_496
