"""Refinement: codes and scales of an encoded model, trained against the unquantized model."""
