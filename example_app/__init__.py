"""A small app of the usual kind, with its own login and page, to which streaming AI was added in `ai.py`."""

from example_app.app import create_app

__all__ = ["create_app"]
