"""Limits per principal: tokens in a window, starts in a period."""
