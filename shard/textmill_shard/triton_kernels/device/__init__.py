"""Code that runs on the GPU. Only `kernels.py` and `score_scan.py` import these files, and each of them imports triton."""
