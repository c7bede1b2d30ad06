"""Real servers from wheels, run as children of whoever asks; no package of the system, no account, no setting."""
