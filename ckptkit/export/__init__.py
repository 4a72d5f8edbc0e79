"""Hand-over to other tools: what they load, checked against the model it was made from."""
