"""`python -m minirlhf` and `torchrun -m minirlhf` are the command `minirlhf`."""

from minirlhf.cli.main import main

main()
