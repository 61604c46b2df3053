"""What a person gets: figures, tables and files."""
