"""Faults of a store that several workers share: real processes, real servers, and rules that a program checks."""
