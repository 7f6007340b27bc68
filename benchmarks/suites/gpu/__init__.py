"""The parts of the suite h200."""
