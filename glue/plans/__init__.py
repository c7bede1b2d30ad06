"""A job spec into stages, unit kinds, worker classes and first units. Specs only; no torch."""
