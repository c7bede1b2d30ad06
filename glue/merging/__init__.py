"""One file a method, the registry, the streaming engine, mergekit's YAML. Knows nothing of searching or scoring."""
