"""Jobs that build one model as a file says: a merge, a mixture or a stack. What the API needs of it has no torch."""
