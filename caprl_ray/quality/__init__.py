"""Checks on captions. Importable without Ray and without an engine."""
