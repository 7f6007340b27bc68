"""Training runs, measured: an application of the library, which imports nothing from here."""
