"""The routes, one module a resource. Each handler is one transaction; what is slow happens outside it."""
