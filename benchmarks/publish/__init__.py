"""What README and docs show, made from committed results."""
