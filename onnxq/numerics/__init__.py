"""Pure functions over arrays: no graph, no file, no logging; numpy and nothing else."""
