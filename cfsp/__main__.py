"""`python -m cfsp`"""

from cfsp.cli.main import main

main()
