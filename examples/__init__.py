"""Small programs that show one thing each, and the demonstration behind ``make demo``."""
