"""All calls to Ray: sessions, settings, resources, jobs, and optional internals."""
