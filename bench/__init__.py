"""What these types cost, measured beside the types that llama.cpp has: run by `bof4 bench`."""
