"""What is particular about each provider: where it is, how it wants to be asked, what it spells differently."""
