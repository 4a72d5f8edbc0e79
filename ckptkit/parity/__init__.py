"""Parity: one checkpoint, two frameworks, the same inputs, compared stage by stage.

The Keras model reads the TensorFlow side by its own variable names, the PyTorch model reads the other side;
between the two stands the real conversion, so a wrong rule of it, or a fault of either model, shows as a
stage that departs. `inputs` makes what both models see, `forward` runs one framework after the other,
`comparison` judges, `report` tells people, JSON and CI systems. `onnx_backend` has ONNX Runtime in the place
of Keras. `preparation` compares the ways of a picture to the models: by Pillow, and by each framework alone.
"""
