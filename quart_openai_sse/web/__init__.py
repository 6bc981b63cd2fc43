"""The Quart shell: requests in, responses out."""
