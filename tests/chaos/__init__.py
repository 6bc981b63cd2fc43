"""Proof by chaos: what every fault of an upstream, and every habit of a client, comes to.

`faults` is the table of upstreams that break, `statuses` of those that refuse, `clients` of callers that misbehave;
each is a pytest test and a printed table. `held`, `readers`, `hooks` and `libraries` measure builds beside each other.
`python -m tests.chaos --help` names the commands.
"""
