"""Backups of the whole database: taken while the rooms work, kept as long as needed, and given back."""
