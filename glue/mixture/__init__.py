"""Experts behind a router: building a mixture, its router's weights, and loading what was built."""
