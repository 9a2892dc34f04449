"""Speed of these types in llama.cpp, measured beside its own types: run by `bof4 bench speed` and `kernels`."""
