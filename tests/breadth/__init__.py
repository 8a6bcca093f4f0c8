"""HIPS autograd's functions with their VJPs: gradients that others wrote, on which the checker was not tuned."""
