"""The plan of a model, trained against the float model on unlabeled samples. Needs torch."""
