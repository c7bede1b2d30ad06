"""Strategies as pure functions: history in, next candidates out. No torch, no clock, no randomness of its own."""
