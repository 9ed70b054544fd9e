"""Benchmarks. Each prints one JSON object on stdout (format: `bench/results/README.md`) and a table on stderr.

python -m bench.gateway       overhead, throughput and tail of the gateway, beside a pass-through and LiteLLM's proxy
python -m bench.first_run     seconds from a fresh clone to the first routed answer, and of the second start
python -m bench.mock_upstream the upstream that the gateway bench measures against, by itself
python -m bench.load          the load generator, by itself
python -m bench.residency     cold adapters beside warm streams, many adapters in few slots, churn: ours and stock vLLM
python -m bench.residency_model  the same arrivals on a modelled card, with the real residency, in seconds
python -m bench.throughput    output tokens a second by vLLM's flags, and through the gateway
"""
