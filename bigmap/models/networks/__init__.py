"""The networks, one module for each paper or baseline."""
