"""The type of each tensor under a budget: losses of tensors and types, the best assignment, recipes.

The rise of the KL divergence is nearly a sum over tensors of alpha t^2, t^2 being the relative squared error of the
tensor under the second moments of its inputs, and alpha how much the model's output depends on it.
"""
