"""What networks are trained on: outputs and targets to named terms, whose sum is the loss."""
