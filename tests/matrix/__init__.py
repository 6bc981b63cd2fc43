"""Does it work with them unchanged? Every server and every client that users have, against each other.

`python -m tests.matrix --help` says how it is run.
"""
