"""Contracts of stores, stores, and decorators over them."""
