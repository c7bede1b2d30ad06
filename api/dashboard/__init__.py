"""The dashboard: pages without data of their own, which ask the API with the key that the visitor gives."""
