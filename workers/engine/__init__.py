"""The engine: a warm subprocess that runs units, and the worker's side that owns it. Neither opens the database."""
