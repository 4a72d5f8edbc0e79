"""Parity: one checkpoint, two frameworks, the same inputs, compared stage by stage."""
