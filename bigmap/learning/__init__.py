"""From labels to weights and scores: labels, chips, training and evaluation."""
