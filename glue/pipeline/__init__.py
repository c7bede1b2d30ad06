"""Each stage's `advance` and its units' `run`. Runs in the engine process; never opens the database."""
