"""How the tensors of two layouts are named and ordered: the language, and files written in it."""
