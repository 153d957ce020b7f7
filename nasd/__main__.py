from nasd.cli import main

main()
