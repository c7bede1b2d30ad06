"""Families of a zoo: how alike members are, and which belong together."""
