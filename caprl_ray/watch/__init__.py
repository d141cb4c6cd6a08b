"""Observers of a running job: its counts and who shows them, and what stops it when it goes wrong."""
