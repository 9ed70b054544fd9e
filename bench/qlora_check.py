"""Does the fast path compute what peft computes? Loss and adapter gradients on a GPU, both against float32 arithmetic.

`python -m bench.qlora_check BASE_FOLDER`: JSON on stdout. The base is quantised; few layers are enough.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.qlora_base import load, lora
from bench.qlora_run import rows

BATCH, LENGTH = 2, 512
UNLABELLED = 100
"""tokens at the start of a row that have no label"""

Step = tuple[float, dict[str, Any]]


def check(base: Path) -> dict[str, Any]:
    """Losses, relative errors of gradients, and whether weights are those of bitsandbytes bit by bit."""
    import torch
    from peft import get_peft_model

    from training.trainer.fast import accelerate_model, keep_layers

    torch.manual_seed(0)
    model = get_peft_model(load(base), lora()).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    ids = rows(BATCH, model.config.vocab_size, LENGTH).to(model.device)
    labels = ids.clone()
    labels[:, :UNLABELLED] = -100
    with torch.autocast(model.device.type, torch.bfloat16):
        plain = _step(model, ids, labels)
    same_weights = _same_weights(model)
    done = accelerate_model(model, devices=(model.device.type,))
    assert done.active, done.reason
    fast = _step(model, ids, labels)
    keep_layers(model, done.layers)
    kept = _step(model, ids, labels)
    exact = _step(_exact(base, model), ids, labels)
    return {
        "weights_identical": same_weights,
        "loss": {"exact": exact[0], "plain": plain[0], "fast": fast[0], "fast_kept": kept[0]},
        "gradient_error_against_float32": {
            "plain": _errors(plain, exact), "fast": _errors(fast, exact), "fast_kept": _errors(kept, exact)
        },
        "gradient_difference_fast_to_plain": _errors(fast, plain),
    }  # fmt: skip


def _step(model: Any, ids: Any, labels: Any) -> Step:
    model.zero_grad()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    found = {name: p.grad.float().clone() for name, p in model.named_parameters() if p.requires_grad}
    return loss.item(), found


def _exact(base: Path, like: Any) -> Any:
    """The same adapters on the same base, all arithmetic in float32."""
    import torch
    from bitsandbytes.nn import Linear4bit
    from peft import get_peft_model

    torch.backends.cuda.matmul.allow_tf32 = False
    model = get_peft_model(load(base), lora()).train()
    model.load_state_dict({n: p for n, p in like.state_dict().items() if "lora_" in n}, strict=False)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = torch.float32
            module.compute_type_is_set = True
        elif not list(module.children()):
            module.float()
    return model


def _same_weights(model: Any) -> bool:
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from training.trainer.fast.weights import write_weight

    linear = model.get_base_model().model.layers[0].mlp.down_proj.get_base_layer()
    wide = torch.full((linear.out_features, linear.in_features + 64), float("nan"), dtype=torch.bfloat16)
    wide = wide.to(linear.weight.device)
    write_weight(linear, wide[:, : linear.in_features])
    expected = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    return torch.equal(wide[:, : linear.in_features], expected)


def _errors(found: Step, reference: Step) -> dict[str, float]:
    """Relative errors of all gradients: the median and the largest."""
    errors = sorted((found[1][n] - g).norm().item() / g.norm().item() for n, g in reference[1].items())
    return {"median": round(errors[len(errors) // 2], 5), "largest": round(errors[-1], 5)}


if __name__ == "__main__":
    print(json.dumps(check(Path(sys.argv[1]))))
