"""Tools in the box: plain functions of a text that a policy may call. See docs/environments.md."""
