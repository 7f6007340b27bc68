"""Graph, features, width: what sparsity there is besides the weights."""
