"""What runs inside the engine's process: vLLM's own OpenAI app plus the routes that residency needs.

Started as `python -m serving.engine.worker`, never imported by the gateway. Everything that touches vLLM is in
`serving.engine.worker.bridge`.
"""
