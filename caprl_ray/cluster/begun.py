"""Whether this process has begun the work of a run on Ray. Light to import."""

import threading

begun = threading.Event()
