"""Whole histories of one tenant: lived once at the provider, told in any order."""
