"""Code that runs on the GPU. Each file imports triton, and only `kernels.py` and `score_scan.py` import the files."""
