"""A model, and what can be read off its graph: nothing here runs it or knows of passes."""
