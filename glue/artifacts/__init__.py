"""Finished folders beyond this machine. Stands on manifests alone; knows neither jobs nor models."""
