"""Data modules of the tasks: from files to loaders of batches."""
