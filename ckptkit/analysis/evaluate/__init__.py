"""How well a checkpoint does: accuracy on labelled images, and BatchNorm statistics made of images."""
