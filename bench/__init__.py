"""Fidelity and speed of these types, measured beside types of llama.cpp: run by `bof4 bench`."""
