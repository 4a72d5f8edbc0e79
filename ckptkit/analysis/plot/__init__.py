"""Accuracy against cost: pictures for paper, and a page to look into."""
