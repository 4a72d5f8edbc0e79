"""Sizes that both sides of the MLP-Mixer have."""

PATCH, WIDTH, TOKENS, CHANNELS, BLOCKS, CLASSES, SIDE = 8, 24, 12, 48, 3, 10, 32
SEQUENCE = (SIDE // PATCH) ** 2
