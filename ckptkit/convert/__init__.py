"""Conversions: a plan of tensor moves made before a byte is written, then one streaming pass."""
