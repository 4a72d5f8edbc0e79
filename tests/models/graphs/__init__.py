"""Graphs: models written for programs that know nothing of ckptkit."""
