"""Does sparse training pay? Many runs by a configuration, and what they came to: tables, figures, a page."""
