"""Safetensors in and out: bounded reads, sharded resumable writes, manifests, verification. Knows no method."""
