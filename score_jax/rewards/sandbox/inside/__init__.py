"""What runs in the sandbox's own processes: `python DIRECTORY` starts `__main__`, with the standard library alone."""
