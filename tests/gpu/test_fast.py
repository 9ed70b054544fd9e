"""On a GPU: each kernel of the fast path beside its PyTorch twin, and weights beside bitsandbytes."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from training.trainer.fast import loss, pointwise  # noqa: E402
from training.trainer.fast.weights import write_weight  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
ROWS, WIDTH, EPSILON = 37, 896, 1e-6


def random(*shape: int) -> Any:
    return torch.randn(shape, device="cuda").bfloat16()


def assert_close(found: Any, expected: Any, tolerance: float = 4e-3) -> None:
    error = (found.float().cpu() - expected.float()).norm() / expected.float().norm()
    assert error <= tolerance, f"relative error {error:.2e}"


def test_norm_and_its_gradient() -> None:
    x, weight, gradient, residual = random(ROWS, WIDTH), random(WIDTH), random(ROWS, WIDTH), random(ROWS, WIDTH)
    found, expected = random(ROWS, WIDTH + 64)[:, :WIDTH], torch.empty(ROWS, WIDTH).bfloat16()
    pointwise.rms_norm(x, weight, EPSILON, found)
    pointwise.rms_norm(x.cpu(), weight.cpu(), EPSILON, expected)
    assert_close(found, expected)
    parts = {"gradient": gradient, "residual": residual, "out": residual.clone()}
    apart = {name: part.cpu() for name, part in parts.items()}
    pointwise.rms_norm_backward(x, weight, EPSILON, **parts)
    pointwise.rms_norm_backward(x.cpu(), weight.cpu(), EPSILON, **apart)
    assert_close(parts["out"], apart["out"])


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(7, 64), (4, 80), (28, 128)])
def test_rotation(heads: int, size: int, back: bool) -> None:
    buffer = random(2 * 11, heads * size + 32)
    angles = torch.randn(11, size // 2, device="cuda").repeat(1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    source = buffer[:, : heads * size].unflatten(1, (heads, size)).unflatten(0, (2, 11))
    expected = torch.empty(2 * 11, heads * size).bfloat16()
    pointwise.rotate(source.cpu(), expected, cos.cpu(), sin.cpu(), back=back)
    pointwise.rotate(source, buffer[:, : heads * size], cos, sin, back=back)
    assert_close(buffer[:, : heads * size], expected)


def test_swiglu_and_its_gradient() -> None:
    gate_up, gradient = random(ROWS, 2 * WIDTH + 16), random(ROWS, WIDTH)
    spare = gate_up[:, 2 * WIDTH :].clone()
    found, expected = torch.empty_like(gradient), torch.empty(ROWS, WIDTH).bfloat16()
    pointwise.swiglu(gate_up, found)
    pointwise.swiglu(gate_up.cpu(), expected)
    assert_close(found, expected)
    apart = gate_up.cpu(), gradient.cpu()
    pointwise.swiglu_backward(gate_up, gradient)
    pointwise.swiglu_backward(*apart)
    assert_close(gate_up[:, : 2 * WIDTH], apart[0][:, : 2 * WIDTH])
    assert_close(gradient, apart[1])
    assert torch.equal(gate_up[:, 2 * WIDTH :], spare)


def test_dropout_drops_its_share_and_repeats_its_draw() -> None:
    x = torch.ones(512, 18944, device="cuda").bfloat16()
    found = pointwise.dropped(x, 0.1, seed=5)
    assert (found == 0).float().mean().item() == pytest.approx(0.1, abs=1e-3)
    assert torch.equal(found, pointwise.dropped(x, 0.1, seed=5))
    assert not torch.equal(found, pointwise.dropped(x, 0.1, seed=6))
    out = x.clone()
    pointwise.add_dropped(x, out, 0.1, seed=5)
    assert_close(out, (x + found).cpu())
    dropped = (found == 0).float()
    assert abs((dropped[:, 1:] * dropped[:, :-1]).mean().item() - 0.01) < 5e-4
    assert abs((dropped[1:] * dropped[:-1]).mean().item() - 0.01) < 5e-4


@pytest.mark.parametrize("vocabulary", [1000, 152_064])
def test_loss_and_its_gradient(vocabulary: int) -> None:
    hidden, head = random(2, 50, 128), random(vocabulary, 128) * 0.1
    targets = torch.randint(0, vocabulary, (2, 50), device="cuda")
    targets[:, ::3] = loss.IGNORED
    mine, theirs = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    found = loss.token_losses(mine, head, targets)
    logits = (theirs @ head.float().t()).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=loss.IGNORED)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    (found * 3).backward()
    (expected * 3).backward()
    assert_close(mine.grad, theirs.grad.cpu(), 1e-2)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(96, 896), (200, 64), (33, 192), (5, 100)])
def test_weights_are_those_of_bitsandbytes(shape: tuple[int, int], nested: bool) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = bitsandbytes.nn.Linear4bit(
        shape[1], shape[0], bias=False, compute_dtype=torch.bfloat16, compress_statistics=nested, quant_type="nf4"
    ).to(torch.bfloat16)
    linear = linear.to("cuda")
    wide = torch.full((shape[0], shape[1] + 64), float("nan"), device="cuda").bfloat16()
    write_weight(linear, wide[:, : shape[1]])
    expected = bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    assert torch.equal(wide[:, : shape[1]], expected)
    assert wide[:, shape[1] :].isnan().all()
