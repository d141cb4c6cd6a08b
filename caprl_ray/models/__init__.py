"""The files of a model and their configuration."""
