"""Training: from text to adapters.

`training.demo` makes the embedded base model and its demo adapters from text that it generates itself.
"""
