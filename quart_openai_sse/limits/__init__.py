"""Limits per principal: streams that run, starts in a period, tokens in a window."""
