"""The specification of the compiled modules: the same names and the same behaviour in plain Python."""
