"""Code that runs on the GPU. Only `triton_kernels/kernels.py` imports these files, and each of them imports triton."""
