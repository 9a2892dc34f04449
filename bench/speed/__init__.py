"""How fast llama.cpp runs files of these types beside files of its own: run by `bof4 bench speed` and `kernels`."""
