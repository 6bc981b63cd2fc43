"""What a log that several workers share costs, beside the memory log and beside other ways to do the same."""
