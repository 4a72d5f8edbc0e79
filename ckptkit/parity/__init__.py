"""Parity: one checkpoint, two frameworks, the same inputs, compared stage by stage.

The Keras model reads the TensorFlow side by its own variable names, the PyTorch model reads the other side;
between the two is the real conversion, so a wrong rule of it, or a fault of either model, shows as a stage
that departs. `inputs` makes what both models see, `backends` run them, `compare` judges, `report` tells
people, JSON and CI systems, `run` is the way through them.
"""
