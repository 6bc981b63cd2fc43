"""What a relayed event costs, beside its peers: `python -m tests.benchmarks`."""
