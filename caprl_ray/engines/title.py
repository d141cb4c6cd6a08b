"""Import this first in the process that cores are forked from, so that a core can have a title.

setproctitle (a dependency of vLLM) finds the place of the title once, by the first variable of the environment. That
place moves when an import sets that variable (cv2 sets LD_LIBRARY_PATH), or with a core's own environment.
"""

from contextlib import suppress

with suppress(ImportError):  # without it vLLM gives no titles
    import setproctitle

    setproctitle.getproctitle()
