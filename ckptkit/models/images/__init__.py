"""Pictures as the models take them: decoding, the published preprocessing, and the names of the classes."""
