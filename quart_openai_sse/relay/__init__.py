"""The engine: one producer for each stream, any number of readers."""
