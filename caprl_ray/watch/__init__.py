"""Observers of a running job: progress line, counters and the circuit breaker."""
