"""What the site needs beside Sphinx: mathematics without a network, and pages from the code."""
