"""What the service's processes tell of themselves: metrics, logs, traces, a pulse. Knows nothing of what they do."""
