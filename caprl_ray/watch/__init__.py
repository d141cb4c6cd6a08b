"""Observers of a running job: its counters, the displays, and the checks that stop it."""
