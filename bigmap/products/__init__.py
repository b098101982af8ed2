"""What is made of a finished map."""
