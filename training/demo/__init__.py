"""How the embedded model is made: generated text, a tokenizer, a tiny base model, three adapters, a model card.

Run `python -m training.demo all`. The steps, in order: `corpus` and `reading` write text, `tokenizer` learns its
pieces, `pretrain` makes the base, `adapters` teaches one task to each adapter, `evaluate` measures on held-out cases
and `report` writes it down. `variants` makes further adapters for load tests, without torch.
"""
