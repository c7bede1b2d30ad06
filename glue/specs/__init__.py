"""Pydantic models of everything a user writes or reads. Imports nothing of ours, and no torch."""
