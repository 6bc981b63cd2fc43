"""What a principal may use: tokens, starts of streams."""
