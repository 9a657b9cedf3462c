"""What a network runs on: kernels that a host may replace, and blocks that stream. Knows no family."""
