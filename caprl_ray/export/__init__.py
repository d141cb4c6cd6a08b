"""Exports: an output in the usual formats, streamed, each row once."""
