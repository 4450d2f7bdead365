"""What each command of the command line does: prepare (checks, writes nothing that exists) and execute."""
