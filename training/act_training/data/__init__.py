"""Point-cloud sets: what a user can name, read behind one schema; published sets prepared; built-in ones generated."""
