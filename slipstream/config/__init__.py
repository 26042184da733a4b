"""What users write (schema), how it is found and read (load), and what the rest of the program sees (snapshot)."""
