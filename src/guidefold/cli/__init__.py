"""The command line, a module for each group of verbs. Heavy imports wait until a verb runs."""
