"""What the CUDA kernels should cost on an H200, reckoned without one: see docs/predict.md."""
