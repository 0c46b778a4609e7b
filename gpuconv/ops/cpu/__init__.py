"""The engines of the CPU, which the ops call: what NumPy is told to do, and in which order."""
