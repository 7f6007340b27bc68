"""What would make a training step faster, measured here: weight sparsity, MaxK, bf16, or a narrower dense net.

An application of the library, which imports nothing from here.
"""
