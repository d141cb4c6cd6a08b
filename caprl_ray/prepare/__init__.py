"""Decode image bytes to pixels at the size that the model sees."""
