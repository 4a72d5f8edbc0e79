"""What both sides of the T5-style encoder agree on: its sizes, and how far apart two tokens are."""

import numpy as np

VOCABULARY, WIDTH, HEADS, SIZE, INNER, BLOCKS, BUCKETS = 100, 32, 4, 8, 64, 3, 32


def buckets(length: int) -> np.ndarray:
    """Bucket of each distance between query and key: half of them exact, half logarithmic up to 128."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = np.abs(distance)
    logarithmic = exact + (np.log(np.maximum(far, 1) / exact) / np.log(128 / exact) * (half - exact)).astype(
        int
    )
    return np.where(far < exact, far, np.minimum(logarithmic, half - 1)) + half * (distance > 0)
