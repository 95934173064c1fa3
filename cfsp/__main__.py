"""`python -m cfsp`"""

from cfsp.cli import main

main()
