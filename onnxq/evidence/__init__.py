"""What a file is like beside the float model: accuracy, layers, kernels, speed, and the report."""
