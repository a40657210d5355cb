"""The command line: a module for each group of commands, which import torch when they run."""
