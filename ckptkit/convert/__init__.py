"""Conversions: a plan of tensor moves made before a byte is written, then one streaming pass.

A conversion may change the container (format), the names and axis order (layout), the element type
(dtype), or several at once. `plan` decides all of it and refuses what does not fit; `execute` moves bytes
and reads the result back.
"""
