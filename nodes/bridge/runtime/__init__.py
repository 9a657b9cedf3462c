"""What a run needs of the machine: the budget, the retry, the place of the prefix, the kernels."""
