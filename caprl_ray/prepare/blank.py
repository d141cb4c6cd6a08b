"""Find blank pictures: one colour from edge to edge, apart from noise."""

import math

import numpy as np

BLANK = "blank"  # the flag of such a row
# A picture is blank if no channel has a larger standard deviation than this, on a scale of 0 to 255. Measured: one
# colour, as PNG or as JPEG of any quality, 0.0; darkness with a sensor's noise of 3, as JPEG of quality 75, 1.1; a
# gradient over ten levels 2.9; one line of grey text, 24 pixels high, on 644 x 476 white pixels 5.8; photographs 34 and
# 63 (tests/prepare/photographs). A detail of high contrast on a 10,000th of the area raises it above 2.
MOST_DEVIATION = 2.0
# Numbers of pixels to sample. FEW decide nearly every picture (13 us); the others are sampled again with MANY (50 us
# in all). A detail smaller than one pixel in MANY may be missed.
FEW, MANY = 256, 2048


def blank(pixels: bytes, width: int) -> bool:
    """Whether all pixels of a picture are nearly the same. `pixels`: RGB, row by row, `width` a row."""
    seen = np.frombuffer(pixels, np.uint8).reshape(-1, 3)
    return deviation(seen, width, FEW) <= 4 * MOST_DEVIATION and deviation(seen, width, MANY) <= MOST_DEVIATION


def deviation(pixels: np.ndarray, width: int, samples: int) -> float:
    """The largest standard deviation of a channel, from about `samples` pixels spread over all rows and columns."""
    step = max(1, len(pixels) // samples)
    while math.gcd(step, width) > 1:  # otherwise only some columns would be seen
        step += 1
    some = pixels[::step].astype(np.float32)
    some -= some[0]  # keeps the numbers small, so that their squares are exact
    squares = (some.T @ some).diagonal() / len(some)
    means = np.ones(len(some), np.float32) @ some / len(some)
    return math.sqrt(max(0.0, float((squares - means**2).max())))
