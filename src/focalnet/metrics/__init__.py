"""How good results are: numbers that compare with those of the literature."""
