BENCH: tuple = ()
