"""Tools on data files: look at rows, split, merge, convert and make rows. Each file is one idea."""
