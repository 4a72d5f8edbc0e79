"""Class activation maps: where in a picture a model sees a class.

`methods` has the maps' formulas with their papers, `explain` runs them on a checkpoint, `picture` is what
comes of it. Nothing here imports torch, captum or Pillow before it is used.
"""
