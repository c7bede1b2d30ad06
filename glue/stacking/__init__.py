"""Deeper models from models: layers of one or several put on top of each other."""
