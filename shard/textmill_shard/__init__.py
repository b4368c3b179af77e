"""One tensor-parallel rank: weights, KV tensors, forward pass, sampling. Never speaks HTTP."""
