"""Studies: methods, sparsities, widths, seeds and data sets of one configuration file, as runs that can be resumed."""
