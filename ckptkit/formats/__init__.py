"""Containers: how named tensors lie in files. No model, no framework."""
