"""Samples: where they come from, how an image becomes a tensor, and what passes see of them."""
