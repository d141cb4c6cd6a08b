"""Imported first of all in the process that cores are forked from, so that a core can have a title.

setproctitle (vLLM brings it) finds where a title goes by the first variable of the environment, once. An import that
sets that variable anew (cv2 does so with LD_LIBRARY_PATH), or a core's own environment, moves it.
"""

import setproctitle

setproctitle.getproctitle()
