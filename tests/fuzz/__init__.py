"""Coverage-guided fuzzing, outside CI: `python -m tests.fuzz TARGET` (needs `atheris`)."""
